"""Runs of whole models: what is checked, timed, kept, and not run twice."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import vicinal
from vicinal.bench.measure import Effort
from vicinal.bench.models import ahead, measure
from vicinal.bench.models.attends import FUSED, NONE, System, systems
from vicinal.bench.models.rows import Row, chosen, known, table
from vicinal.bench.models.run import KIND, Run, execute, read
from vicinal.cli import main

EFFORT = Effort(samples=3, seconds=0.01)
CPU = torch.device("cpu")
SYSTEMS = (FUSED, "torch", "fused, channels last", NONE)


def run(tmp_path, *rows, **options):
    return Run(rows, CPU, tmp_path / "models.jsonl", EFFORT, "test", **{"systems": SYSTEMS, **options})


def rows_of(path):
    return [line["systems"] for line in read(path) if line["kind"] == "model"]


@pytest.mark.parametrize(
    ("dtype", "training"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)], ids=str
)
def test_rows_are_checked_timed_and_not_run_twice(small, tmp_path, dtype, training):
    asked = run(tmp_path, Row("nat_mini", dtype, 2, training))
    assert execute(asked)
    assert read(asked.results)[0]["kind"] == KIND
    (found,) = rows_of(asked.results)
    assert tuple(found) == SYSTEMS
    assert all(r["status"] == "ok" and r["images_per_second"] > 0 for r in found.values()), found
    assert set(found["torch"]["errors"]) == ({"outputs", "gradients"} if training else {"outputs"})
    assert training or 0 < found[FUSED]["attention_share"] < 1
    assert execute(asked)
    assert len(read(asked.results)) == 2


def test_weights_of_training_rows_stay_what_they_are(small):
    torch.manual_seed(0)
    row = Row("nat_mini", torch.float32, 2, True)
    model, images = measure.make(row, CPU)
    before = [p.clone() for p in model.parameters()]
    measure._call(row, model, images, vicinal.neighborhood_attention)()
    assert all(p.grad is not None for p in model.parameters())
    torch.testing.assert_close([p.detach() for p in model.parameters()], before, rtol=0, atol=0)


def test_what_is_added_later_is_measured_beside_the_fused_one(small, tmp_path):
    row = Row("nat_mini", torch.float32, 1)
    assert execute(run(tmp_path, row, systems=(FUSED,)))
    asked = run(tmp_path, row, Row("nat_mini", torch.float32, 2), systems=(FUSED, "torch"))
    assert execute(asked)
    assert [list(found) for found in rows_of(asked.results)] == [[FUSED], [FUSED, "torch"], [FUSED, "torch"]]
    with asked.results.open("a") as file:
        file.write('{"kind": "model", "cut sho')
    assert execute(asked)
    assert len(rows_of(asked.results)) == 3


def test_kernels_of_attention_are_told_from_the_rest(monkeypatch):
    """By what a profiler of a GPU gives: spans of annotations and kernels, on the device's clock, and the host's."""

    def event(name, start, stop, device="CUDA", annotation=False):
        span = SimpleNamespace(start=start, end=stop, elapsed_us=lambda: stop - start)
        kind = SimpleNamespace(name=device)
        return SimpleNamespace(name=name, time_range=span, device_type=kind, is_user_annotation=annotation)

    events = [
        event(measure.ATTENTION, 0, 90, "CPU", annotation=True),
        event("before", 0, 10),
        event(measure.ATTENTION, 10, 42, annotation=True),
        event("attention", 10, 40),
        event("attention's end", 40, 42),
        event("after", 50, 68),
    ]

    @contextmanager
    def profile(**_):
        yield SimpleNamespace(events=lambda: events)

    monkeypatch.setattr(measure, "profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    found = measure._kernels(lambda: None, torch.device("cuda"))
    assert found == {"kernel_seconds": pytest.approx(60e-6), "attention_share": pytest.approx(32 / 60)}
    events[:] = events[:1]
    assert measure._kernels(lambda: None, torch.device("cuda")) == {}


def test_wrong_outputs_are_not_timed_and_errors_are_told(small, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("cannot")

    every = {
        FUSED: systems(CPU)[FUSED],
        "zero": System(lambda: lambda q, k, v, n, **_: torch.zeros_like(v)),
        "fails": System(lambda: fails),
    }
    for module in ("measure", "run"):
        monkeypatch.setattr(f"vicinal.bench.models.{module}.systems", lambda _: every)
    asked = run(tmp_path, Row("nat_mini", torch.float32, 1, True), systems=())
    assert not execute(asked)
    (found,) = rows_of(asked.results)
    assert [r["status"] for r in found.values()] == ["ok", "wrong", "failed"]
    assert "images_per_second" not in found["zero"]
    assert found["fails"]["reason"] == "RuntimeError: cannot"
    assert execute(asked)  # nothing is left to do,
    every["fails"] = systems(CPU)["torch"]
    assert execute(run(tmp_path, *asked.rows, systems=(), retry=True))  # unless what failed is tried again
    assert [r["status"] for r in rows_of(asked.results)[1].values()] == ["ok", "ok"]


def test_a_row_that_takes_too_long_is_given_up(tmp_path):
    asked = run(tmp_path, Row("nat_mini", torch.float32, 1), row_seconds=0.1, systems=(FUSED,))
    assert execute(asked)
    assert rows_of(asked.results) == [{FUSED: {"status": "failed", "reason": "took longer than 0.1 s"}}]


def test_no_row_is_begun_after_the_time(small, tmp_path):
    asked = run(tmp_path, Row("nat_mini", torch.float32, 1), stop_after=-1.0)
    assert execute(asked)
    assert rows_of(asked.results) == []


@pytest.mark.parametrize("name", ["nat_mini", "stylenat_ffhq_256"])
def test_model_and_images_are_where_they_are_asked_for(small, name):
    model, images = measure.make(Row(name, torch.float32, 1), torch.device("meta"))
    assert images.is_meta
    assert all(p.is_meta for p in model.parameters())


def test_layers_are_found_and_run_as_the_model_does(small):
    row = Row("nat_mini", torch.bfloat16, 2, True)
    found = ahead.layers(row)
    assert [layer.shape for layer in found] == [(2, 8, 8, 1, 32), (2, 8, 8, 1, 32), (2, 4, 4, 2, 32)]
    assert [layer.neighborhoods[0].dilation for layer in found] == [(1, 1), (2, 2), (1, 1)]
    output = ahead.run(CPU, vicinal.neighborhood_attention, found[1])
    assert (output.shape, output.dtype, output.requires_grad) == (found[1].shape, torch.bfloat16, True)


def test_the_papers_tables_are_rows():
    assert [len(table(n)) for n in (5, 6, 7, 8)] == [15, 15, 2, 11]
    assert {row.model for n in (5, 6, 7, 8) for row in table(n)} <= set(known())
    (one,) = chosen([8], ["nat_tiny"], [], None, False, None)
    assert one == Row("nat_tiny", torch.float16, 128, True)
    assert [row.batch for row in chosen([7], [], [], 4, False, None)] == [4, 4]


def test_the_command(small, tmp_path, capsys):
    options = ["--results", str(tmp_path / "a"), "--samples", "3", "--seconds", "0.01", "--device", "cpu"]
    assert main(["bench", "models", "--model", "nat_mini", "--system", "fused", *options]) == 0
    assert capsys.readouterr().out.startswith("nat_mini float32 1 inference: fused ")
    (found,) = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()[1:]]
    assert found["batch"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "resnet50"], "--model: must be one of dinat_base,"),
        (["--model", "nat_mini", "--dtype", "int8"], "--dtype: must be float32"),
        (["--model", "nat_mini", "--system", "magic"], "--system must be one of fused,"),
        (["--table", "5", "--training"], "--table has its own --dtype and --training"),
        ([], "give --table or --model"),
    ],
)
def test_wrong_arguments_give_one_line_and_exit_2(arguments, words, tmp_path, capsys):
    assert main(["bench", "models", "--results", str(tmp_path / "a"), "--device", "cpu", *arguments]) == 2
    assert words in capsys.readouterr().err
