"""Which tokens ranks that hold shards of a map must send each other: a pure plan, without torch.

A query needs the keys of its window, so a rank needs its shard and a halo around it: a box, the product of one interval
per axis (`vicinal.geometry.tiles.reach`). What of it another rank holds is the intersection of two boxes, so messages
are boxes too, whatever the mesh: from neighbors, diagonal ones included, or from further away where a window is larger
than a shard. Around a circular axis, boxes go on beyond its ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise, product
from math import prod

from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.span import Interval, Span
from vicinal.geometry.tiles import alike, reach
from vicinal.geometry.window import first_query_starting_at, first_query_stopping_after

Box = tuple[Interval, ...]  # one interval of tokens per axis
LEAST_INSIDE = 0.15  # share of a shard's queries that is worth a launch of its own, while the halo travels
NEAR_INSIDE = 0.97  # the same where ranks are of one host: to send a halo costs less than two launches for one
NEVER = 2.0


def volume(box: Box) -> int:
    """How many tokens a box has."""
    return prod(stop - start for start, stop in box)


def common(one: Box, other: Box) -> Box | None:
    """The tokens of both, or None."""
    found = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other))
    return found if all(start < stop for start, stop in found) else None


def moved(box: Box, by: Sequence[int]) -> Box:
    """The box, moved along every axis."""
    return tuple((start + n, stop + n) for (start, stop), n in zip(box, by))


def chunks(interval: Interval, parts: int) -> list[Interval]:
    """As `torch.chunk` and `DTensor` cut: parts of the same length, the last ones shorter or empty."""
    start, stop = interval
    size = -(-(stop - start) // parts)
    cuts = [min(start + i * size, stop) for i in range(parts + 1)]
    return list(pairwise(cuts))


def shards_of(lengths: Sequence[int], parts: Sequence[int]) -> tuple[Box, ...]:
    """The boxes of a map that is cut into so many parts along each axis, in row-major order."""
    return tuple(product(*(chunks((0, n), count) for n, count in zip(lengths, parts))))


@dataclass(frozen=True)
class Piece:
    """Tokens that a rank needs of another, or of its own.

    Attributes:
        box: where they are, along the axes.
        placed: where they are needed; elsewhere only around a circular axis.
    """

    box: Box
    placed: Box

    @property
    def tokens(self) -> int:
        return volume(self.box)


@dataclass(frozen=True)
class Part:
    """Queries of a rank that are computed in one launch, and the box of keys that they need.

    `inside`: it needs nothing but the rank's own shard.
    """

    queries: Box
    keys: Box
    inside: bool


@dataclass(frozen=True)
class Halo:
    """What every rank needs and sends.

    Attributes:
        neighborhoods: resolved for the whole axes; one for all heads, or one per head.
        lengths: of the whole axes.
        shards: the box that each rank holds, of queries, keys and values alike; some may be empty.

    Raises:
        ValueError: the shards are not all tokens, each once.
    """

    neighborhoods: tuple[Neighborhood, ...]
    lengths: tuple[int, ...]
    shards: tuple[Box, ...]

    def __post_init__(self) -> None:
        whole = tuple((0, n) for n in self.lengths)
        held = [box for box in self.shards if volume(box)]
        inside = all(common(box, whole) == box for box in held)
        apart = all(common(a, b) is None for i, a in enumerate(held) for b in held[:i])
        if not inside or not apart or sum(map(volume, held)) != prod(self.lengths):
            raise ValueError(f"shards must hold every token of {self.lengths} once, got {self.shards}")

    def reach(self, queries: Box) -> Box:
        """The least box that holds the windows of these queries."""
        return tuple(
            _union([reach(n.axes[i], length, own) for n in self.neighborhoods])
            for i, (length, own) in enumerate(zip(self.lengths, queries))
        )

    def keys(self, rank: int) -> Box | None:
        """All keys that a rank needs; None where it holds no query."""
        return self._keys[rank]

    @cached_property
    def _keys(self) -> list[Box | None]:
        return [self.reach(box) if volume(box) else None for box in self.shards]

    def pieces(self, source: int, target: int) -> list[Piece]:
        """What of `source`'s tokens `target` needs: more than one only around circular axes."""
        needed, held = self.keys(target), self.shards[source]
        if needed is None or not volume(held):
            return []
        turns = [(-n, 0, n) if wraps else (0,) for wraps, n in zip(self.circular, self.lengths)]
        found = []
        for by in product(*turns):
            placed = common(moved(held, by), needed)
            if placed is not None:
                found.append(Piece(moved(placed, [-n for n in by]), placed))
        return found

    @property
    def circular(self) -> tuple[bool, ...]:
        """Along which axes the map is a circle."""
        return tuple(axis.boundary == "wrap" for axis in self.neighborhoods[0].axes)

    def sends(self, rank: int) -> list[list[Piece]]:
        """To every rank, what it needs of this one; nothing to itself."""
        return [[] if other == rank else self.pieces(rank, other) for other in range(len(self.shards))]

    def receives(self, rank: int) -> list[list[Piece]]:
        """From every rank, what this one needs of it."""
        return [[] if other == rank else self.pieces(other, rank) for other in range(len(self.shards))]

    def tokens_sent(self, rank: int) -> int:
        return sum(piece.tokens for to in self.sends(rank) for piece in to)

    def tokens_received(self, rank: int) -> int:
        return sum(piece.tokens for of in self.receives(rank) for piece in of)

    def parts(self, rank: int, least_inside: float = LEAST_INSIDE) -> list[Part]:
        """The launches of a rank: if worth it, first the queries inside, which need no halo, then those at borders.

        `least_inside`: the share of its queries from which on they are worth it.
        """
        queries, keys = self.shards[rank], self.keys(rank)
        if keys is None:
            return []
        inner = self.inside(rank)
        everything = [Part(queries, keys, inner == queries)]
        if inner is None or inner == queries or volume(inner) < least_inside * volume(queries):
            return everything
        found = [inner]
        left = list(queries)
        for axis, (start, stop) in enumerate(inner):
            for border in ((left[axis][0], start), (stop, left[axis][1])):
                if border[0] < border[1]:
                    found.append((*left[:axis], border, *left[axis + 1 :]))
            left[axis] = (start, stop)
        return [Part(box, self.reach(box), i == 0) for i, box in enumerate(found)]

    def inside(self, rank: int) -> Box | None:
        """The queries of a rank whose windows lie in its own shard, as a box; None where there are none."""
        found = []
        for i, (length, own) in enumerate(zip(self.lengths, self.shards[rank])):
            if own != (0, length):
                each = [_inside(n.axes[i], length, own) for n in self.neighborhoods]
                own = max(start for start, _ in each), min(stop for _, stop in each)
            found.append(own)
        return tuple(found) if all(start < stop for start, stop in found) else None

    def spans(self, part: Part) -> tuple[Span | None, ...]:
        """What of the axes a part's queries and keys are; None where all of it."""
        found = [Span(*own) for own in zip(self.lengths, part.queries, part.keys)]
        return tuple(None if span == Span.whole(span.length) else span for span in found)


@lru_cache(maxsize=1024)
def halo(neighborhoods: tuple[Neighborhood, ...], lengths: tuple[int, ...], shards: tuple[Box, ...]) -> Halo:
    """The plan, made once; neighborhoods may be unresolved.

    Raises:
        ValueError: see `Halo`; also where a window does not fit the axes.
    """
    return Halo(tuple(n.resolve(lengths) for n in neighborhoods), lengths, shards)


def _inside(axis: Axis, length: int, own: Interval) -> Interval:
    """Of the queries of a shard those whose windows lie in it; stop may be at or before start, where there are none.

    Both ends of a window never decrease along a dilation group, so they are an interval of each, and what all groups
    have in common is one.
    """
    start, stop = own
    for kind in alike(replace(axis, span=Span(length, own, own)), length):
        first = first_query_starting_at(axis, kind.length, kind.own[0])
        last = first_query_stopping_after(axis, kind.length, kind.own[1])
        start = max(start, (first - 1) * axis.dilation + kind.first + kind.count)
        stop = min(stop, last * axis.dilation + kind.first)
    return start, stop


def _union(intervals: Sequence[Interval]) -> Interval:
    return min(start for start, _ in intervals), max(stop for _, stop in intervals)
