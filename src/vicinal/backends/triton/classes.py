"""Classes of tiles: which ones a problem has, and the launch that lays out what their scores start from.

See `vicinal.backends.triton.kernels.starts`, and for keys that are there under a mask `.kept`.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vicinal.backends.gpu.arguments import axes_of
from vicinal.backends.gpu.devices import chains
from vicinal.backends.gpu.kernels.window import Flags
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.run import Run
from vicinal.backends.gpu.strides import empty
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.estimate import Kernel
from vicinal.backends.triton.kernels.kept import kept_kernel
from vicinal.backends.triton.kernels.starts import ALONG, Classes, masks_kernel, starts_kernel
from vicinal.backends.triton.launch import MAX_EXTENT, Prepared, tiles_of
from vicinal.geometry.count import widest
from vicinal.geometry.maps import Maps
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import alike
from vicinal.geometry.window import SHIFT, left_reach, mode
from vicinal.problem import Problem

LEAST_SCALE = 1e-30  # scores start from biases over it: below, these may leave float32
MAX_BYTES = 2**26  # of start tiles: about what caches hold
MAX_STEPS = 640  # tokens of a tile's steps where neither a bias nor, forward, masks are what scores start from
# Kernel, head dim at least, bytes per element where scores start from masks if there is no bias. On an H200, against
# start tiles: 7% less time forward at head dim 64, 8% less backward at 32; forward at 32 up to 1% more. The query
# gradient at 64: 4 to 10% less than the general kernel, which start tiles did not beat. Else not timed.
MASKED: set[tuple[Kernel, int, int]] = {("forward", 64, 2), ("query", 64, 2), ("query", 32, 2), ("key_value", 32, 2)}
MAX_BOX = 2**11  # tokens; and as many as `MAX_EXTENT` along an axis: kernels divide by products, in 32 bits
LEAST_TILES = 4  # computed per start tile: fewer do not repay laying it out
ENOUGH_PROGRAMS = 2**12  # of the forward pass: they fill a GPU, with a warp each
MOST_TURNS = 16
# By rank, steps from which on scores a step ahead pay, 64 queries by 64 keys. An H200: on two axes 4 steps take 4% more
# time, 6 to 8 the same, 9 and more up to 4% less; on three axes 6 steps 4% less, 9 10% less.
MANY_STEPS = {2: 9, 3: 6}
# On three axes two heads one after the other: an H200, up to 9 steps 4% less time, 15 steps 2% more; on two axes more.
TURNS_OF_HEADS, STEPS_OF_HEADS = 2, 9
FEW_STEPS = (
    5  # an H200: of 2 steps 10% less time with several batch entries a program, of 5 steps 6%, of 8 steps 13% more
)


class Starts(NamedTuple):
    """What the scores of one kernel start from: start tiles, or masks.

    Attributes:
        classes: what the kernel takes.
        masks: whether they are masks.
        launch: writes them.
        size: how many elements there are.
        dtype: of them.
        kept: the key by which they are kept from call to call, all that they are computed from; None where they depend
            on the bias table.
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
        kept = None if problem.has_rpb else ("triton starts", masks, arguments)
        return cls(classes, masks, launch, programs * rows * prod(config.step), dtype, kept)

    def __call__(self, run: Run, rpb: Tensor | None, beside: Tensor) -> Tensor:
        """The start tiles (of a contiguous bias table, where there is one) or masks, on the device of `beside`."""

        def make() -> Tensor:
            starts = empty(beside, (self.size,), self.dtype)
            run.launch(self.launch, *(() if self.masks else (rpb,)), starts)
            return starts

        return make() if self.kept is None else run.kept(self.kept, beside.device, make)


class Kept(NamedTuple):
    """The tokens that are there under a mask, of each tile of a kernel: `vicinal.backends.triton.kernels.kept`.

    Attributes:
        launch: lists them.
        size: of all lists, in 32-bit integers.
    """

    launch: Launch
    size: int

    @classmethod
    def of(cls, prepared: Prepared, config: Tiling, classes: Classes, inverse: bool = False) -> Kept | None:
        """None without a mask; `inverse`: tiles hold keys and walk queries."""
        problem = prepared.problem
        if not problem.has_key_mask:
            return None
        programs, step = tiles_of(problem, config, inverse), prod(config.step)
        axes, flags = prepared.arguments()[0], prepared.flags(config, inverse)
        arguments = (programs, classes.steps, axes, config.tile, config.step, flags, inverse)
        grid = (problem.batch * programs, 1, 1)
        # Most of what a warp does is the same in all of a program: two are faster than four, and than one.
        launch = Launch(kept_kernel, grid, arguments, options_of(2, 1, prepared.chained))
        return cls(launch, grid[0] * (2 + (classes.steps + 2) * step))

    def __call__(self, run: Run, states: Tensor) -> Tensor:
        """The lists, of a mask's bytes, or of `Answered`."""
        kept = empty(states, (self.size,), torch.int32)
        run.launch(self.launch, states, kept)
        return kept


