"""Classes of tiles: which ones a problem has, and the launch that lays out what their scores start from.

See `vicinal.backends.triton.kernels.starts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import torch
import triton
from torch import Tensor

from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.tables import kept_of
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.estimate import Kernel
from vicinal.backends.triton.kernels.starts import ALONG, Classes, masks_kernel, starts_kernel
from vicinal.backends.triton.launch import MAX_EXTENT, Prepared, like, stand_in, tiles_of
from vicinal.compiling import Job
from vicinal.geometry.count import count
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import alike
from vicinal.geometry.window import SHIFT, left_reach, mode
from vicinal.problem import Problem

MAX_BYTES = 2**26  # of start tiles: about what caches hold
MAX_STEPS_OF_MASKS = 640  # tokens of a tile's steps without a bias: with larger windows most steps need no mask
# Kernel, head dim at least, bytes per element where scores start from masks if there is no bias. On an H200, against
# start tiles: 7% less time forward at head dim 64, 8% less backward at 32; forward at 32 up to 1% more; else not timed.
MASKED: set[tuple[Kernel, int, int]] = {("forward", 64, 2), ("query", 32, 2), ("key_value", 32, 2)}
MAX_BOX = 2**11  # tokens; and as many as `MAX_EXTENT` along an axis: kernels divide by products, in 32 bits
LEAST_TILES = 4  # computed per start tile: fewer do not repay laying it out
ENOUGH_PROGRAMS = 2**12  # of the forward pass: they fill a GPU, with a warp each
MOST_TURNS = 16
FEW_STEPS = (
    5  # an H200: of 2 steps 10% less time with several batch entries a program, of 5 steps 6%, of 8 steps 13% more
)


@dataclass(frozen=True)
class Starts:
    """What the scores of one kernel start from: start tiles, or masks.

    Attributes:
        classes: what the kernel takes.
        masks: whether they are masks.
        launch: writes them.
        size: how many elements there are.
        dtype: of them.
        kept: the key by which they are kept from call to call; None where they depend on the bias table.
    """

    classes: Classes
    masks: bool
    launch: Launch
    size: int
    dtype: torch.dtype
    kept: tuple[object, ...] | None

    @classmethod
    def of(cls, prepared: Prepared, config: Tiling, kernel: Kernel) -> Starts:
        """Of the tiles of a kernel."""
        problem, inverse = prepared.problem, kernel == "key_value"
        classes = classes_of(problem, config.tile, config.step, inverse)
        assert classes is not None, "tilings of classes are for problems that have them"
        axes, flags, shape = prepared.arguments()[0], prepared.flags(config, inverse), (config.tile, config.step)
        tiles, options = prod(classes.counts), options_of(4, 1, prepared.chained)
        programs = (problem.heads if problem.has_rpb else 1) * tiles * classes.steps
        masks = are_masks(problem, config, kernel)
        arguments: tuple[Any, ...]
        if masks:
            writer, rows, dtype = masks_kernel, ALONG.value, _mask_dtype()
            arguments = tiles, classes, axes, *shape, flags, inverse
        else:
            writer, rows, dtype = starts_kernel, prod(config.tile), torch.float32
            arguments = tiles, 1.0 / problem.scale, classes, axes, *shape, config.warps, flags, inverse
        launch = Launch(writer, (programs, 1, 1), arguments, options)
        kept = None
        if not problem.has_rpb:
            kept = ("triton starts", masks, problem.neighborhood, problem.lengths, config, inverse)
        return cls(classes, masks, launch, programs * rows * prod(config.step), dtype, kept)

    def __call__(self, rpb: Tensor | None, beside: Tensor, aligned: bool) -> Tensor:
        """The start tiles (of a contiguous bias table, where there is one) or masks, on the device of `beside`."""

        def make() -> Tensor:
            starts = beside.new_empty(self.size, dtype=self.dtype)
            self.launch((starts,) if self.masks else (rpb, starts), aligned)
            return starts

        if self.kept is None:
            return make()
        return kept_of(self.kept, beside.device, make)

    def kernel(self, rpb: Tensor | None) -> Job:
        """What compiles the kernel that lays them out."""
        starts = stand_in(self.dtype)
        return partial(self.launch.compile, (starts,) if self.masks else (like(rpb), starts))


def _mask_dtype() -> torch.dtype:
    """bfloat16, whose largest numbers' product is infinite in float32; the interpreter cannot multiply it."""
    return torch.bfloat16 if isinstance(masks_kernel, triton.JITFunction) else torch.float32


