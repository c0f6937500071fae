"""Benchmarks on a GPU: every system gives right results, eager times and times replayed from a CUDA graph."""

import pytest
import torch

from vicinal.bench.cases import Case
from vicinal.bench.measure import Effort, measure
from vicinal.bench.paper.sweep import Sweep, read, run
from vicinal.bench.peers import peers, vicinal_systems
from vicinal.bench.roofline import measure_limits
from vicinal.geometry.neighborhood import Neighborhood

pytestmark = pytest.mark.gpu
QUICK = Effort(samples=3, seconds=0.05, sample_seconds=0.001)


def case(kv_heads=None, lengths=(32, 48)):
    neighborhood = Neighborhood.of(2, (5, 9)).resolve(lengths)
    return Case("2-D", lengths, neighborhood, 4, 64, batch=2, kv_heads=kv_heads, dtype=torch.bfloat16)


def check(results):
    for m in results:
        assert m.status == "ok", f"{m.system}, {m.passed}: {m.reason}"
        assert m.kernel is not None, f"{m.system}, {m.passed}: {m.reason}"
        assert m.kernel.median > 0
        assert m.eager.median > 0


@pytest.mark.parametrize("index", range(5), ids=[p.name for p in peers("cuda")])
def test_peer_is_right_and_timed(index):
    check(measure(case(), [peers("cuda")[index]], "cuda", QUICK))


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_our_backends_are_right_and_timed(kv_heads):
    made = case(kv_heads)
    systems = vicinal_systems(made.problem("cuda"))
    assert systems
    check(measure(made, systems, "cuda", QUICK))


def test_large_problem_is_sampled():
    made = case(lengths=(128, 128))
    results = measure(made, vicinal_systems(made.problem("cuda"))[:1], "cuda", QUICK)
    check(results)
    assert all(m.sampled for m in results)


def test_limits_are_plausible():
    limits = measure_limits("cuda", torch.bfloat16)
    assert 5e10 < limits.bandwidth < 2e13
    assert 1e12 < limits.flops < 1e16


def test_the_papers_sweep_measures_every_system_from_graphs(tmp_path):
    sweep = Sweep(tmp_path / "r.jsonl", torch.device("cuda", 0), ranks=(2,), sample=2, compilers=2, workers=2)
    outcome = run(sweep)
    assert (outcome.measured, outcome.failed, outcome.wrong) == (2, 0, [])
    for line in read(sweep.results):
        for name, result in line["systems"].items():
            assert result["status"] == "ok", f"{name}: {result['reason']}"
            assert min(result["kernel"].values()) > 0, name
            assert result["peak_bytes"] > 0