@lru_cache(maxsize=256)
def starts_of_maps(neighborhood: Neighborhood, config: Tiling, kernel: Kernel, device: torch.device) -> Starts:
    """Of the tiles of packed maps: the same for maps of any size."""
    inverse, chained = kernel == "key_value", chains(device)
    classes = classes_of_maps(neighborhood, config, inverse)
    assert classes is not None, "tilings of classes are for maps that have them"
    tiles, step = prod(classes.counts), prod(config.step)
    axes = axes_of(neighborhood, tuple(a.window or 1 for a in neighborhood.axes))  # lengths are a map's
    flags = Flags(False, False, False, False, False, chained, packed=True)
    arguments = (tiles, classes, axes, config.tile, config.step, flags, inverse)
    launch = Launch(masks_kernel, (tiles * classes.steps, 1, 1), arguments, options_of(4, 1, chained))
    kept = ("triton masks of maps", arguments)
    return Starts(classes, True, launch, tiles * classes.steps * ALONG.value * step, _mask_dtype(), kept)


@lru_cache(maxsize=256)
def maps_may_have_classes(maps: Maps, typical: Problem) -> bool:
    """Whether tiles of packed maps are alike away from borders: windows shift with every query, the same in all."""
    every = {n for own, n in zip(maps.lengths, maps.neighborhoods) if prod(own)}
    if len(every) > 1 or typical.dtype.itemsize > 2 or not 0.0 < typical.scale < float("inf"):
        return False
    return all(a.stride == a.dilation == 1 and mode(a) == SHIFT for n in every for a in n.axes)


