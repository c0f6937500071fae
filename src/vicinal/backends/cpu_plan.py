"""Plans of the CPU backend: tiles, runs of equal tiles, and the copies between tokens and strips. Integers only.

One axis is the row axis. Along the others (the inner axes) a query tile's box of keys is copied out for every inner
tile: a strip `[rows of the row axis, box of keys, head_dim]`. In a strip the keys of any interval of rows are
contiguous, so along the row axis tiles need no copy: their boxes are overlapping views.

Tensors are contiguous when they come here, so every copy is known in advance: sizes, strides and offsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import gcd, prod

from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import groups, key_interval, tiles
from vicinal.geometry.window import window_start, window_stop

VECTOR = 16  # float32s of a vector of 512 bits
Windows = tuple[tuple[int, int], ...]  # one interval of keys per query, from the first key of the box
Dim = tuple[int, int, int]  # size, stride on one side, stride on the other


@dataclass(frozen=True)
class Copy:
    """A copy between two buffers: the same sizes, other strides. `tokens` is the heads-last side."""

    size: tuple[int, ...]
    token_stride: tuple[int, ...]
    token_offset: int
    strip_stride: tuple[int, ...]
    strip_offset: int


@dataclass(frozen=True)
class Share:
    """The dilation groups of one axis that have the same length."""

    first: int
    groups: int
    length: int


@dataclass(frozen=True)
class Run:
    """Consecutive tiles of the row axis whose boxes and windows look alike, each `rows` further than the last."""

    first_query: int
    first_key: int
    tiles: int
    rows: int
    keys: int
    windows: Windows

    @property
    def shift(self) -> int:
        """The first key less the first query of a tile."""
        return self.first_key - self.first_query


@dataclass(frozen=True)
class InnerTile:
    """A tile of an inner axis; its box has the size that all tiles of the axis have."""

    first_query: int
    queries: int
    first_key: int
    windows: Windows

    @property
    def looks(self) -> tuple[int, Windows]:
        """What a mask or a bias of the tile depends on."""
        return self.first_key - self.first_query, self.windows


@dataclass(frozen=True)
class InnerAxis:
    """The tiles of an inner axis: `size` queries (the last tile is padded), `box` keys."""

    size: int
    box: int
    tiles: tuple[InnerTile, ...]


@lru_cache(maxsize=1024)
def shares(axis: Axis, length: int) -> tuple[Share, ...]:
    """The dilation groups of an axis by their length: at most two sorts."""
    found: list[Share] = []
    for group in groups(axis, length):
        if found and found[-1].length == group.length:
            found[-1] = Share(found[-1].first, found[-1].groups + 1, group.length)
        else:
            found.append(Share(group.offset, 1, group.length))
    return tuple(found)


@lru_cache(maxsize=1024)
def row_runs(axis: Axis, length: int, size: int, multiple: int = 1) -> tuple[Run, ...]:
    """The tiles of the row axis of one dilation group, alike ones together.

    Where boxes are masked anyway, they are widened to a multiple of `multiple` keys if few more keys do.
    """
    runs: list[Run] = []
    for start, stop in tiles(length, size):
        low, high = key_interval(axis, length, (start, stop))
        windows = _windows(axis, length, range(start, stop), low)
        keys = widened(high - low, multiple)
        if keys <= length and set(windows) != {(0, high - low)}:
            low = min(low, length - keys)
            high, windows = low + keys, _windows(axis, length, range(start, stop), low)
        new = Run(start, low, 1, stop - start, high - low, windows)
        last = runs[-1] if runs else None
        if last and (last.keys, last.shift, last.windows) == (new.keys, new.shift, new.windows):
            runs[-1] = Run(last.first_query, last.first_key, last.tiles + 1, last.rows, last.keys, last.windows)
        else:
            runs.append(new)
    return tuple(runs)


def row_multiple(box: int) -> int:
    """How many rows of `box` keys make a multiple of `VECTOR`."""
    return VECTOR // gcd(VECTOR, box)


def widened(keys: int, multiple: int) -> int:
    """The next multiple, or `keys` itself where that is far: products like rows of whole vectors."""
    wide = keys + -keys % multiple
    return wide if wide - keys <= keys // 16 else keys


@lru_cache(maxsize=1024)
def inner_axis(axis: Axis, length: int, size: int) -> InnerAxis:
    """The tiles of an inner axis of one dilation group."""
    boxes = [(tile, key_interval(axis, length, tile)) for tile in tiles(length, size)]
    box = max(high - low for _, (low, high) in boxes)
    out = []
    for (start, stop), (low, _) in boxes:
        first = min(low, length - box)
        queries = [min(i, length - 1) for i in range(start, start + size)]
        out.append(InnerTile(start, stop - start, first, _windows(axis, length, queries, first)))
    return InnerAxis(size, box, tuple(out))


@dataclass(frozen=True)
class StripKey:
    """What a strip plan depends on. `tile` and `row_axis` are a choice, the rest is given.

    Attributes:
        group: query heads per key head.
        width: channels of query, key, value and output alike.
        chunk: key heads and batch elements treated at a time.
        most_tiles: tiles of the first inner axis treated at a time.
        split: whether inner tiles that look different are treated apart (their masks are then small).
    """

    batch: int
    lengths: tuple[int, ...]
    kv_heads: int
    group: int
    width: int
    neighborhood: Neighborhood
    tile: tuple[int, ...]
    row_axis: int
    chunk: tuple[int, int]
    most_tiles: int
    split: bool


@dataclass(frozen=True, eq=False)
class Work:
    """A run of row tiles for a group of inner tiles, and how its queries and results are copied.

    Attributes:
        size: queries per tile, all heads of a group.
        padded: whether some tile has fewer queries than `size`.
        tiles: copies of queries to `[batch, tiles, size, width]`.
        results: copies of outputs from `[batch, size, tiles, width]`, as torch's attention leaves them.
        lse_tiles, lse_results: the same for one number per query.
    """

    run: Run
    size: int
    padded: bool
    tiles: tuple[Copy, ...]
    results: tuple[Copy, ...]
    lse_tiles: tuple[Copy, ...]
    lse_results: tuple[Copy, ...]


@dataclass(frozen=True, eq=False)
class InnerGroup:
    """Inner tiles treated together, and how their keys are gathered: `[batch, rows, box, width]`.

    Attributes:
        axes: of every inner axis, the tiles of this group.
        gather: copies of the boxes; they overlap on the side of the tokens.
        scatter: the same from a chunk's keys, heads first, and such that within each copy no two boxes overlap.
    """

    axes: tuple[InnerAxis, ...]
    tiles: int
    box: int
    gather: tuple[Copy, ...]
    scatter: tuple[Copy, ...]
    works: tuple[Work, ...]

    @property
    def looks(self) -> tuple[tuple[tuple[int, Windows], ...], ...]:
        """What masks depend on: per inner axis its tiles' looks, once where they are all alike."""
        every = [tuple(t.looks for t in a.tiles) for a in self.axes]
        return tuple(looks[:1] if len(set(looks)) == 1 else looks for looks in every)


