"""Tuning where there is a GPU: candidates of both GPU backends, cold timings, nothing within a graph's capture."""

import warnings

import pytest
import torch

import vicinal
from vicinal import dispatch
from vicinal.backends.protocol import settings
from vicinal.bench.cases import Case
from vicinal.bench.cold import time_cold
from vicinal.bench.measure import Effort
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.tuning import cache, search

pytestmark = pytest.mark.gpu


@pytest.fixture
def problem(tmp_path, monkeypatch, poisoned_memory):
    pytest.importorskip("filelock")
    pytest.importorskip("platformdirs")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    cache.reload()
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(search, "SHORT", 2)
    neighborhood = Neighborhood.of(2, 7).resolve((32, 40))
    yield Case("", (32, 40), neighborhood, 2, 64, dtype=torch.bfloat16).problem("cuda")
    monkeypatch.undo()
    cache.reload()


def test_tune(problem):
    entries = vicinal.tune(problem)
    plan = dispatch.plan(problem)
    assert [e.direction for e in entries] == ["forward", "backward"]
    assert {t.backend for e in entries for t in e.timings} == {each.name for each in plan.able} - {"torch"}
    assert (plan.backend.name, settings(plan.forward)) == (entries[0].timings[0].backend, entries[0].timings[0].config)
    assert all(0 < t.seconds < 1e-2 for e in entries for t in e.timings)


def test_a_cold_cache_is_slower():
    """24 MB, which fit the L2 cache of an H100 or H200."""
    memory = torch.zeros(6 << 20, device="cuda")
    cold = time_cold({"sum": memory.sum}, memory.device, Effort(samples=9))["sum"].median
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(20):
        memory.sum()
    stop.record()
    stop.synchronize()
    assert cold > start.elapsed_time(stop) / 1e3 / 20


def test_nothing_is_timed_while_a_graph_is_captured(problem):
    memory = torch.zeros(8, device="cuda")
    with warnings.catch_warnings(record=True) as told, torch.cuda.graph(torch.cuda.CUDAGraph()):
        warnings.simplefilter("always")
        memory.add_(1)
        entries = vicinal.tune(problem)
    assert entries == []
    assert any("a CUDA graph is being captured" in str(warning.message) for warning in told)
