"""Tables and figures from results: percentages and improvements by hand, the paper's numbers beside them."""

import json
from pathlib import Path

import pytest
import torch

from vicinal.bench.cases import Case
from vicinal.bench.paper.document import document
from vicinal.bench.paper.losses import kind_of, to_save
from vicinal.bench.paper.plots import draw, moved_bytes
from vicinal.bench.paper.problems import problems
from vicinal.bench.paper.systems import FUSED, GEMM, NAIVE
from vicinal.bench.paper.tables import improvement, matched, seconds_of
from vicinal.bench.roofline import Limits
from vicinal.geometry.neighborhood import Neighborhood

FLASH = "SDPA flash (self attention)"


def system(forward, both=None, status="ok", kernel=None):
    eager = {} if forward is None else {"forward": forward, "forward+backward": both}
    return {
        "status": status,
        "reason": None,
        "errors": {},
        "peak_bytes": 1 << 20,
        "eager": eager,
        "kernel": kernel or {},
    }


def line(index, systems, rank=1, dtype="float16", error=None):
    case = problems(rank, torch.float16)[index]
    return {
        "kind": "problem",
        "name": case.name,
        "rank": rank,
        "dtype": dtype,
        "lengths": list(case.lengths),
        "window": [axis.window for axis in case.neighborhood.axes],
        "dilation": list(case.neighborhood.dilation),
        "batch": case.batch,
        "heads": case.heads,
        "head_dim": case.head_dim,
        "useful_scores": case.problem("cpu").useful_scores,
        "fused": "triton",
        "tilings": {"forward": "triton 16"},
        "waste": {"forward": 3.0},
        "seconds": 1.0,
        "error": error,
        "systems": systems,
    }


LINES = [
    line(0, {NAIVE: system(8.0, 20.0), GEMM: system(4.0, 10.0), FUSED: system(2.0, 5.0), FLASH: system(1.0, 6.0)}),
    line(1, {NAIVE: system(6.0, 9.0), GEMM: system(3.0, 9.0), FUSED: system(1.0, 3.0), FLASH: system(2.0, 4.0)}),
    line(2, {NAIVE: system(6.0, 9.0), GEMM: system(None, status="failed"), FUSED: system(3.0, 3.0)}),
]


def test_improvement_is_of_the_same_problems():
    found = improvement(LINES, FUSED, "forward")
    assert (found.average, found.least, found.largest, found.problems) == (
        pytest.approx((300 + 500 + 100) / 3),
        100,
        500,
        3,
    )
    assert improvement(LINES, GEMM, "forward+backward").problems == 2
    assert improvement([], GEMM, "forward") is None


def test_matched_counts_problems_that_both_ran():
    assert matched(LINES, FUSED, FLASH) == (50.0, 2)
    assert matched(LINES, FUSED, NAIVE) == (100.0, 3)
    assert matched(LINES, FUSED, "FlexAttention") is None


def test_a_hair_slower_still_matches():
    near = line(0, {FUSED: system(1.005), FLASH: system(1.0)})
    far = line(0, {FUSED: system(1.02), FLASH: system(1.0)})
    assert matched([near], FUSED, FLASH)[0] == 100.0
    assert matched([far], FUSED, FLASH)[0] == 0.0


def test_kernel_times_are_compared_with_kernel_times():
    kernel = {"forward": 0.5}
    both = line(0, {FUSED: system(2.0, kernel=kernel), FLASH: system(3.0, kernel={"forward": 0.25})})
    one = line(0, {FUSED: system(2.0, kernel=kernel), FLASH: system(3.0, kernel={"forward": None})})
    assert seconds_of(both, FUSED, FLASH, "forward") == (0.5, 0.25)
    assert seconds_of(one, FUSED, FLASH, "forward") == (2.0, 3.0)


@pytest.fixture
def results(tmp_path) -> Path:
    header = {
        "kind": "vicinal paper",
        "date": "2030-01-01",
        "command": "vicinal bench paper --sample 3",
        "machine": {"device": "a device"},
        "versions": {"torch": "9"},
        "limits": {"float16": {"bandwidth": 1e12, "flops": 1e14}},
    }
    lines = [header, *LINES, line(3, {}, error="took longer than 1 s"), {"kind": "end", "problems": 2, "seconds": 6.0}]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


