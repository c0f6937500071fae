"""`vicinal bench cp` without processes: what is counted, told and drawn. With them: `make demo-distributed`'s way."""

import json
from pathlib import Path

import pytest

from vicinal.bench.cp import page
from vicinal.bench.cp.methods import OVERLAPPED, elements
from vicinal.bench.cp.run import KIND, ONE, PROBLEMS, Point
from vicinal.distributed.halo import shards_of
from vicinal.distributed.layout import Layout
from vicinal.geometry.neighborhood import Neighborhood


def layout(lengths, parts, axis=0):
    shards = shards_of(lengths, [parts if i == axis else 1 for i in range(len(lengths))])
    return Layout(None, lengths, ((0, axis),), shards, 0, None)


def test_what_ranks_send():
    held, window = layout((16, 10), 4), Neighborhood.of(2, (5, 3))  # shards of 4 rows of 10 tokens
    sent = {m: [elements(m, window, held, 2, 8, r) for r in range(4)] for m in ("halo", "all-gather", "Ulysses")}
    assert sent["halo"] == [2 * 16 * 10 * rows for rows in (2, 4, 4, 2)]  # two rows to each side, keys and values
    assert sent["all-gather"] == [2 * 16 * 40 * 3] * 4
    # Query, key and value for three quarters of the heads, and the output of a quarter of them for the others' tokens.
    assert sent["Ulysses"] == [3 * (40 * 16 * 3 // 4) + 120 * 16 // 4] * 4


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("problem", [each for device in PROBLEMS for each in PROBLEMS[device]])
def test_every_problem_fits_its_map(problem, ranks):
    assert problem.window.resolve(problem.whole(ranks)).rank == len(problem.lengths)
    grown = problem.whole(ranks)[problem.axis] // problem.lengths[problem.axis]
    assert grown == (ranks if problem.mode == "weak" else 1)


def record(ranks, seconds, mode="strong"):
    def point(method, t):
        own = Point("image", (64, 64), mode, method, ranks, "both", "ok", t, 5_000_000)
        return vars(own) | {"hidden": 0.5, "peak_bytes": 3_000_000_000}

    points = [point(ONE, 0.1), point("halo", seconds), point(OVERLAPPED, seconds), point("all-gather", 2 * seconds)]
    return {"kind": KIND, "ranks": ranks, "points": points}


def test_the_table_tells_speedups():
    text = page.tables([record(2, 0.05), record(4, 0.1, "weak")])
    assert "| image 64x64, strong | 2 | 100 | 50 | 2.00 | 100 |  | 5 of 5 | 50% | 3 |" in text
    assert "| image 64x64, weak | 4 | 100 | 100 | 4.00 |" in text


def test_the_page_has_tables_and_a_chart(tmp_path):
    pytest.importorskip("matplotlib")
    assert "No run" in page.parts(tmp_path, Path("docs/pictures"))["ranks"]
    assert page.charts(tmp_path, tmp_path) == []
    told = {"machine": {"device": "a GPU"}, "date": "2030-01-02T03", "command": "vicinal bench cp"}
    (tmp_path / "cp.json").write_text(json.dumps(record(2, 0.05) | told | {"versions": {"torch": "9"}}))
    text = page.parts(tmp_path, Path("docs/pictures/benchmarks"))["ranks"]
    assert "2 times a GPU, 2030-01-02" in text
    assert "| image 64x64, strong | 2 | 100 | 50 | 2.00 |" in text
    assert "(pictures/benchmarks/ranks.png)" in text
    (drawn,) = page.charts(tmp_path, tmp_path / "new")
    assert drawn.is_file()


def test_records_are_read_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    for ranks in (4, 2):
        (tmp_path / f"cp-{ranks}.json").write_text(json.dumps(record(ranks, 0.2 / ranks)))
    (tmp_path / "other.json").write_text("[]")
    records = page.read(sorted(tmp_path.glob("*.json")))
    assert [r["ranks"] for r in records] == [2, 4]
    page.draw(records, tmp_path / "cp.png")
    assert (tmp_path / "cp.png").read_bytes().startswith(b"\x89PNG")


def test_a_point_in_words():
    point = Point("image", (64, 64), "strong", "halo", 2, "forward", "ok", 0.0123, 2_000_000, 10**9, 0.001, 0.004, 0.01)
    point.hidden = 0.75
    told = page.in_words(point)
    assert told.startswith("strong image 64x64, halo, forward: 12.3 ms, 2 MB sent, 1 GB at most, ")
    assert told.endswith("exchange 4 ms, 75% hidden, differs by 0.001")
    point.seconds, point.status = None, "no time was left"
    assert page.in_words(point) == "strong image 64x64, halo, forward: no time was left"
