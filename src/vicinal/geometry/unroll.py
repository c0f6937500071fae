"""A circular axis as a part of a line: its keys go on, at both ends, with those from the other side."""

from __future__ import annotations

from dataclasses import replace

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
