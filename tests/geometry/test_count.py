"""Counts in closed form against tiles counted one by one."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import axes, spans, tiles
from vicinal.geometry.count import (
    Count,
    _extents,
    count,
    period,
    runs,
    widest,
)
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.span import Span
from vicinal.geometry.tiles import alike
from vicinal.geometry.window import (
    first_query_starting_at,
    first_query_stopping_after,
    window_start,
    window_stop,
)

BORDERS = {"shift": {}, "clip": {"boundary": "clip"}, "causal": {"causal": True}}


def intervals(axis: Axis, n: int, inverse: bool) -> list[tuple[int, int]]:
    """Of every query of a group its keys; or of every key its queries."""
    if not inverse:
        return [(window_start(axis, n, i), window_stop(axis, n, i)) for i in range(n)]
    return [(first_query_stopping_after(axis, n, i), first_query_starting_at(axis, n, i + 1)) for i in range(n)]


def given_of(axis: Axis, length: int, inverse: bool) -> list[tuple[list[tuple[int, int]], int]]:
    """Of every group the intervals of its tokens that are given, as far as they are, and how long those are at most."""
    span, found = axis.span or Span.whole(length), []
    own, other = (span.keys, span.queries) if inverse else (span.queries, span.keys)
    for g in range(min(axis.dilation, span.length)):
        n = len(range(g, span.length, axis.dilation))
        walked = [token // axis.dilation for token in range(*other) if token % axis.dilation == g]
        low, high = (walked[0], walked[-1] + 1) if walked else (0, 0)
        mine = []
        for i in (token // axis.dilation for token in range(*own) if token % axis.dilation == g):
            if inverse:
                start, stop = first_query_stopping_after(axis, n, i), first_query_starting_at(axis, n, i + 1)
            else:
                start, stop = window_start(axis, n, i), window_stop(axis, n, i)
            mine.append((min(max(start, low), high), min(max(stop, low), high)))
        if mine:
            found.append((mine, high - low))
    return found


def one_by_one(axis: Axis, length: int, tile: int, step: int, inverse: bool) -> Count:
    boxes, steps, passes_end = [], [], False
    for every, most in given_of(axis, length, inverse):
        for first, last in tiles(len(every), tile):
            box = range(every[first][0], every[last - 1][1])
            laid = box[::step]
            boxes.append(len(box))
            steps.append(len(laid))
            passes_end |= step * len(laid) > most
    return Count(len(boxes), sum(steps), max(steps), sum(boxes), max(boxes), passes_end)


def small_axes(length: int, border: str) -> list[Axis]:
    longest = length if border == "shift" else length + 2
    return [Axis(k, s, **BORDERS[border]) for k in range(1, longest + 1) for s in range(1, k + 1)]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("length", [1, 5, 20, 29])
def test_tiles_repeat_in_runs(length, border, inverse):
    for axis, tile in product(small_axes(length, border), (1, 2, 3)):
        every, turn = intervals(axis, length, inverse), period(axis, tile)
        laid = runs(axis, alike(axis, length)[0], tile, inverse)
        assert [first for first, _ in laid] == [0, *(beyond for _, beyond in laid[:-1])]
        assert laid[-1][1] == -(-length // tile)
        for first, beyond in laid:
            steps = set()
            for token in range((first + turn) * tile, min(beyond * tile, length)):
                steps.add(tuple(now - before for now, before in zip(every[token], every[token - turn * tile])))
            assert len(steps) <= 1, (axis, tile, first, beyond)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("length", [1, 2, 5, 8, 13, 20])
def test_counts_of_every_small_axis(length, border, inverse):
    for axis, tile, step in product(small_axes(length, border), (1, 2, 3, 8), (1, 3, 4, 8)):
        each = axis, length, tile, step, inverse
        found = count.__wrapped__(*each)
        assert found == one_by_one(axis, length, tile, step, inverse), (axis, tile, step)


SIZES = st.one_of(st.sampled_from([1, 4, 16, 64]), st.integers(1, 70))


@settings(max_examples=300)
@given(axes(600), SIZES, SIZES, st.booleans())
def test_counts_of_long_axes(case, tile, step, inverse):
    axis, length = case
    each = axis, length, tile, step, inverse
    assert count(*each) == one_by_one(*each)


@settings(max_examples=300)
@given(axes(600), SIZES, st.booleans())
def test_the_widest_box_where_windows_move_with_every_query(case, tile, inverse):
    axis, length = case
    axis = replace(axis, stride=1)
    assert widest(axis, length, tile, inverse) == one_by_one(axis, length, tile, 1, inverse).widest


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tile", [1, 2, 3, 8])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("length", [1, 2, 5, 8, 13, 20])
def test_the_widest_box_of_every_small_axis(length, border, tile, inverse):
    every = [axis for axis in small_axes(length, border) if axis.stride == 1]
    found = [widest(axis, length, tile, inverse) for axis in every]
    assert found == [one_by_one(axis, length, tile, 1, inverse).widest for axis in every]


@settings(max_examples=400)
@given(spans(120), SIZES, SIZES, st.booleans())
def test_counts_of_spans(case, tile, step, inverse):
    axis, length = case
    each = axis, length, tile, step, inverse
    assert count(*each) == one_by_one(*each)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("window", [7, 2048, 500_000])
def test_the_length_does_not_matter(window, border, inverse):
    """Few tiles are looked at, of however many there are."""
    axis = Axis(window, **BORDERS[border])
    (group,) = alike(axis, 1_000_000, inverse)
    assert len(_extents(axis, group, 16, inverse)) <= 8


def test_a_long_axis_by_hand():
    # 16 queries of window 33 reach 48 keys, 3 steps; those nearest to a border share one window of 33, also 3 steps.
    tiles = (1 << 40) // 16
    assert count(Axis(33), 1 << 40, 16, 16) == Count(tiles, 3 * tiles, 3, 48 * (tiles - 2) + 2 * 33, 48, False)
