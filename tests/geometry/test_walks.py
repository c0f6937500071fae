"""What tilings are compared by, against exact counts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import axes, spans
from vicinal.geometry.count import count
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.span import Span
from vicinal.geometry.tiles import reach
from vicinal.geometry.walks import Walks, walks
from vicinal.geometry.window import window_start, window_stop

BORDERS = {"shift": {}, "clip": {"boundary": "clip"}, "causal": {"causal": True}}
POWERS = st.sampled_from([1, 2, 4, 8, 16, 32, 64])


@given(
    st.integers(1, 100),
    st.data(),
    st.sampled_from(list(BORDERS)),
    st.integers(1, 5),
    POWERS,
    POWERS,
    st.booleans(),
)
def test_long_axes_are_counted_to_a_few_hundredths(window, data, border, dilation, tile, step, inverse):
    stride = 1 if border == "causal" else data.draw(st.integers(1, window))
    axis = Axis(window, stride, dilation, **BORDERS[border])
    length = 200 * dilation * (window + tile + step)
    exact, found = count(axis, length, tile, step, inverse), Walks(axis, length, inverse).walk[tile, step]
    assert found.tiles == exact.tiles
    assert found.tiles * found.steps == pytest.approx(exact.steps, rel=0.03)


@settings(max_examples=400)
@given(axes(120), POWERS, POWERS, st.booleans())
def test_no_tile_walks_more_than_the_longest(case, tile, step, inverse):
    axis, length = case
    exact, found = count(axis, length, tile, step, inverse), Walks(axis, length, inverse)
    assert found.walk[tile, step].longest >= exact.longest
    assert found.may_pass_end(tile, step) >= exact.passes_end


@settings(max_examples=200)
@given(spans(120), POWERS, POWERS, st.booleans())
def test_nor_does_a_tile_of_a_part(case, tile, step, inverse):
    axis, length = case
    exact, found = count(axis, length, tile, step, inverse), Walks(axis, length, inverse)
    assert found.walk[tile, step].longest >= exact.longest
    assert found.may_pass_end(tile, step) >= exact.passes_end


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("stride", [44, 64, 1000, 2**40])
@pytest.mark.parametrize("length", [1, 2, 45])
def test_blocks_of_queries_may_be_longer_than_a_causal_axis(length, stride, inverse):
    axis = Axis(stride, stride, 3, causal=True)
    exact, found = count(axis, length, 16, 16, inverse), Walks(axis, length, inverse).walk[16, 16]
    assert found.tiles * found.steps == pytest.approx(exact.steps)


@pytest.mark.parametrize(("window", "tile", "step"), [(33, 16, 16), (7, 8, 4), (128, 64, 64), (40, 8, 16)])
def test_full_steps_are_those_of_a_tile_in_the_middle(window, tile, step):
    axis, n, first = Axis(window), 10_000, 5_000 // tile * tile
    begin, low = window_start(axis, n, first), window_start(axis, n, first + tile - 1)
    high, end = window_stop(axis, n, first), window_stop(axis, n, first + tile - 1)
    laid = range(begin, end, step)
    full = sum(low <= at and at + step <= high for at in laid) / len(laid)
    assert Walks(axis, n, False).walk[tile, step].full == pytest.approx(full)


@pytest.mark.parametrize("passes", [0, 1, 2, None])
@pytest.mark.parametrize(("window", "tile", "step"), [(33, 16, 16), (7, 8, 4), (128, 64, 64), (40, 8, 16)])
def test_two_tiles_side_by_side_pass_over_what_only_the_other_needs(window, tile, step, passes):
    axis, n, first = Axis(window), 1_000_000, 500_000 // tile * tile
    ends = [window_stop(axis, n, query) for query in (first + tile - 1, first + 2 * tile - 1)]
    starts = [window_start(axis, n, query) for query in (first, first + tile)]
    laid = range(starts[0], ends[1], step)
    ahead, beyond = sum(at + step <= starts[1] for at in laid), sum(at >= ends[0] for at in laid)
    most = min(ahead, beyond) if passes is None else passes
    steps = len(laid) - (min(ahead, most) + min(beyond, most)) / 2
    assert Walks(axis, n, False).pair[tile, step, passes] == pytest.approx(steps, rel=1e-3)


@given(
    st.one_of(axes(120), spans(120)), st.booleans(), st.lists(st.tuples(st.integers(0, 4), POWERS, POWERS), max_size=8)
)
def test_what_was_asked_before_changes_no_answer(case, inverse, questions):
    axis, length = case

    def answer(of: Walks, what: int, tile: int, step: int) -> object:
        ways = (
            lambda: of.walk[tile, step],
            lambda: of.pair[tile, step, step % 3 or None],
            lambda: of.aligned[tile, (step, 2 * step), 16],
            lambda: of.works(tile, step),
            lambda: of.middle[tile, step],
        )
        return ways[what]()

    asked = Walks(axis, length, inverse)
    for question in questions:
        assert answer(asked, *question) == answer(Walks(axis, length, inverse), *question)


@pytest.mark.parametrize("unit", [1, 4, 16])
@pytest.mark.parametrize(("window", "tile", "step"), [(33, 16, 16), (7, 8, 4), (128, 64, 64), (40, 8, 16), (13, 2, 8)])
def test_walks_from_multiples_begin_before_the_keys(window, tile, step, unit):
    axis, n, own = Axis(window), 100_000, min(unit, step)
    ends = []
    for first in range(48_000, 49_024, tile):
        begin, end = window_start(axis, n, first), window_stop(axis, n, first + tile - 1)
        ends.append(-(-(end - begin // own * own) // step))
    assert Walks(axis, n, False).aligned[tile, (step,), unit][0] == pytest.approx(sum(ends) / len(ends), rel=2e-3)


def test_one_look_at_an_axis_serves_all_who_ask():
    assert walks(Axis(7), 100) is walks(Axis(7), 100)
    assert walks(Axis(7), 100) is not walks(Axis(7), 100, True)


@pytest.mark.parametrize(
    ("length", "window", "queries", "tile", "step"),
    [
        (512, 80, (0, 256), 8, 8),
        (512, 80, (0, 256), 64, 64),
        (512, 80, (128, 256), 8, 4),
        (480, 31, (60, 180), 8, 8),
        (48, 24, (0, 24), 4, 4),
    ],
)
def test_keys_of_a_part_have_fewer_queries_where_they_are_beyond_them(length, window, queries, tile, step):
    part = Axis(window, span=Span(length, queries, reach(Axis(window), length, queries)))
    own = queries[1] - queries[0]
    exact, found = count(part, own, tile, step, True), Walks(part, own, True)
    assert found.walk[tile, step].steps * exact.tiles == pytest.approx(exact.steps, rel=0.25)
    assert found.walk[tile, step].steps >= exact.steps / exact.tiles
