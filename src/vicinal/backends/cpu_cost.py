"""Which tiling: a count of scores, copied bytes and calls, weighed with what they cost on one core.

The weights were measured on one core of an AMD EPYC (Zen 4) at float32; only their ratios matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import ceil, prod
from statistics import mode

from vicinal.backends.cpu_plan import (
    VECTOR,
    InnerAxis,
    StripKey,
    inner_axis,
    row_multiple,
    shares,
    widened,
)
from vicinal.backends.protocol import Direction
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import Interval, key_interval, tiles

SIZES = {
    1: (8, 16, 32, 48, 64, 96, 128, 192, 256, 512),
    2: (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    3: (1, 2, 3, 4, 6, 8, 16),
}
CHUNK_BYTES = 4 << 20  # of strips at a time: they should stay in the last-level cache
MASK_BYTES = 4 << 20  # of masks that differ from tile to tile
MASK_PAIRS = 1 << 22  # of one masked tile
CALL_NS, COPY_NS = 20e3, 8e3  # before anything is computed or copied; twice that with several threads
APART_NS = 1e6  # threads that take chunks of their own wake, while torch's still spin after an operation before
IN_STEP_NS = 400e3  # at most lost while they wait for each other's Python
SHARED = 0.8  # what torch's threads achieve of their number in one operation


@dataclass(frozen=True)
class Shape:
    """What a choice is made for: one set of heads with one neighborhood; `itemsize` in bytes."""

    batch: int
    lengths: tuple[int, ...]
    kv_heads: int
    group: int
    width: int
    neighborhood: Neighborhood
    has_rpb: bool
    itemsize: int
    threads: int


@dataclass(frozen=True)
class Choice:
    """A way to run a shape.

    Attributes:
        cost: estimated time in nanoseconds.
        slabs: whether by slabs, not strips.
        apart: whether threads take chunks of their own.
        box: the largest box of keys of a query tile.
    """

    cost: float
    key: StripKey
    slabs: bool
    apart: bool
    box: tuple[int, ...]


@lru_cache(maxsize=1024)
def choices(shape: Shape, direction: Direction) -> tuple[Choice, ...]:
    """All ways considered, the cheapest first."""
    rank = len(shape.lengths)
    first = [shares(a, n)[0].length for a, n in zip(shape.neighborhood.axes, shape.lengths)]
    sizes = [_sizes(a, n, rank) for a, n in zip(shape.neighborhood.axes, first)]
    found = [
        choice
        for tile in product(*sizes)
        for row_axis in range(rank)
        for slabs in (False, True)
        if (choice := _choice(shape, direction, tile, row_axis, slabs)) is not None
    ]
    return tuple(sorted(found, key=lambda c: (c.cost, -c.key.row_axis)))  # rows of the last axis are close together


def choose(shape: Shape, direction: Direction, tile: tuple[int, ...], row_axis: int, slabs: bool) -> Choice:
    """The choice with that tile, whatever it costs."""
    choice = _choice(shape, direction, tile, row_axis, slabs)
    if choice is None:
        raise ValueError(f"the CPU backend cannot run tile {tile}, row axis {row_axis}, slabs {slabs}")
    return choice


def _sizes(axis: Axis, length: int, rank: int) -> list[int]:
    """Tile sizes to consider: such that the tiles of an axis are about equal, and multiples of the stride.

    Of one axis also such that the box of keys is a multiple of 16, which the matrix products like.
    """
    sizes = {ceil(length / ceil(length / size)) for size in SIZES[rank]}
    if axis.stride > 1:
        sizes |= {axis.stride * n for n in (1, 2, 4, 8)}
    elif rank == 1 and axis.window is not None:
        sizes |= {n + (1 - n - axis.window) % 16 for n in SIZES[rank]}
    return sorted({n for n in sizes if n <= length} | {length})


def _choice(shape: Shape, direction: Direction, tile: tuple[int, ...], row_axis: int, slabs: bool) -> Choice | None:
    """The cheaper of torch's threads in every operation and threads that take chunks of their own."""
    ways = [_way(shape, direction, tile, row_axis, slabs, apart) for apart in (False, True)]
    return min((way for way in ways if way is not None), key=lambda c: c.cost, default=None)