@dataclass(frozen=True)
class Part:
    """Dilation groups of equal lengths, one share per axis, the row axis first.

    Attributes:
        batch: the heads and batch elements of a chunk, times dilation groups.
        keys: copy of a chunk's keys, heads first: `[batch, tokens, width]`.
    """

    shares: tuple[Share, ...]
    order: tuple[int, ...]
    batch: int
    groups: tuple[InnerGroup, ...]
    keys: Copy

    @property
    def rows(self) -> int:
        return self.shares[0].length

    @property
    def tokens(self) -> int:
        return prod(s.length for s in self.shares)


@dataclass(frozen=True, eq=False)
class StripPlan:
    """All parts, and the offsets of every chunk into (queries, keys, log-sum-exp)."""

    key: StripKey
    parts: tuple[Part, ...]

    @cached_property
    def chunks(self) -> tuple[tuple[int, int, int, int], ...]:
        """Per chunk: its first key head, and its offset into queries, keys and log-sum-exp."""
        key = self.key
        heads, batch = key.chunk
        tokens = prod(key.lengths)
        out = []
        for h, b in product(range(0, key.kv_heads, heads), range(0, key.batch, batch)):
            query_head = (b * tokens * key.kv_heads + h) * key.group
            out.append((h, query_head * key.width, (b * tokens * key.kv_heads + h) * key.width, query_head))
        return tuple(out)

    @cached_property
    def heads_first(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes and strides of contiguous keys seen as `[B, H, N, width]`."""
        key, tokens = self.key, prod(self.key.lengths)
        row = key.kv_heads * key.width
        return (key.batch, key.kv_heads, tokens, key.width), (tokens * row, key.width, row, 1)

    @cached_property
    def full(self) -> bool:
        """Whether every window is the whole of its dilation group."""
        axes = self.key.neighborhood.axes
        return all(
            a.window == s.length and not a.causal and a.boundary == "shift"
            for part in self.parts
            for a, s in zip((axes[i] for i in part.order), part.shares)
        )


@lru_cache(maxsize=128)
def strip_plan(key: StripKey) -> StripPlan:
    """The plan of a choice."""
    order = (key.row_axis, *(a for a in range(len(key.lengths)) if a != key.row_axis))
    sorts = [shares(key.neighborhood.axes[a], key.lengths[a]) for a in order]
    return StripPlan(key, tuple(_part(key, order, chosen) for chosen in product(*sorts)))


def _windows(axis: Axis, length: int, queries: Sequence[int], first: int) -> Windows:
    return tuple((window_start(axis, length, i) - first, window_stop(axis, length, i) - first) for i in queries)


def _part(key: StripKey, order: tuple[int, ...], chosen: tuple[Share, ...]) -> Part:
    axes = [key.neighborhood.axes[a] for a in order]
    sizes = [min(key.tile[a], share.length) for a, share in zip(order, chosen)]
    inner = [inner_axis(a, s.length, t) for a, s, t in zip(axes[1:], chosen[1:], sizes[1:])]
    runs = row_runs(axes[0], chosen[0].length, sizes[0], row_multiple(prod(a.box for a in inner)))
    choices = [_split(a) if key.split else [a] for a in inner]
    choices[:1] = [_cut(axis, key.most_tiles) for axis in choices[:1]]
    inner_groups = tuple(_inner_group(key, order, chosen, runs, pick) for pick in product(*choices))
    strides = _Strides(key, order, chosen, False, key.width)
    shape = [*strides.outer, *(s.length for s in chosen), key.width]
    token_strides = [*strides.outer_strides, *strides.axis, 1]
    keys = _copy(list(zip(shape, token_strides, _contiguous(shape))), strides.offset, 0)
    return Part(chosen, order, prod(key.chunk) * prod(s.groups for s in chosen), inner_groups, keys)


def _split(axis: InnerAxis) -> list[InnerAxis]:
    """The axis cut where its tiles' looks change."""
    out: list[list[InnerTile]] = []
    for tile in axis.tiles:
        if out and out[-1][-1].looks == tile.looks:
            out[-1].append(tile)
        else:
            out.append([tile])
    return [InnerAxis(axis.size, axis.box, tuple(part)) for part in out]


def _cut(parts: list[InnerAxis], most: int) -> list[InnerAxis]:
    """The parts cut so that none has more than `most` tiles."""
    return [InnerAxis(a.size, a.box, a.tiles[i : i + most]) for a in parts for i in range(0, len(a.tiles), most)]


class _Strides:
    """Strides of a contiguous heads-last tensor, by what a dimension means."""

    def __init__(self, key: StripKey, order: tuple[int, ...], chosen: tuple[Share, ...], query: bool, width: int):
        heads = key.kv_heads * (key.group if query else 1)
        token = heads * width
        self.head, self.kv_head = width, width * (key.group if query else 1)
        self.batch = prod(key.lengths) * token
        plain = [prod(key.lengths[a + 1 :]) * token for a in range(len(key.lengths))]
        dilation = key.neighborhood.dilation
        self.group = [plain[a] for a in order]  # from one dilation group to the next
        self.axis = [plain[a] * dilation[a] for a in order]  # within a group
        self.offset = sum(plain[a] * share.first for a, share in zip(order, chosen))
        self.outer = [key.chunk[0], key.chunk[1], *(s.groups for s in chosen)]
        self.outer_strides = [self.kv_head, self.batch, *self.group]


def _inner_group(
    key: StripKey,
    order: tuple[int, ...],
    chosen: tuple[Share, ...],
    runs: tuple[Run, ...],
    inner: tuple[InnerAxis, ...],
) -> InnerGroup:
    strides = _Strides(key, order, chosen, False, key.width)
    length = chosen[0].length

    def boxes(disjoint: bool) -> tuple[Copy, ...]:
        if disjoint:  # a chunk's keys, heads first
            dense = _contiguous([*strides.outer, *(s.length for s in chosen), key.width])
            outer_strides, axis_strides = dense[: len(strides.outer)], dense[len(strides.outer) : -1]
            offset = 0
        else:
            outer_strides, axis_strides, offset = strides.outer_strides, strides.axis, strides.offset
        shape = [*strides.outer, *(len(a.tiles) for a in inner), length, *(a.box for a in inner), key.width]
        own = _contiguous(shape)
        first = len(strides.outer)
        out = []
        for steps in product(*(list(_steps(a, disjoint)) for a in inner)):
            dims: list[Dim] = list(zip(strides.outer, outer_strides, own))
            token_offset, strip_offset = offset, 0
            for i, (tile, skip, count, start, step) in enumerate(steps):
                dims.append((count, step * axis_strides[1 + i], skip * own[first + i]))
                token_offset += start * axis_strides[1 + i]
                strip_offset += tile * own[first + i]
            dims.append((length, axis_strides[0], own[first + len(inner)]))
            dims += [(a.box, axis_strides[1 + i], own[first + len(inner) + 1 + i]) for i, a in enumerate(inner)]
            dims.append((key.width, 1, 1))
            out.append(_copy(dims, token_offset, strip_offset))
        return tuple(out)

    works = tuple(_work(key, order, chosen, run, inner) for run in runs)
    tiles_, box = prod(len(a.tiles) for a in inner), prod(a.box for a in inner)
    return InnerGroup(inner, tiles_, box, boxes(False), boxes(True), works)


def _steps(axis: InnerAxis, disjoint: bool) -> Iterator[tuple[int, int, int, int, int]]:
    """Tiles whose boxes are equally far apart: first tile, tiles skipped, count, first key, keys skipped.

    Where `disjoint`, tiles are skipped so that the boxes of one answer do not overlap.
    """
    starts = [t.first_key for t in axis.tiles]
    at = 0
    while at < len(starts):
        step = starts[at + 1] - starts[at] if at + 1 < len(starts) else 0
        end = at + 1
        while step > 0 and end < len(starts) and starts[end] - starts[end - 1] == step:
            end += 1
        skip = -(-axis.box // step) if disjoint and step > 0 else 1
        for first in range(at, min(at + skip, end)):
            yield first, skip, len(range(first, end, skip)), starts[first], skip * step
        at = end


def _work(
    key: StripKey, order: tuple[int, ...], chosen: tuple[Share, ...], run: Run, inner: tuple[InnerAxis, ...]
) -> Work:
    size = key.group * run.rows * prod(a.size for a in inner)

    def copies(width: int, results: bool) -> tuple[Copy, ...]:
        strides = _Strides(key, order, chosen, True, width)
        lead = [*strides.outer, *(len(a.tiles) for a in inner)]
        slots = [key.group, run.rows, *(a.size for a in inner)]
        if results:
            own = _contiguous([*lead, *slots, run.tiles, width])
            own_tiles, own_slots = own[-2], own[len(lead) : -2]
        else:
            own = _contiguous([*lead, run.tiles, *slots, width])
            own_tiles, own_slots = own[len(lead)], own[len(lead) + 1 : -1]
        first = len(strides.outer)
        out = []
        for pieces in product(*(list(_pieces(a)) for a in inner)):
            dims: list[Dim] = list(zip(strides.outer, strides.outer_strides, own))
            token_offset, strip_offset = strides.offset + run.first_query * strides.axis[0], 0
            for i, (tile, number, _, start) in enumerate(pieces):
                dims.append((number, inner[i].size * strides.axis[1 + i], own[first + i]))
                token_offset += start * strides.axis[1 + i]
                strip_offset += tile * own[first + i]
            dims.append((run.tiles, run.rows * strides.axis[0], own_tiles))
            dims.append((key.group, strides.head, own_slots[0]))
            dims.append((run.rows, strides.axis[0], own_slots[1]))
            dims += [(p[2], strides.axis[1 + i], own_slots[2 + i]) for i, p in enumerate(pieces)]
            dims.append((width, 1, 1))
            out.append(_copy(dims, token_offset, strip_offset))
        return tuple(out)

    padded = any(t.queries != a.size for a in inner for t in a.tiles)
    return Work(run, size, padded, copies(key.width, False), copies(key.width, True), copies(1, False), copies(1, True))


def _pieces(axis: InnerAxis) -> Iterator[tuple[int, int, int, int]]:
    """Whole tiles, then the padded one: first tile, count, queries, first query."""
    whole = [t for t in axis.tiles if t.queries == axis.size]
    if whole:
        yield 0, len(whole), axis.size, whole[0].first_query
    for i, tile in enumerate(axis.tiles):
        if tile.queries != axis.size:
            yield i, 1, tile.queries, tile.first_query


def _contiguous(shape: Sequence[int]) -> list[int]:
    return [prod(shape[i + 1 :]) for i in range(len(shape))]


def _copy(dims: list[Dim], token_offset: int, strip_offset: int) -> Copy:
    kept = [d for d in dims if d[0] != 1] or [(1, 1, 1)]
    size, token_stride, strip_stride = zip(*kept)
    return Copy(size, token_stride, token_offset, strip_stride, strip_offset)
