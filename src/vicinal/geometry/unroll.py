"""A circular axis as a part of a line: its keys go on, at both ends, with those from the other side.

Either they are given so, copied (`unrolled`), or kernels read them where they are (`around`). Or only queries near the
seam, where the last token meets the first, are computed so, and all others as on an axis with ends (`seam`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import lcm

from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.span import Span
from vicinal.geometry.tiles import reach

Neighborhoods = tuple[Neighborhood, ...]
FEW = 16  # of an axis this part at most is near its seam, where that is computed by itself


def unrolled(neighborhoods: Neighborhoods, lengths: tuple[int, ...]) -> Neighborhoods:
    """With a span for every circular axis that has none: all queries, and the keys that they need.

    Resolved; one for all heads or one per head. Where heads differ, the keys are those that any needs.

    Raises:
        ValueError: an axis is circular for some heads only.
    """
    if not any(n.is_circular for n in neighborhoods):
        return neighborhoods
    spans: list[Span | None] = []
    for i, length in enumerate(lengths):
        axes = [n.axes[i] for n in neighborhoods]
        wraps = [axis.boundary == "wrap" and axis.span is None for axis in axes]
        if any(wraps) and not all(wraps):
            raise ValueError(f"boundary 'wrap' must be of all heads or of none, on axis {i} it is of some")
        if not all(wraps):
            spans.append(axes[0].span)
            continue
        length = int(length)  # traced, a symbol: how keys go on is worked out for one length
        lows, highs = zip(*(reach(axis, length, (0, length)) for axis in axes))
        spans.append(Span(length, (0, length), (min(lows), max(highs))))
    return tuple(
        Neighborhood(tuple(replace(axis, span=span) for axis, span in zip(n.axes, spans))) for n in neighborhoods
    )


@lru_cache(maxsize=1024)
def around(neighborhoods: Neighborhoods, lengths: tuple[int, ...]) -> Neighborhoods | None:
    """With spans of circular axes whose keys are read where they are (`Span.circle`); resolved neighborhoods.

    None where windows do not repeat around an axis: its blocks of a stride end somewhere within it.

    Raises:
        ValueError: as `unrolled`.
    """
    reaches = []
    for copied, length, *axes in zip(
        unrolled(neighborhoods, lengths)[0].axes, lengths, *(n.axes for n in neighborhoods)
    ):
        if copied.span == axes[0].span:
            reaches.append(0)
            continue
        if any(length % (a.stride * a.dilation) for a in axes):
            return None
        # Whole blocks hold all keys of a query, and all queries that a key has.
        reaches.append(max(-(-(a.window or length) // a.stride) * a.stride * a.dilation for a in axes))
        if reaches[-1] > length:
            return None
    spans = [Span(n, (0, n), (-reach, n + reach), circle=True) if reach else None for n, reach in zip(lengths, reaches)]
    return tuple(
        Neighborhood(tuple(a if span is None else replace(a, span=span) for a, span in zip(n.axes, spans)))
        for n in neighborhoods
    )


@dataclass(frozen=True)
class Seam:
    """Of the one circular axis of a problem, the queries whose windows lie across its seam.

    Attributes:
        axis: which one it is.
        queries: how many at its end, and how many at its start.
        keys: likewise, of the keys that those need.
        ends: neighborhoods of an axis with ends instead: of all other queries.
        near: neighborhoods of these queries and keys, as a part of an axis that has none.
    """

    axis: int
    queries: tuple[int, int]
    keys: tuple[int, int]
    ends: Neighborhoods
    near: Neighborhoods


@lru_cache(maxsize=1024)
def seam(neighborhoods: Neighborhoods, lengths: tuple[int, ...]) -> Seam | None:
    """The seam of resolved neighborhoods, all circular along the same axes.

    None where there are several circular axes, where windows do not repeat around, where no query is near the seam, and
    where more than a few are.
    """
    circular = [i for i, a in enumerate(neighborhoods[0].axes) if a.boundary == "wrap" and a.span is None]
    if len(circular) != 1:
        return None
    (axis,) = circular
    length, own = lengths[axis], [n.axes[axis] for n in neighborhoods]
    unit = lcm(*(a.stride * a.dilation for a in own))
    blocks = range(0, length // FEW, unit)
    if length % unit:
        return None

    def needed(axes: list[Axis], first: int, count: int) -> tuple[int, int]:
        lows, highs = zip(*(reach(a, length, (first, first + count)) for a in axes))
        return min(lows), max(highs)

    after = next((n for n in blocks if needed(own, n, unit)[0] >= 0), length)
    before = next((n for n in blocks if needed(own, length - n - unit, unit)[1] <= length), length)
    count = before + after
    if not 0 < count * FEW <= length:
        return None
    first = (length - count) // 2 // unit * unit  # far from both ends
    shifted = [replace(a, boundary="shift") for a in own]
    keys = needed(shifted, first, count)
    if keys != needed(own, first, count):
        return None
    span = Span(length, (first, first + count), keys)
    ends, near = (
        tuple(Neighborhood((*n.axes[:axis], a, *n.axes[axis + 1 :])) for n, a in zip(neighborhoods, each))
        for each in (shifted, [replace(a, span=span) for a in shifted])
    )
    return Seam(axis, (before, after), (first + before - keys[0], keys[1] - first - before), ends, near)
