"""The `hopper` backend: TMA and wgmma kernels in Gluon, for compute capability 9.0.

Launching only: kernels are in `vicinal.backends.hopper.kernels`, tilings in `tilings`, descriptors in `layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from vicinal.backends.hopper import backward, estimate
from vicinal.backends.hopper.arguments import (
    axes_of,
    constants_of,
    contiguous_strides,
    grid_of,
    groups_of,
    head_table,
    options_of,
    token_strides,
)
from vicinal.backends.hopper.kernels.arguments import ForwardStrides, Scalars
from vicinal.backends.hopper.launch import Launcher, Tile
from vicinal.backends.hopper.layout import Launch, describe, described, launches, three, with_heads
from vicinal.backends.hopper.tilings import (
    SHARED_MEMORY,
    backward_configs,
    forward_configs,
    forward_shared,
    heads_together,
    piece,
)
from vicinal.backends.protocol import Direction
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.tuning.config import TileConfig

HEAD_DIMS = (32, 64, 96, 128, 192, 256)
LOG2E = 1.4426950408889634
CAPABILITY = (9, 0)


class HopperBackend:
    """See `vicinal.backends.protocol.Backend`."""

    name = "hopper"

    def unsupported(self, problem: Problem) -> str | None:
        if problem.device.type != "cuda":
            return f"it needs a CUDA device, the tensors are on {problem.device}"
        if _capability(problem.device) != CAPABILITY:
            return f"it needs compute capability 9.0, {problem.device} has {_capability(problem.device)}"
        return unsupported_anywhere(problem)

    def seconds(self, problem: Problem, direction: Direction, config: TileConfig) -> float:
        return estimate.seconds(problem, direction, config)

    def configs(self, problem: Problem, direction: Direction) -> Sequence[TileConfig]:
        return _configs(problem, direction)

    def forward(self, problem: Problem, config: TileConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
        query, key, value = described(inputs)
        output = query.new_empty((*query.shape[:-1], problem.value_dim))
        lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
        strides = (query.stride(), key.stride(), value.stride())
        with _on(problem.device):
            table = head_table(problem)
            for launcher in _forward_launchers(problem, config, strides):
                launcher(query, key, value, output, lse, table if table is not None else lse)
        return output, lse

    def backward(
        self,
        problem: Problem,
        config: TileConfig,
        inputs: Inputs,
        upstream: Upstream,
        wanted: Wanted,
    ) -> Inputs:
        with _on(problem.device):
            return backward.backward(problem, config, inputs, upstream, wanted)


def unsupported_anywhere(problem: Problem) -> str | None:
    """Why these kernels cannot compute `problem` on any device; None when they can."""
    missing = _gluon_missing()
    if missing is not None:
        return missing
    if problem.dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 and bfloat16, not {problem.dtype}"
    dims = (problem.head_dim, problem.value_dim)
    if problem.head_dim not in HEAD_DIMS or (dims[0] != dims[1] and dims != (192, 128)):
        return f"head_dim must be one of {HEAD_DIMS} and value_dim the same (or 192 and 128), got {dims}"
    if problem.has_rpb:
        return "it has no relative positional bias"
    if problem.additional:
        return "it has no additional keys"
    if problem.scale <= 0.0:
        return f"it needs a positive scale, got {problem.scale}"
    if len({n.dilation for n in problem.neighborhoods}) > 1:
        return "it needs the same dilation for every head"
    if problem.batch == 0:
        return "the batch is empty"
    if prod(problem.lengths) * problem.heads * problem.head_dim >= 2**31:
        return "a batch element has 2**31 or more query elements"
    return None


# --- launchers ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _forward_launchers(
    problem: Problem, config: TileConfig, strides: tuple[tuple[int, ...], ...]
) -> tuple[Launcher, ...]:
    programs = _multiprocessors(problem.device) if "p" in config.variant else None
    return tuple(forward_launcher(problem, config, strides, launch, programs) for launch in launches(problem))


def forward_launcher(
    problem: Problem,
    config: TileConfig,
    strides: tuple[tuple[int, ...], ...],
    launch: Launch,
    programs: int | None = None,
) -> Launcher:
    """The forward kernel's launcher for part of a problem; `programs` limits the grid (persistent programs)."""
    from vicinal.backends.hopper.kernels.forward import forward

    d, dv = problem.head_dim, problem.value_dim
    together = heads_together(config)
    t, n = three(config.query_tile, 1), three(config.key_tile, 1)
    x = (problem.batch, *problem.lengths)
    shapes = [(*x, problem.heads, d), (*x, problem.kv_heads, d), (*x, problem.kv_heads, dv), (*x, problem.heads, dv)]
    lse_shape = (*x, problem.heads, 1)
    q, k, v, o = (
        describe(problem, launch, shape, own) for shape, own in zip(shapes, (*strides, contiguous_strides(shapes[3])))
    )
    lse = describe(problem, launch, lse_shape, contiguous_strides(lse_shape))
    q_tile, o_tile = (1, *t, piece(d)), (1, *t, piece(dv))
    q_batch, o_batch = strides[0][0], contiguous_strides(shapes[3])[0]
    if together > 1:
        q, o = with_heads(q, shapes[0], strides[0]), with_heads(o, shapes[3], contiguous_strides(shapes[3]))
        q_tile, o_tile = (*t, together, piece(d)), (*t, together, piece(dv))
    paired = "c" in config.variant
    keys = prod(n) * (2 if paired else 1)
    wide = min(d, 64) if paired else piece(d)  # a chunk is loaded in columns of 128 bytes
    columns = (q.token_columns, k.token_columns, v.token_columns, o.token_columns)
    steps = ForwardStrides(*columns, q_batch, o_batch, token_strides(lse))
    constants = constants_of(problem, config, t, n)._replace(
        own_output=forward_shared(keys, d, dv, config.stages, True) <= SHARED_MEMORY,
        paired=paired,
        heads=together,
    )
    grid = grid_of(problem, launch, constants, problem.heads // together)
    return Launcher(
        forward,
        (
            Tile(q, q_tile),
            Tile(k, (1, *n, wide)),
            Tile(v, (1, *n, wide if paired else piece(dv))),
            Tile(o, o_tile),
            None,
            None,
        ),
        (0, 0, 0, 0, lse.offset, 0),
        (
            Scalars(axes_of(problem, launch), grid, steps, problem.scale * LOG2E),
            groups_of(launch),
            constants,
        ),
        (grid.items if programs is None else min(grid.items, programs),),
        options_of(constants.chained, num_warps=4, maxnreg=168),
    )


# --- devices -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _configs(problem: Problem, direction: Direction) -> list[TileConfig]:
    if direction == "forward":
        return forward_configs(problem)
    return backward_configs(problem)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def _gluon_missing() -> str | None:
    try:
        import vicinal.backends.hopper.kernels.forward  # noqa: F401
    except Exception as error:  # whatever a Triton without this Gluon raises
        return f"the installed Triton has no Gluon for Hopper: {error}"
    return None


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _on(device: torch.device) -> Any:
    """A context in which `device` is current; costs nothing where it already is."""
    if device.index is None or torch.cuda.current_device() == device.index:
        return _Nothing()
    return torch.cuda.device(device)


BACKEND = HopperBackend()
