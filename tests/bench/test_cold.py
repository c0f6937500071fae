import torch

from vicinal.bench import cold
from vicinal.bench.measure import Effort

CPU = torch.device("cpu")


def test_calls_take_turns_each_behind_a_flushed_cache(monkeypatch):
    done = []
    monkeypatch.setattr(cold, "_flush", lambda memory: done.append("flush"))
    calls = {name: lambda name=name: done.append(name) for name in "ab"}
    timings = cold.time_cold(calls, CPU, Effort(samples=3))
    assert done == ["a", "b", *["flush", "a", "flush", "b"] * 3]  # after a first call of each
    assert [t.samples for t in timings.values()] == [3, 3]
    assert all(0 < t.lower <= t.median <= t.upper for t in timings.values())


def test_time_that_runs_out_leaves_three_samples(monkeypatch):
    monkeypatch.setattr(cold, "sample_cpu", lambda call, count: 1.0)
    timings = cold.time_cold({"a": int}, CPU, Effort(samples=9, seconds=0.5))
    assert timings["a"].samples == 3


def test_nothing_to_time():
    assert cold.time_cold({}, CPU, Effort()) == {}
