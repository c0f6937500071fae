"""The definition: which keys a query attends to along one axis, and which queries attend to a key.

All functions speak of one dilation group: positions `0 <= i < length` in units of the dilation (`groups` splits an
axis). Every window is an interval `[start, stop)` and both ends never decrease with the query's position; the whole
of `vicinal.geometry.tiles` rests on that. `leader`, `window_start`, `window_stop` and `window` also take tensors or
arrays of positions, and of the lengths of their groups, and compute elementwise.

Source: generalized neighborhood attention (arXiv 2504.16922) for the stride's leader; neighborhood attention
(arXiv 2204.07143, section 3) for the shifted window, its dilation (arXiv 2209.15001); `../DESIGN` of this project
for causal and clipped windows.
"""

from __future__ import annotations

from typing import Any

from vicinal.geometry.neighborhood import Axis

SHIFT, CLIP, CAUSAL, WRAP = 0, 1, 2, 3  # what a window does at a border, as kernels number it


def mode(axis: Axis) -> int:
    """`CAUSAL`, or what `axis.boundary` says: `SHIFT`, `CLIP` or `WRAP`."""
    return CAUSAL if axis.causal else _MODES[axis.boundary]


_MODES = {"shift": SHIFT, "clip": CLIP, "wrap": WRAP}


def group_length(length: int, dilation: int, group: int) -> int:
    """How many tokens of an axis are in dilation group `group`: those at `group`, `group + dilation`, ..."""
    return (length - group + dilation - 1) // dilation


def left_reach(axis: Axis) -> int:
    """How far a window reaches before its leader, away from borders."""
    window: Any = axis.window  # a number: axes are resolved
    return window - 1 if axis.causal else window // 2


def leader_offset(axis: Axis) -> int:
    """Where the leader sits within its block of `stride` queries."""
    return axis.stride - 1 if axis.causal else axis.stride // 2


def leader(axis: Axis, length: int, query: int) -> int:
    """The position on which the window of `query` is centred: shared by blocks of `stride` queries."""
    position: Any = query // axis.stride * axis.stride + leader_offset(axis)
    return min(position, length - 1) if isinstance(position, int) else position.clip(max=length - 1)


def window_start(axis: Axis, length: int, query: int) -> int:
    """The first key of `query`."""
    start: Any = leader(axis, length, query) - left_reach(axis)
    if axis.boundary == "wrap":  # it goes on: positions before 0 and beyond the axis are those around the circle
        return start
    last: Any = length if axis.causal or axis.boundary == "clip" else length - axis.window  # type: ignore[operator]
    return min(max(start, 0), last) if isinstance(start, int) else start.clip(min=0).clip(max=last)


def window_stop(axis: Axis, length: int, query: int) -> int:
    """One past the last key of `query`."""
    if axis.causal:
        return query + 1
    window: Any = axis.window
    if axis.boundary != "clip":
        return window_start(axis, length, query) + window
    stop: Any = leader(axis, length, query) - left_reach(axis) + window
    return min(stop, length) if isinstance(stop, int) else stop.clip(max=length)


def window(axis: Axis, length: int, query: int) -> tuple[int, int]:
    """The keys of `query`: both ends at once."""
    start = window_start(axis, length, query)
    if axis.causal or axis.boundary == "clip":  # borders cut it
        return start, window_stop(axis, length, query)
    return start, start + _window(axis)


def first_query_starting_at(axis: Axis, length: int, key: int) -> int:
    """The first query whose window starts at `key` or later; `length` if none does."""
    if key <= 0 and mode(axis) != WRAP:
        return 0
    if key > length - _window(axis) and mode(axis) == SHIFT:
        return length
    return _first_query_led_from(axis, length, key + left_reach(axis))


def first_query_stopping_after(axis: Axis, length: int, key: int) -> int:
    """The first query whose window includes `key` or goes beyond it; `length` if none does."""
    if axis.causal:
        return min(max(key, 0), length)
    if axis.boundary in ("shift", "wrap"):
        return first_query_starting_at(axis, length, key - _window(axis) + 1)
    if key >= length:
        return length
    return _first_query_led_from(axis, length, key + 1 - _window(axis) + left_reach(axis))


def _first_query_led_from(axis: Axis, length: int, position: int) -> int:
    """The first query whose leader is at `position` or later; `length` if none is."""
    if position > length - 1:
        return length
    blocks = -(-(position - leader_offset(axis)) // axis.stride)
    return min(max(blocks, 0) * axis.stride, length)


def _window(axis: Axis) -> int:
    assert axis.window is not None, "resolve the axis first"
    return axis.window
