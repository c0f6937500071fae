"""Kernels compiled by parallel processes before models are measured: every layer's attention is run once.

What is compiled is kept on disk by Triton and Inductor, where the process that measures finds it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vicinal.bench.models.attends import FUSED, NONE, Attend, attending, systems
from vicinal.bench.models.measure import CHECKED, make
from vicinal.bench.models.rows import Row
from vicinal.geometry.neighborhood import Neighborhood


@dataclass(frozen=True)
class Layer:
    """The attention of a layer, as a row's model calls it.

    Attributes:
        shape: of the query, `[B, *X, H, D]`; query, key and value are parts of one tensor.
        rpb: the shape of the bias.
        dtype: of query, key and value; `bias_dtype` of the bias.
        training: whether gradients are wanted, under autocast.
    """

    shape: tuple[int, ...]
    neighborhoods: tuple[Neighborhood, ...]
    scale: float
    rpb: tuple[int, ...]
    dtype: torch.dtype
    bias_dtype: torch.dtype
    training: bool


def layers(row: Row) -> list[Layer]:
    """The different ones of a row's model, of its batch and of the images that are checked; nothing is computed."""
    found: dict[Layer, None] = {}

    def note(query: Tensor, key: Tensor, value: Tensor, neighborhoods: Any, *, scale: float, rpb: Tensor) -> Tensor:
        bias = torch.float32 if row.training else row.dtype
        of = tuple(query.shape), tuple(neighborhoods), scale, tuple(rpb.shape)
        found[Layer(*of, row.dtype, bias, row.training)] = None
        return query.new_empty(query.shape)

    model, images = make(row, torch.device("meta"))
    with torch.no_grad(), attending(note):
        model(images)
        model(images[:CHECKED])
    return list(found)


def compile_ahead(
    rows: Sequence[Row],
    names: Sequence[str],
    device: torch.device,
    processes: int,
    seconds: float,
    tell: Callable[[int, int], None],
) -> None:
    """Run every layer of every row once with every system, in so many processes, for at most so many seconds.

    What fails here will fail, and be recorded, where it is measured.
    """
    once = [n for n in names if n != NONE and not (n.startswith(f"{FUSED}, ") and FUSED in names)]
    different = list(dict.fromkeys(layer for row in rows for layer in layers(row)))
    tasks = [(name, layer) for name in once for layer in different]
    deadline = time.monotonic() + seconds
    pool = multiprocessing.get_context("spawn").Pool(processes, _begin, (device,))
    try:
        running = [pool.apply_async(_compile, (device, *task)) for task in tasks]
        for done, each in enumerate(running, 1):
            each.wait(max(0.0, deadline - time.monotonic()))
            tell(done, len(tasks))
    finally:
        pool.terminate()


def _begin(device: torch.device) -> None:
    """Let torch.compile start no processes of its own, and share the processors."""
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # "cuda" alone has no index


@cache
def _attend(device: torch.device, name: str) -> Attend:
    return systems(device)[name].make()


def _compile(device: torch.device, name: str, layer: Layer) -> None:
    with suppress(Exception):
        run(device, _attend(device, name), layer)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def run(device: torch.device, attend: Attend, layer: Layer) -> Tensor:
    """A layer's attention on random tensors, with gradients where it trains."""
    *tokens, heads, dim = layer.shape
    shape = (*tokens, 3, heads, dim)
    packed = torch.randn(shape, dtype=torch.float32, device=device).to(layer.dtype).requires_grad_(layer.training)
    rpb = torch.zeros(layer.rpb, dtype=layer.bias_dtype, device=device, requires_grad=layer.training)
    half = layer.training and layer.dtype != torch.float32
    with torch.set_grad_enabled(layer.training), torch.autocast(device.type, layer.dtype) if half else nullcontext():
        output = attend(*packed.unbind(-3), layer.neighborhoods, scale=layer.scale, rpb=rpb)
        if layer.training:
            output.float().sum().backward()
    return output