@lru_cache(maxsize=1024)
def may_have_classes(problem: Problem) -> bool:
    """Whether tiles away from borders are alike: windows move with every query, and all are the same.

    Of whole axes without masked keys, and with a positive scale; of circles without dilation and biases. No box has
    fewer tokens than a window that shifts: with large ones nothing more is asked.
    """
    if problem.per_head or problem.has_key_mask or problem.has_window_sizes or not 0.0 < problem.scale < float("inf"):
        return False
    axes, keys = problem.neighborhood.axes, 1
    if problem.is_part and (not problem.goes_around or problem.has_rpb or any(a.dilation > 1 for a in axes)):
        return False
    for a in axes:
        if a.stride > 1 or (a.span is not None and not a.span.circle):
            return False
        keys *= a.window if a.window is not None and mode(a) == SHIFT else 1
    return keys <= (MAX_BOX if problem.has_rpb else MAX_STEPS_OF_MASKS)


def have_classes(problem: Problem, config: Tiling, inverse: bool = False) -> bool:
    """Whether a tiling's tiles are of so few classes that laying out what scores start from repays."""
    if not may_have_classes(problem) or config.unfolded is not None:
        return False
    tiles = prod(_borders(problem.neighborhood.axes, problem.lengths, config.tile, inverse)[2])
    if problem.batch * tiles_of(problem, config, inverse) < LEAST_TILES * tiles:
        return False
    classes = classes_of(problem, config.tile, config.step, inverse)
    if classes is None or (not problem.has_rpb and classes.steps * prod(config.step) > MAX_STEPS_OF_MASKS):
        return False
    heads = problem.heads if problem.has_rpb else 1
    return 4 * heads * tiles * classes.steps * prod(config.tile) * prod(config.step) <= MAX_BYTES


def are_masks(problem: Problem, config: Tiling, kernel: Kernel) -> bool:
    """Whether the scores of a kernel of classes start from masks, not from start tiles."""
    widest = 32 if max(problem.head_dim, problem.value_dim) <= 32 else 64
    plain = not (problem.has_rpb or problem.is_part or problem.goes_around)
    return plain and (kernel, widest, problem.dtype.itemsize) in MASKED and sum(config.tile) <= ALONG.value


def classes_of(problem: Problem, tile: tuple[int, ...], step: tuple[int, ...], inverse: bool) -> Classes | None:
    """The classes of the tiles of a problem that may have them; None where a box has too many tokens."""
    return _classes(problem.neighborhood.axes, problem.lengths, tile, prod(step), inverse, problem.has_rpb)


@lru_cache(maxsize=4096)
def _classes(
    axes: tuple[Axis, ...], lengths: tuple[int, ...], tile: tuple[int, ...], step: int, inverse: bool, by_head: bool
) -> Classes | None:
    box = 1
    for axis, length, size in zip(axes, lengths, tile):
        if axis.span is not None:  # around a circle
            extent = size - 1 + (axis.window or length)
        else:
            extent = count(axis, length, size, 1, inverse).longest
        box *= extent
        if extent > MAX_EXTENT or box > MAX_BOX:
            return None
    return Classes(*_borders(axes, lengths, tile, inverse), -(-box // step), int(by_head))


@lru_cache(maxsize=4096)
def _borders(
    axes: tuple[Axis, ...], lengths: tuple[int, ...], tile: tuple[int, ...], inverse: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Along each axis the first tiles that may differ from those between, the last ones, and how many classes."""
    before, after, counts = [], [], []
    for axis, length, size in zip(axes, lengths, tile):
        if axis.span is not None:  # around a circle all whole tiles are alike
            before.append(0)
            after.append(int(length % size > 0))
            counts.append(1 + after[-1])
            continue
        kinds = alike(axis, length)
        ends = [_at_borders(axis, kind.length, size, inverse) for kind in kinds]
        before.append(max(first for first, _ in ends))
        after.append(max(last for _, last in ends))
        counts.append((before[-1] + 1 + after[-1]) * len(kinds))
    return tuple(before), tuple(after), tuple(counts)


def turns_of(problem: Problem, config: Tiling, classes: Classes) -> int:
    """Batch entries that a program of the forward pass takes one after the other: several where its steps are few."""
    programs = problem.batch * problem.heads * tiles_of(problem, config)
    if classes.steps > FEW_STEPS or programs < 2 * ENOUGH_PROGRAMS:
        return 1
    turns = min(problem.batch, programs // ENOUGH_PROGRAMS, MOST_TURNS)
    return -(-problem.batch // -(-problem.batch // turns))


def _at_borders(axis: Axis, length: int, tile: int, inverse: bool) -> tuple[int, int]:
    """How many tiles of a dilation group, its first and its last ones, may differ from those between.

    Between them the windows of all tokens move with the tile.
    """
    window = length if axis.window is None else axis.window
    reach = left_reach(axis)  # of a query's window before it; of a key's queries, the last one comes as far after it
    tiles = -(-length // tile)
    least = window if inverse else reach  # where a tile may begin
    needed = tile + window if inverse else max(tile, tile - 1 - reach + window)  # from there to where the group may end
    first = -(-least // tile)
    last = tiles - ((length - needed) // tile + 1) if length >= needed else tiles
    return min(first, tiles), max(0, last)
