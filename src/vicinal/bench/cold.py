"""Times of calls that find nothing of theirs in the device's cache, in turns: what a layer of a model meets."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

from vicinal.bench.measure import Effort, Timing, sample_cpu, timing_of

Name = TypeVar("Name", bound=Hashable)

FLUSHED = {"cuda": 1 << 28, "cpu": 1 << 26}  # bytes that are written before a call: more than any cache of the kind
WRITES = {"cuda": 4, "cpu": 1}  # a GPU is kept busy for longer than the host needs to launch a call


def time_cold(calls: Mapping[Name, Callable[[], object]], device: torch.device, effort: Effort) -> dict[Name, Timing]:
    """Seconds per call of each callable, sampled in turns, each after the cache was filled with something else.

    On CUDA without host time, on the current stream: the calls wait behind what fills the cache.
    """
    memory = torch.zeros(FLUSHED[device.type] // 4, dtype=torch.int32, device=device)
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(effort.samples):
        for name, call in calls.items():
            if len(taken[name]) >= 3 and sum(taken[name]) > effort.seconds:
                continue
            taken[name].append((_sample_cuda if device.type == "cuda" else _sample_cpu)(call, memory))
    return {name: timing_of(samples, 1) for name, samples in taken.items()}


def _flush(memory: torch.Tensor) -> None:
    for _ in range(WRITES[memory.device.type]):
        memory.add_(1)


def _sample_cpu(call: Callable[[], object], memory: torch.Tensor) -> float:
    _flush(memory)
    return sample_cpu(call, 1)


def _sample_cuda(call: Callable[[], object], memory: torch.Tensor) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(memory.device)
    _flush(memory)
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3
