"""Training steps against tokens: what runs is right, what grows is stopped, what is measured is told."""

import json
from dataclasses import replace
from math import prod

import pytest
import torch

from vicinal.bench import scaling, scaling_page
from vicinal.bench.measure import Effort, Timing
from vicinal.bench.scaling import Model, Point, Setting, attend_with

SETTING = Setting(
    depth=1,
    heads=2,
    head_dim=8,
    dtype=torch.float32,
    windows={"images": ((3, 3),)},
    shapes={"images": ((6, 6), (8, 8))},
)
CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch):
    """Steps that are not run but take a millisecond for a token, and do not fit above 1000 tokens."""

    def measured(setting, attend, lengths, device, effort):
        tokens = prod(lengths)
        if tokens > 1000:
            raise MemoryError("full")
        return Timing(tokens / 1000, tokens / 1000, tokens / 1000, 5, 1), tokens << 20

    monkeypatch.setattr(scaling, "_measured", measured)
    return replace(SETTING, shapes={"images": ((8, 8), (16, 16), (64, 64))})


def test_a_run_measures_every_system_and_writes_what_it_has(tmp_path):
    told = []
    effort = Effort(samples=3, seconds=0.01, sample_seconds=0.0)
    record = scaling.run(SETTING, CPU, "vicinal bench scaling", tmp_path / "a.json", 100, effort, told.append)
    assert [(p.system, p.lengths, p.status) for p in told] == [
        ("self attention", (6, 6), "ok"),
        ("self attention", (8, 8), "ok"),
        ("window 3x3", (6, 6), "ok"),
        ("window 3x3", (8, 8), "ok"),
    ]
    assert record["complete"]
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(json.dumps(record))
    assert all(p.seconds.median > 0 for p in told)


def test_a_whole_window_is_self_attention():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 5, 6, 2, 8).unbind()
    torch.testing.assert_close(attend_with((5, 6))(query, key, value), attend_with(None)(query, key, value))


def test_checkpointing_changes_memory_and_not_gradients():
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = Model(replace(SETTING, checkpointing=checkpointing), attend_with((3, 3)))
        model(torch.randn(1, 6, 6, scaling.NUMBERS)).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads)


def test_sizes_between_are_tried_for_the_largest_that_fits(quick):
    record = scaling.run(quick, CPU, "")
    found = [(p["lengths"], p["status"]) for p in record["points"] if p["system"] == "window 3x3"]
    assert found[:3] == [((8, 8), "ok"), ((16, 16), "ok"), ((64, 64), "memory")]
    assert ((24, 24), "ok") in found
    assert max(prod(lengths) for lengths, status in found if status == "ok") < 1000
    assert all(side % 8 == 0 for lengths, _ in found for side in lengths)


def test_what_would_take_too_long_is_not_run(quick):
    record = scaling.run(replace(quick, longest=0.2), CPU, "")
    assert [p["status"] for p in record["points"] if p["system"] == "self attention"] == ["ok", "time"]


def test_out_of_time_is_told(quick):
    record = scaling.run(quick, CPU, "", seconds=0)
    assert {p["status"] for p in record["points"]} <= {"ok", "budget"}
    assert "budget" in {p["status"] for p in record["points"]}


def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setattr(
        scaling, "attend_with", lambda window: lambda query, key, value: value * query.sum() * key.sum()
    )
    record = scaling.run(SETTING, CPU, "")
    assert [p["status"] for p in record["points"]] == ["wrong", "wrong"]


def test_the_page_tells_the_largest_and_what_ended_it(quick, tmp_path):
    record = scaling.run(replace(quick, longest=4.0), CPU, "vicinal bench scaling", tmp_path / "cpu.json")
    text = scaling_page.parts(tmp_path, tmp_path)["possible"]
    row = "| window 3x3 | 24x24 (0.576k) | 0.562 GiB | 24x24 (0.576k) | 576 ms | 0.562 GiB | time: 64x64 (4.1k) |"
    assert row in text
    assert "Tokens that train in a second: self attention 0.576k, window 3x3 0.576k (1.0 times as many)." in text
    assert "`vicinal bench scaling`" in text
    assert f"Every measurement ({len(record['points'])})" in text
    (drawn,) = scaling_page.charts(tmp_path, tmp_path)
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_a_chart_of_nothing_is_drawn(tmp_path):
    record = {"machine": {"device": "x"}, "points": []}
    scaling_page.draw(record, "images", tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_progress_is_one_line():
    assert scaling_page.in_words(Point("images", "window 3x3", (3, 3), (8, 8), "time", "too long")) == (
        "images, window 3x3, 8x8 (64 tokens): time, too long"
    )