def test_document(results):
    text = document(results)
    assert "vicinal bench paper --sample 3" in text
    assert "a device" in text
    assert "| 1-D fused | 100.0% (100%) | 100.0% (100%) of 2 |  | 50.0% (98.2%) of 2 |" in text
    assert "| 1-D | float16 | fused over naive | 300% | 1759% | 100% to 500% | 60% to 11885% | 3 |" in text
    assert "| 1-D | float16 | GEMM over naive | 50% | 502% | 0% to 100% | -48% to 3017% | 2 |" in text
    lost = f"| {LINES[0]['name']} | float16 | forward | triton 16 | even | 2000000.0 | flash 2.00 | 4.7% | 14% | 1.00 |"
    assert lost in text
    assert "| 1-D | float16 | forward | 1 of 3 |  | 0 of 1 | 1 of 2 |  |  |  | flash 1 | 2.00 |" in text
    assert "| float16 | forward | up to 1.05 | 2 | 1 | 1.25 |" in text
    assert "| 1-D | below 16 |  | 2 | 400% (400%) | 100% (100%) | 250% (250%) | 50% (50%) |" in text
    assert "float16: copy 1.00 TB/s, matrix product 100 TFLOP/s" in text
    assert "| float16 | fused | 3.5 | " in text
    assert "| float16 | forward+backward | flash | 8.0 (at most 8.0) |" in text
    assert "2 problems took 6 s in all, 3.00 s each" in text
    assert "took longer than 1 s" in text


@pytest.mark.parametrize(
    ("dilation", "share", "batch", "saving", "kind"),
    [
        ((1, 1), 0.3, 8, 1.0, "dense"),
        ((9, 8), 0.01, 8, 1.0, "thin"),
        ((2, 2), 0.01, 8, 1.02, "even"),
        ((2, 2), 0.002, 8, 9.0, "few"),
        ((2, 2), 0.01, 1, None, "small"),
        ((2, 2), 0.01, 8, 9.0, "other"),
    ],
)
def test_kinds(dilation, share, batch, saving, kind):
    pairs = share * batch * 64**4
    problem = {"lengths": (64, 64), "dilation": dilation, "batch": batch, "heads": 1, "useful_scores": pairs}
    assert kind_of(problem, saving) == kind


@pytest.mark.parametrize(
    ("bandwidth", "flops", "saving"),
    [
        (1e30, 1.0, 64 / 3),  # bound by products: the share of pairs
        (1.0, 1e30, 1.0),  # bound by memory
    ],
)
def test_what_there_is_to_save(bandwidth, flops, saving):
    limits = {"float16": Limits(bandwidth, flops)}
    problem = line(0, {})
    assert (problem["lengths"], problem["window"]) == ([64], [3])
    assert to_save(problem, "forward", limits) == pytest.approx(saving)
    assert to_save(problem, "forward", {}) is None


def test_no_results_is_said(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        document(tmp_path / "none.jsonl")


def test_figures_are_drawn(results, tmp_path):
    written = draw(results, tmp_path / "figures")
    assert {path.name for path in written} == {"improvement.png", "speedup.png", "memory.png", "roofline-float16.png"}
    assert all(path.stat().st_size > 1000 for path in written)


def problem(window: int, dtype: torch.dtype = torch.float16):
    return Case("", (1 << 16,), Neighborhood.of(1, window), 1, 64, dtype=dtype).problem("cpu")


@pytest.mark.parametrize(("window", "dtype"), [(63, torch.float16), (255, torch.float32)])
def test_fused_intensity_is_window_over_element_size(window, dtype):
    """Equation 4 of the paper: l / s."""
    found = problem(window, dtype)
    assert found.forward_flops / moved_bytes(found, FUSED) == pytest.approx(window / dtype.itemsize)


def test_the_more_is_fused_the_less_is_moved():
    p = problem(255)
    assert moved_bytes(p, FUSED) < moved_bytes(p, GEMM) < moved_bytes(p, NAIVE)
    with pytest.raises(ValueError, match="system must be"):
        moved_bytes(p, "flash")
