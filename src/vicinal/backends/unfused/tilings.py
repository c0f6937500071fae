"""How the Triton kernels of the unfused operators are tiled and launched."""

from __future__ import annotations

from math import ceil, prod
from typing import NamedTuple

import torch

from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.slots import Slots
from vicinal.geometry.unfold import beside, can_unfold, tile_count

MOST = 2**31 - 1  # programs, slots, relative positions
TILES = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}  # of the GEMM kernels: 64 tokens, as in the paper (section 3.1)


class Schedule(NamedTuple):
    """How a kernel is launched: warps, pipeline stages, and the slots that a naive kernel takes at a time."""

    warps: int
    stages: int
    slots: int = 0


def schedule(variant: str, kernel: str, dim: int, dtype: torch.dtype) -> Schedule:
    """The best of benchmarks/unfused_tilings.py on an H200; beyond 128 dims what any GPU's shared memory holds."""
    if variant == "naive":
        return Schedule(warps=1, stages=3, slots=min(max(1024 // block_of(dim, 1), 16), 64))
    if dtype == torch.float32 or dim > 128:
        return Schedule(warps=4, stages=1)
    return Schedule(warps=4, stages=3 if kernel == "pn" else 2)


def too_large(variant: str, slots: Slots, rows: int) -> str | None:
    """Why the kernels of a variant cannot count a problem of `rows` batch entries times heads; None when they can."""
    tile, unfolded = gemm_tile(slots.neighborhood, slots.lengths)
    programs = tile_count(slots.neighborhood, slots.lengths, tile, unfolded) if variant == "gemm" else slots.tokens
    if rows * programs > MOST or slots.count > MOST or prod(slots.bias_shape) > MOST:
        return f"{rows} batch entries and heads of {slots.tokens} tokens and {slots.count} slots are too many for a GPU"
    return None


def gemm_tile(neighborhood: Neighborhood, lengths: tuple[int, ...]) -> tuple[tuple[int, ...], int | None]:
    """The GEMM kernels' tile, and the axis that it sees as two (`vicinal.geometry.unfold`), if any.

    Where a dilation group is shorter than the tile, the tile holds several: 64 tokens all the same.
    """
    tile = TILES[neighborhood.rank]
    longest = [ceil(n / axis.dilation) for n, axis in zip(lengths, neighborhood.axes)]
    fitting = tuple(min(size, 1 << (n - 1).bit_length()) for size, n in zip(tile, longest))
    axis = max(range(neighborhood.rank), key=lambda a: neighborhood.axes[a].dilation)
    if fitting == tile or not can_unfold(neighborhood, axis):
        return tile, None
    return beside(fitting, axis, prod(tile) // prod(fitting)), axis


def block_of(dim: int, least: int) -> int:
    """Columns at a time: a power of two, at most 128."""
    return min(max(1 << (dim - 1).bit_length(), least), 128)