def classes_of_maps(neighborhood: Neighborhood, config: Tiling, inverse: bool) -> Classes | None:
    """The classes of the tiles of maps that may have them; None where there are too many, or too many tokens in a box.

    Along an axis by how far a tile is from its start, and how many tokens from the tile's first one on there are.
    """
    before, after, box = [], [], 1
    for axis, tile in zip(neighborhood.axes, config.tile):
        assert axis.window is not None
        least, needed = _places(axis, axis.window, tile, inverse)
        before.append(-(-max(least, axis.window - 1) // tile))  # so that a window fits before what follows, too
        after.append(needed)
        extent = tile - 1 + axis.window + (axis.window - 1) * inverse  # inverse: a map that ends on both sides
        box *= extent
        if extent > MAX_EXTENT or box > MAX_BOX:
            return None
    counts = tuple((first + 1) * last for first, last in zip(before, after))
    steps, step = -(-box // prod(config.step)), prod(config.step)
    if sum(config.tile) > ALONG.value or 2 * prod(counts) * steps * step * ALONG.value > MAX_BYTES:
        return None
    return Classes(tuple(before), tuple(after), counts, steps, 0)


def _mask_dtype() -> torch.dtype:
    """bfloat16, whose largest numbers' product is infinite in float32; the interpreter cannot multiply it."""
    return torch.bfloat16 if isinstance(masks_kernel, triton.JITFunction) else torch.float32


@lru_cache(maxsize=1024)
def may_have_classes(problem: Problem) -> bool:
    """Whether tiles away from borders are alike: windows move with every query, and all are the same.

    Of whole axes, and with a positive scale; of circles without dilation and biases. No box has fewer tokens than a
    window that shifts: with large ones nothing more is asked. Under a key mask where scores start from masks.
    """
    if problem.per_head or problem.has_window_sizes or not LEAST_SCALE <= problem.scale < float("inf"):
        return False
    axes, keys = problem.neighborhood.axes, 1
    if problem.has_key_mask and (problem.has_rpb or problem.is_part):
        return False
    if problem.is_part and (not problem.goes_around or problem.has_rpb or any(a.dilation > 1 for a in axes)):
        return False
    for a in axes:
        if a.stride > 1 or (a.span is not None and not a.span.circle):
            return False
        keys *= a.window if a.window is not None and mode(a) == SHIFT else 1
    return keys <= MAX_BOX


def have_classes(problem: Problem, config: Tiling, kernel: Kernel) -> bool:
    """Whether a tiling's tiles are of so few classes that laying out what scores start from repays."""
    if not may_have_classes(problem) or config.unfolded is not None or problem.batch % config.abreast:
        return False
    if problem.has_key_mask and (config.abreast > 1 or not are_masks(problem, config, kernel)):
        return False
    inverse = kernel == "key_value"
    tiles = prod(_borders(problem.neighborhood.axes, problem.lengths, config.tile, inverse)[2])
    if problem.batch * tiles_of(problem, config, inverse) < LEAST_TILES * tiles:
        return False
    classes = classes_of(problem, config.tile, config.step, inverse)
    large = problem.has_rpb or (kernel == "forward" and are_masks(problem, config, kernel))
    if classes is None or classes.steps * prod(config.step) > (MAX_BOX if large else MAX_STEPS):
        return False
    heads = problem.heads if problem.has_rpb else 1
    return 4 * heads * tiles * classes.steps * prod(config.tile) * prod(config.step) <= MAX_BYTES


def are_masks(problem: Problem, config: Tiling, kernel: Kernel) -> bool:
    """Whether the scores of a kernel of classes start from masks, not from start tiles."""
    widest = 32 if max(problem.head_dim, problem.value_dim) <= 32 else 64
    if problem.has_rpb or problem.is_part or problem.goes_around or sum(config.tile) > ALONG.value:
        return False
    if problem.has_key_mask and problem.dtype.itemsize == 2:
        return True
    return (kernel, widest, problem.dtype.itemsize) in MASKED


def classes_of(problem: Problem, tile: tuple[int, ...], step: tuple[int, ...], inverse: bool) -> Classes | None:
    """The classes of the tiles of a problem that may have them; None where a box has too many tokens."""
    axes, shape = problem.neighborhood.axes, (problem.lengths, tile, prod(step), inverse)
    return _classes(axes, *shape, problem.has_rpb, problem.has_key_mask)


@lru_cache(maxsize=4096)
def _classes(
    axes: tuple[Axis, ...],
    lengths: tuple[int, ...],
    tile: tuple[int, ...],
    step: int,
    inverse: bool,
    by_head: bool,
    masked: bool,
) -> Classes | None:
    box = 1
    for axis, length, size in zip(axes, lengths, tile):
        if axis.span is not None:  # around a circle
            extent = size - 1 + (axis.window or length)
        else:
            extent = widest(axis, length, size, inverse)
        box *= extent
        if extent > MAX_EXTENT or box > MAX_BOX:
            return None
    # Under a mask there are masks of no token, too: `kept_kernel`.
    return Classes(*_borders(axes, lengths, tile, inverse), -(-(box + masked) // step), int(by_head))


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


def turns_of(programs: int, most: int, classes: Classes) -> int:
    """What a program of the forward pass takes of `most` one after the other: several where its steps are few."""
    if classes.steps > FEW_STEPS or programs < 2 * ENOUGH_PROGRAMS:
        return 1
    turns = min(most, programs // ENOUGH_PROGRAMS, MOST_TURNS)
    return -(-most // -(-most // turns))


def is_ahead(classes: Classes, config: Tiling, masks: bool) -> bool:
    """Whether the forward pass computes scores a step ahead; `masks`: they start from masks, and no key is masked."""
    return masks and config.warps > 1 and classes.steps >= MANY_STEPS.get(len(config.tile), 9)


def takes_heads(problem: Problem, config: Tiling, programs: int, classes: Classes) -> bool:
    """Whether a program of the forward pass takes several heads, of a batch entry that is alone."""
    if problem.has_rpb or problem.has_key_mask or problem.additional or config.warps == 1:
        return False
    alone = problem.rank == 3 and problem.batch == 1 and problem.heads % TURNS_OF_HEADS == 0
    return alone and classes.steps <= STEPS_OF_HEADS and problem.heads * programs >= 2 * ENOUGH_PROGRAMS


def _at_borders(axis: Axis, length: int, tile: int, inverse: bool) -> tuple[int, int]:
    """How many tiles of a dilation group, its first and its last ones, may differ from those between.

    Between them the windows of all tokens move with the tile.
    """
    least, needed = _places(axis, length if axis.window is None else axis.window, tile, inverse)
    tiles = -(-length // tile)
    first = -(-least // tile)
    last = tiles - ((length - needed) // tile + 1) if length >= needed else tiles
    return min(first, tiles), max(0, last)


def _places(axis: Axis, window: int, tile: int, inverse: bool) -> tuple[int, int]:
    """Where a tile between begins at least, and how many tokens there are from there to the end, at least."""
    reach = left_reach(axis)  # of a query's window before it; of a key's queries, the last one comes as far after it
    return window if inverse else reach, tile + window if inverse else max(tile, tile - 1 - reach + window)
