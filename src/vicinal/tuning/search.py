"""Timing tilings on the GPU at hand: the measured counterpart of `vicinal.tuning.cost`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import torch

from vicinal.tuning.config import TileConfig


@dataclass(frozen=True)
class Trial:
    """One tiling's time, or why it could not run."""

    config: TileConfig
    milliseconds: float | None
    problem: str = ""


def search(
    run: Callable[[TileConfig], object], configs: Iterable[TileConfig], milliseconds: float = 30.0
) -> list[Trial]:
    """Time `run(config)` for every config on the current GPU, the fastest first, those that cannot run last.

    Each runs once to compile and once more to be timed roughly, then for about `milliseconds`. Runs too short for the
    host to keep up with are launched as a CUDA graph. Waits for the device.
    """
    trials = []
    for config in configs:
        try:
            trials.append(Trial(config, _time(lambda config=config: run(config), milliseconds)))  # type: ignore[misc]
        except Exception as error:  # a tiling that does not fit must not end the search
            torch.cuda.synchronize()
            trials.append(Trial(config, None, f"{type(error).__name__}: {error}"[:200]))
    return sorted(trials, key=lambda t: float("inf") if t.milliseconds is None else t.milliseconds)


def _time(run: Callable[[], object], milliseconds: float) -> float:
    run()
    run()
    torch.cuda.synchronize()
    once = _elapsed(run)
    repeats = max(1, min(20, int(1.0 / max(once, 1e-3))))
    timed = run
    if repeats > 1:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                run()
        timed = graph.replay
        timed()
    rounds = max(3, min(50, int(milliseconds / max(once * repeats, 1e-3))))
    return median(_elapsed(timed) for _ in range(rounds)) / repeats


def _elapsed(run: Callable[[], object]) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)
