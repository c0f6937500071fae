"""A circular axis as a part of a line: its keys go on, at both ends, with those from the other side.

Either they are given so, copied (`unrolled`), or kernels read them where they are (`around`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span
from vicinal.geometry.tiles import reach

Neighborhoods = tuple[Neighborhood, ...]


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