def _way(
    shape: Shape, direction: Direction, tile: tuple[int, ...], row_axis: int, slabs: bool, apart: bool
) -> Choice | None:
    if apart and (shape.threads == 1 or (shape.has_rpb and direction == "backward")):
        return None  # chunks of one head share the gradient of its bias
    order = (row_axis, *(a for a in range(len(tile)) if a != row_axis))
    axes = [shape.neighborhood.axes[a] for a in order]
    sorts = [shares(a, shape.lengths[o]) for a, o in zip(axes, order)]
    lengths = [s[0].length for s in sorts]
    groups = prod(sum(s.groups for s in sort) for sort in sorts)
    rows, keys, usual, runs, row_tiles = _row_work(axes[0], lengths[0], min(tile[row_axis], lengths[0]))
    inner = [inner_axis(a, n, min(tile[o], n)) for a, n, o in zip(axes[1:], lengths[1:], order[1:])]
    if slabs and (
        row_axis != 0
        or shape.group > 1
        or shape.has_rpb
        or any(a.dilation > 1 for a in axes)
        or any(len(a.tiles) > 1 for a in inner)
    ):
        return None
    inner_tiles = prod(len(a.tiles) for a in inner)
    slots, box = prod(a.size for a in inner), prod(a.box for a in inner)
    queries, columns = shape.group * rows * slots, keys * box
    masked = not all(_is_full(a, n) for a, n in zip(axes, lengths))
    if masked and queries * columns > MASK_PAIRS:
        return None

    units = shape.kv_heads * max(shape.batch, 1) * groups
    scores = units * inner_tiles * row_tiles * queries * columns
    unit_bytes = groups * inner_tiles * lengths[0] * box * shape.width * 2 * shape.itemsize
    first_tiles = len(inner[0].tiles) if inner else 1
    least = shape.threads if apart else 1
    chunk, most_tiles = _chunk(shape, unit_bytes, first_tiles, least)
    cuts = ceil(first_tiles / most_tiles)
    in_chunk = chunk[0] * chunk[1] * groups * inner_tiles // cuts
    split = inner_tiles > 1 and in_chunk * queries * columns * runs * shape.itemsize > MASK_BYTES
    parts = prod(len(s) for s in sorts)
    chunks = parts * (shape.kv_heads // chunk[0]) * max(1, max(shape.batch, 1) // chunk[1]) * cuts
    patterns = prod(_patterns(a) for a in inner) if split else 1

    strips = units * inner_tiles * lengths[0] * box * shape.width
    tokens = units * shape.group * lengths[0] * inner_tiles * slots * shape.width
    pieces = prod(_pieces(a) for a in inner)
    narrow = shape.width / queries
    width = shape.width * ceil(queries / 8) * 8 / queries
    tail_ns = 40 / columns + 5 * (widened(usual, row_multiple(box)) * box % VECTOR) / columns
    if direction == "forward":
        score_ns = 0.7 + 0.044 * width * (1 + 1.26 * narrow**1.5 / queries**1.5) + tail_ns
        score_ns += 0.1 * narrow  # keys and values are packed for the products of every tile
        copied_ns, calls, copies = 1.0 * strips + 2.4 * tokens, runs, 2 * pieces + 3 * runs
    else:
        score_ns = 1.0 + 0.106 * width * (1 + 0.033 * narrow**2) + tail_ns
        copied_ns = 2.0 * strips + 10 * tokens + 0.8 * units * inner_tiles * row_tiles * columns * shape.width
        calls, copies = 4 * row_tiles, 6 * pieces + 6 * runs
    if slabs:
        calls, copies, copied_ns = row_tiles, 2 * row_tiles, 2.0 * tokens
        if direction == "backward":
            score_ns *= 1.05  # rows of the gradients are far apart
            copied_ns = 6.0 * tokens + 0.8 * units * row_tiles * columns * shape.width
        if row_tiles == 1:
            copies, copied_ns = (3, 2.0 * tokens) if apart else (0, 0.0)
    computed_ns, started_ns = scores * score_ns + copied_ns, chunks * patterns * (CALL_NS * calls + COPY_NS * copies)
    if apart:
        tasks = shape.kv_heads if slabs else chunks * patterns if direction == "forward" else chunks // cuts
        if tasks < shape.threads:
            return None
        share = ceil(tasks / shape.threads) / tasks  # of the busiest thread
        # Python runs on one thread at a time, and threads begin in step.
        cost = (computed_ns + started_ns) * share + min(2 * started_ns, IN_STEP_NS) + APART_NS
    elif shape.threads == 1:
        cost = computed_ns + started_ns
    else:
        busy = min(shape.threads, max(1, in_chunk if not slabs else units))
        cost = computed_ns / max(1.0, SHARED * busy) + 2 * started_ns
    key = StripKey(
        shape.batch, shape.lengths, shape.kv_heads, shape.group, shape.width, shape.neighborhood, tile, row_axis,
        chunk, most_tiles, split,
    )  # fmt: skip
    largest = max(high - low for low, high in _boxes(axes[0], lengths[0], min(tile[row_axis], lengths[0])))
    boxes = dict(zip(order, (largest, *(a.box for a in inner))))
    return Choice(cost, key, slabs, apart, tuple(boxes[a] for a in range(len(tile))))


def _chunk(shape: Shape, unit_bytes: int, first_tiles: int, least: int) -> tuple[tuple[int, int], int]:
    """Key heads and batch elements per chunk, and tiles of the first inner axis: about `CHUNK_BYTES` of strips.

    Heads are next to each other in memory, so they stay together if they can. Heads and batch elements are divisors:
    all chunks are alike. There are at least `least` chunks of heads and batch elements, if there are so many of these.
    """
    batch = max(shape.batch, 1)
    most = max(1, shape.kv_heads * batch // least)  # heads times batch elements
    units = max(1, first_tiles * CHUNK_BYTES // max(unit_bytes, 1))  # one tile of the first inner axis each
    heads = 1 if shape.has_rpb else _divisor(shape.kv_heads, min(units, most))
    cuts = ceil(first_tiles / min(first_tiles, units // heads))
    elements = _divisor(batch, min(units // (heads * first_tiles), most // heads)) if cuts == 1 else 1
    return (heads, elements), ceil(first_tiles / cuts)


def _divisor(number: int, most: int) -> int:
    return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(most, 1))


@lru_cache(maxsize=1024)
def _boxes(axis: Axis, length: int, size: int) -> list[Interval]:
    return [key_interval(axis, length, tile) for tile in tiles(length, size)]


@lru_cache(maxsize=4096)
def _row_work(axis: Axis, length: int, size: int) -> tuple[float, float, int, int, int]:
    """Of the row axis: mean rows and keys of a tile, its usual keys, runs of tiles that look alike, tiles."""
    boxes = zip(tiles(length, size), _boxes(axis, length, size))
    looks = [(stop - start, low - start, high - low) for (start, stop), (low, high) in boxes]
    runs = 1 + sum(a != b for a, b in pairwise(looks))
    mean = sum(n * keys for n, _, keys in looks) / length
    return length / len(looks), mean, mode(keys for _, _, keys in looks), runs, len(looks)


@lru_cache(maxsize=4096)
def _is_full(axis: Axis, length: int) -> bool:
    return not axis.causal and axis.window == length and axis.boundary == "shift"


def _patterns(axis: InnerAxis) -> int:
    looks = [t.looks for t in axis.tiles]
    return 1 + sum(a != b for a, b in pairwise(looks))


def _pieces(axis: InnerAxis) -> int:
    return min(3, len(axis.tiles))
