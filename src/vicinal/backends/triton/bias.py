"""Bias tiles: which classes of tiles a problem has, and the launch that lays a bias tile out for each.

See `vicinal.backends.triton.kernels.bias`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.kernels.bias import Classes, bias_tiles_kernel
from vicinal.backends.triton.launch import Prepared, like, tiles_of
from vicinal.compiling import Job
from vicinal.geometry.count import count
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import alike
from vicinal.geometry.window import left_reach
from vicinal.problem import Problem

MAX_BYTES = 2**26  # of bias tiles: about what caches hold
# Of one head's, where inputs have 16 bits: steps are so short then that only tiles in the L1 cache repay (an H200:
# 16 KiB a head 1.7 times faster than gathering, 200 KiB 1.4 times slower; in float32 faster at any size).
MAX_BYTES_OF_A_HEAD = 2**16
LEAST_TILES = 4  # computed per bias tile: fewer do not repay laying it out


@dataclass(frozen=True)
class BiasTiles:
    """The bias tiles of one kernel.

    Attributes:
        classes: what the kernel takes.
        launch: writes them.
        size: how many elements there are.
    """

    classes: Classes
    launch: Launch
    size: int

    @classmethod
    def of(cls, prepared: Prepared, config: Tiling, inverse: bool = False) -> BiasTiles | None:
        """None where scores take their biases from the table; `inverse`: tiles hold keys."""
        problem = prepared.problem
        classes = classes_of(problem, config, inverse) if problem.has_rpb else None
        if classes is None:
            return None
        tiles = prod(classes.counts)
        programs = problem.heads * tiles * classes.steps
        size = programs * prod(config.tile) * prod(config.step)
        most = MAX_BYTES if problem.dtype.itemsize > 2 else min(MAX_BYTES, problem.heads * MAX_BYTES_OF_A_HEAD)
        if 4 * size > most or problem.batch * tiles_of(problem, config) < LEAST_TILES * tiles:
            return None
        axes = prepared.arguments()[0]
        flags = prepared.flags(config, inverse)
        arguments = (tiles, classes, axes, config.tile, config.step, flags, inverse)
        launch = Launch(bias_tiles_kernel, (programs, 1, 1), arguments, options_of(4, 1, prepared.chained))
        return cls(classes, launch, size)

    def __call__(self, rpb: Tensor, aligned: bool) -> Tensor:
        """The bias tiles of a contiguous table."""
        tiles = rpb.new_empty(self.size, dtype=torch.float32)
        self.launch((rpb, tiles), aligned)
        return tiles

    def kernel(self, rpb: Tensor | None) -> Job:
        """What compiles the kernel that lays them out."""
        return partial(self.launch.compile, (like(rpb), like(rpb, torch.float32)))


def classes_of(problem: Problem, config: Tiling, inverse: bool) -> Classes | None:
    """The classes of a problem's tiles; None where tiles away from borders are not alike.

    They are where windows move with every query and all have the same, of whole axes without masked keys.
    """
    if problem.per_head or config.unfolded is not None or problem.has_key_mask or problem.has_window_sizes:
        return None
    if any(a.stride > 1 or a.span is not None for a in problem.neighborhood.axes):
        return None
    before, after, counts, steps = [], [], [], 1
    for axis, length, tile, step in zip(problem.neighborhood.axes, problem.lengths, config.tile, config.step):
        kinds = alike(axis, length)
        ends = [_at_borders(axis, kind.length, tile, step, inverse) for kind in kinds]
        before.append(max(first for first, _ in ends))
        after.append(max(last for _, last in ends))
        counts.append((before[-1] + 1 + after[-1]) * len(kinds))
        steps *= count(axis, length, tile, step, inverse).longest
    return Classes(tuple(before), tuple(after), tuple(counts), steps)


def _at_borders(axis: Axis, length: int, tile: int, step: int, inverse: bool) -> tuple[int, int]:
    """How many tiles of a dilation group, its first and its last ones, may differ from those between.

    Between them the windows of all tokens, and the tiles laid over their box, move with the tile.
    """
    window = length if axis.window is None else axis.window
    reach = left_reach(axis)  # of a query's window before it; of a key's queries, the last one comes as far after it
    tiles = -(-length // tile)
    walked = -(-(window + tile - 1) // step) * step
    least = window if inverse else reach  # where a tile may begin
    start = reach - window + 1 if inverse else -reach  # of its box, from there
    # of the tile's end, the last window's and the box's, the furthest from where the tile begins
    needed = max(tile, tile + window if inverse else tile - 1 - reach + window, start + walked)
    first = -(-least // tile)
    last = tiles - ((length - needed) // tile + 1) if length >= needed else tiles
    return min(first, tiles), max(0, last)
