"""CUDA graphs of benchmarked calls, whose replay takes no host time; and the stream that capturing needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A CUDA stream other than the default, one for all that is measured; on a CPU nothing.

    Capturing needs one, a backward pass runs on its forward pass's, and freed memory is reused on its own stream only.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(_side_stream(device)):
        yield
        torch.cuda.synchronize(device)


def captured(call: Callable[[], object], count: int, device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph of `count` calls, captured on the current stream, in memory that all graphs share: replay one at a time.

    `torch.cuda.graph` would first return all cached memory to the device, which takes longer than most calls.
    """
    return _graph(call, count, _pool(device))


def give_back(device: torch.device) -> None:
    """Return all cached memory to the device, also that of graphs: none that was captured may be replayed any more."""
    _keepers.clear()
    _pool.cache_clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _graph(call: Callable[[], object], count: int, pool: Any) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool=pool)
    try:
        for _ in range(count):
            call()
    except BaseException:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was captured until then may be nothing
            graph.capture_end()
        raise
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The CUDA Graph is empty")  # its time would be that of nothing
        graph.capture_end()
    return graph


@cache
def _pool(device: torch.device) -> Any:
    """The memory of all graphs, kept by one that does next to nothing."""
    keeper = torch.zeros(1, dtype=torch.float32, device=device)
    _keepers.append((_graph(lambda: keeper.add_(1), 1, None), keeper))
    return _keepers[-1][0].pool()


_keepers: list[tuple[torch.cuda.CUDAGraph, Tensor]] = []


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
