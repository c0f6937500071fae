"""Tiles: which box of keys a tile of queries needs, which box of queries reaches a tile of keys.

A tile is an interval `[start, stop)` of positions along one axis, within one dilation group; a box is one interval
per axis. Since both ends of a window never decrease along an axis, every answer takes constant time, and a box of
several axes is the product of its intervals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.span import Interval, Span
from vicinal.geometry.window import (
    first_query_starting_at,
    first_query_stopping_after,
    group_length,
    window_start,
    window_stop,
)


class Group(NamedTuple):
    """One dilation group of an axis: the tokens at `offset`, `offset + dilation`, ...; `length` of them."""

    offset: int
    length: int


def groups(axis: Axis, length: int) -> list[Group]:
    """The dilation groups of an axis: independent, undilated problems on strided slices."""
    return [Group(g, group_length(length, axis.dilation, g)) for g in range(min(axis.dilation, length))]


@dataclass(frozen=True)
class Alike:
    """Dilation groups of an axis that are alike: `count` of them from group `first` on.

    Attributes:
        length: of each group, whole.
        own: where the tokens are that tiles are of; all of the group, but for a span.
        other: where the tokens are that tiles walk.
    """

    length: int
    first: int
    count: int
    own: Interval
    other: Interval


def alike(axis: Axis, length: int, inverse: bool = False) -> tuple[Alike, ...]:
    """The groups of an axis of which tiles are, by what differs: their lengths, and what of them is given.

    Of a whole axis there are at most two kinds, the longer groups first. `inverse`: tiles are of keys, else of queries.
    """
    return _alike(axis, length, inverse and axis.span is not None)


def _kinds(axis: Axis, length: int, inverse: bool) -> tuple[Alike, ...]:
    dilation, whole, own, other = axis.dilation, length, (0, length), (0, length)
    if axis.span is not None:
        whole, own, other = axis.span.length, axis.span.own(inverse), axis.span.other(inverse)
    groups = min(dilation, own[1] - own[0])
    # Tokens side by side are of groups side by side; at these ones some position within the group changes.
    cuts = {(end - own[0]) % dilation for end in (0, own[1], *other, whole)}
    kinds = []
    for first, beyond in pairwise(sorted({0, groups, *(cut for cut in cuts if cut < groups)})):
        group = (own[0] + first) % dilation
        ends = [group_length(end, dilation, group) for end in (whole, *own, *other)]
        kinds.append(Alike(ends[0], group, beyond - first, (ends[1], ends[2]), (ends[3], ends[4])))
    return tuple(kinds)


_alike = lru_cache(maxsize=4096)(_kinds)  # planning asks often


def reach(axis: Axis, length: int, queries: Interval) -> Interval:
    """Of a whole axis, the least interval of tokens that holds the windows of all `queries`, tokens of it too."""
    # Not from the cache: compiled functions come here, and warn of what they cannot look up.
    parts = _kinds(replace(axis, span=Span(length, queries, queries)), length, False)
    starts = [window_start(axis, p.length, p.own[0]) * axis.dilation + p.first for p in parts]
    stops = [(window_stop(axis, p.length, p.own[1] - 1) - 1) * axis.dilation + p.first + p.count - 1 for p in parts]
    return min(starts), max(stops) + 1


def check_span(axis: Axis, index: int) -> None:
    """That every query of an axis' span has its window among the keys.

    Raises:
        ValueError: some have not.
    """
    if axis.span is None:
        return
    whole, keys = axis.resolve(axis.span.query_length, index), axis.span.keys
    needed = reach(whole, axis.span.length, axis.span.queries)
    if needed[0] < keys[0] or needed[1] > keys[1]:
        raise ValueError(
            f"spans: keys of axis {index} must hold every query's window, [{needed[0]}, {needed[1]}), "
            f"got [{keys[0]}, {keys[1]})"
        )


def key_interval(axis: Axis, length: int, queries: Interval) -> Interval:
    """The smallest interval that holds the windows of all `queries` (not empty)."""
    start, stop = queries
    return window_start(axis, length, start), window_stop(axis, length, stop - 1)


def query_interval(axis: Axis, length: int, keys: Interval) -> Interval:
    """The smallest interval that holds every query attending to one of `keys` (not empty); start == stop if none."""
    start, stop = keys
    first = first_query_stopping_after(axis, length, start)
    return first, max(first, first_query_starting_at(axis, length, stop))
