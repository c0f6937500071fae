"""Tiles: which box of keys a tile of queries needs, which box of queries reaches a tile of keys.

A tile is an interval `[start, stop)` of positions along one axis, within one dilation group; a box is one interval
per axis. Since both ends of a window never decrease along an axis, every answer takes constant time, and a box of
several axes is the product of its intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.window import (
    first_query_starting_at,
    first_query_stopping_after,
    group_length,
    window_start,
    window_stop,
)

Interval = tuple[int, int]


@dataclass(frozen=True)
class Group:
    """One dilation group of an axis: the tokens at `offset`, `offset + dilation`, ...; `length` of them."""

    offset: int
    length: int


def groups(axis: Axis, length: int) -> list[Group]:
    """The dilation groups of an axis: independent, undilated problems on strided slices."""
    return [Group(g, group_length(length, axis.dilation, g)) for g in range(min(axis.dilation, length))]


@dataclass(frozen=True)
class Alike:
    """The dilation groups of an axis that have one length: `count` of them from group `first` on."""

    length: int
    first: int
    count: int


def alike(axis: Axis, length: int) -> list[Alike]:
    """The groups of an axis by their length, at most two kinds; the longer ones, which come first, first."""
    longest = group_length(length, axis.dilation, 0)
    longer = (length - 1) % axis.dilation + 1
    shorter = min(axis.dilation, length) - longer
    kinds = [Alike(longest, 0, longer)]
    return [*kinds, Alike(longest - 1, longer, shorter)] if shorter else kinds


def key_interval(axis: Axis, length: int, queries: Interval) -> Interval:
    """The smallest interval that holds the windows of all `queries` (not empty)."""
    start, stop = queries
    return window_start(axis, length, start), window_stop(axis, length, stop - 1)


def query_interval(axis: Axis, length: int, keys: Interval) -> Interval:
    """The smallest interval that holds every query attending to one of `keys` (not empty); start == stop if none."""
    start, stop = keys
    first = first_query_stopping_after(axis, length, start)
    return first, max(first, first_query_starting_at(axis, length, stop))
