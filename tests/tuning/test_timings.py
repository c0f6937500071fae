"""Raw timings in a file."""

import gzip
import json
from pathlib import Path

import pytest
import torch

import vicinal
from vicinal.bench.planning import random_problem
from vicinal.geometry.span import Span
from vicinal.problem import Problem
from vicinal.tuning import cache
from vicinal.tuning.timings import Measured, append, read


def measured(problem, seconds=1e-3, **fields):
    about = {"device": "card", "gpu": ("sm_90", 132), "versions": cache.versions(), "direction": "forward"}
    rest = {"backend": "triton", "config": {"tile": [8, 8], "unfolded": None}, "samples": 11}
    return Measured(problem=problem, seconds=(0.9 * seconds, seconds, 1.2 * seconds), **{**about, **rest, **fields})


def problems():
    import random
    from dataclasses import replace

    from vicinal.geometry.neighborhood import Axis, Neighborhood

    rng = random.Random(0)
    drawn = [random_problem(rng, (torch.float16, torch.float32)) for _ in range(20)]
    part = Neighborhood((Axis(5, span=Span(40, (8, 20), (4, 30))),))
    more = [
        Problem(1, (12,), 2, 2, 8, 8, torch.bfloat16, torch.device("cpu"), (part,), 0.5),
        replace(drawn[0], additional=3, has_rpb=True, has_key_mask=True),
        replace(drawn[1], neighborhoods=drawn[1].neighborhoods * 2),
    ]
    return drawn + more


def test_what_is_appended_is_read_again(tmp_path):
    path = tmp_path / "timings.jsonl.gz"
    rows = [measured(problem) for problem in problems()]
    append(path, rows[:3])
    append(path, [])
    append(path, rows[3:])
    assert read(path) == rows
    assert rows[0].median == 1e-3


def test_a_member_that_is_cut_off_is_told(tmp_path):
    path = tmp_path / "timings.jsonl.gz"
    append(path, [measured(problem) for problem in problems()])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is no file of timings"):
        read(path)


@pytest.mark.parametrize("change", [{"schema": 2}, {"seconds": [1.0]}, {"problem": {}}, {"gpu": []}, None])
def test_something_else_is_told(tmp_path, problem, change):
    path = tmp_path / "timings.jsonl.gz"
    row = [] if change is None else measured(problem).to_json() | change
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(row))
    with pytest.raises(ValueError, match="timings.jsonl.gz is no file of timings"):
        read(path)
    path.write_text("plain")
    with pytest.raises(ValueError, match="is no file of timings"):
        read(path)


@pytest.mark.usefixtures("quick")
def test_the_tuner_writes_what_it_measures(tmp_path, problem):
    path = tmp_path / "timings.jsonl.gz"
    entries = vicinal.tune(problem, timings=path)
    rows = read(path)
    assert [row.direction for row in rows] == ["forward"] * 4 + ["backward"] * 4
    for entry in entries:
        own = [row for row in rows if row.direction == entry.direction]
        assert sorted((row.median, row.config["tiles"]) for row in own) == [
            (t.seconds, t.config["tiles"]) for t in entry.timings
        ]
    assert {(row.problem, row.backend, row.gpu) for row in rows} == {(problem, "numba", None)}
    assert all(0 < row.seconds[0] <= row.median <= row.seconds[2] and row.samples >= 3 for row in rows)


KEPT = sorted((Path(__file__).parents[2] / "benchmarks" / "results" / "timings").glob("*.jsonl.gz"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_what_is_kept_in_the_repository_can_be_read(path):
    rows = read(path)
    assert len(rows) > 100
    assert {row.device for row in rows} == {rows[0].device}
    assert {row.backend for row in rows} == {"hopper", "triton"}
