"""Circular axes whose keys are read where they are: spans that hold every window, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicinal.geometry.neighborhood import Neighborhood, decode, encode
from vicinal.geometry.span import Span
from vicinal.geometry.unroll import FEW, around, seam
from vicinal.geometry.window import window_start, window_stop

of = Neighborhood.of


@given(window=st.integers(1, 9), stride=st.integers(1, 9), dilation=st.integers(1, 3), blocks=st.integers(1, 6))
def test_what_is_walked_holds_the_windows_of_all_queries_and_the_queries_of_all_keys(window, stride, dilation, blocks):
    stride = min(stride, window)
    length = max(blocks * stride, -(-window // stride) * stride) * dilation
    (found,) = around((of(1, window, stride, dilation, boundary="wrap").resolve((length,)),), (length,))
    axis, span = found.axes[0], found.axes[0].span
    start, stop = span.other(inverse=False)
    assert span.other(inverse=True) == (start, stop)
    assert span.own(inverse=False) == span.own(inverse=True) == (0, length)
    assert -length <= start <= stop <= 2 * length
    group = length // dilation
    for query in range(group):  # of the first dilation group
        low, high = window_start(axis, group, query), window_stop(axis, group, query)
        assert start <= low * dilation
        assert (high - 1) * dilation < stop
        for key in range(low, high):  # seen from the key where it is, the query is around the circle
            assert start <= (query - key // group * group) * dilation < stop


def test_blocks_that_end_within_the_axis_have_to_be_copied():
    assert around((of(1, 5, 5, boundary="wrap").resolve((12,)),), (12,)) is None
    assert around((of(1, 5, 4, boundary="wrap").resolve((12,)),), (12,)) is not None


def test_other_axes_stay_as_they_are():
    neighborhood = of(2, 3, boundary=("clip", "wrap")).resolve((7, 8))
    (found,) = around((neighborhood,), (7, 8))
    assert found.spans == (None, Span(8, (0, 8), (-3, 11), circle=True))
    assert found.key_lengths((7, 8)) == (7, 8)
    assert found.goes_around
    assert decode(encode([found]), 2) == (found,)
    assert found.in_words()[-1] == "axis 1: queries 0:8 of 8, keys -3:11 around a circle"


def test_a_circle_of_some_heads_only_is_refused_as_ever():
    some = (of(1, 3, boundary="wrap").resolve((8,)), of(1, 3).resolve((8,)))
    with pytest.raises(ValueError, match="boundary 'wrap' must be of all heads or of none, on axis 0 it is of some"):
        around(some, (8,))


@given(window=st.integers(1, 9), stride=st.integers(1, 9), dilation=st.integers(1, 3), blocks=st.integers(1, 99))
def test_queries_not_near_the_seam_have_the_windows_of_an_axis_with_ends(window, stride, dilation, blocks):
    stride = min(stride, window)
    length = max(blocks * stride, -(-window // stride) * stride) * dilation
    (circle,) = own = (of(1, window, stride, dilation, boundary="wrap").resolve((length,)),)
    found, group = seam(own, (length,)), length // dilation
    if found is None:
        starts, stops = ([f(circle.axes[0], group, i) for i in range(group)] for f in (window_start, window_stop))
        across = sum(low < 0 or high > group for low, high in zip(starts, stops))
        assert across == 0 or (across + 2 * stride) * dilation * FEW >= length
        return
    (last, first), ((ends,), (near,)) = found.queries, (found.ends[0].axes, found.near[0].axes)
    start = near.span.queries[0]
    for query in range(length):
        (low, high), (other, stop) = (
            (window_start(axis, group, query // dilation), window_stop(axis, group, query // dilation))
            for axis in (circle.axes[0], ends)
        )
        if first <= query < length - last:
            assert (low, high) == (other, stop)
            continue
        seen = start + (query - length if query >= length - last else query) + last  # where it is near the seam
        low, high = (low * dilation + query % dilation, (high - 1) * dilation + query % dilation)
        assert length - found.keys[0] <= low + (length if query < first else 0)
        assert high - (length if query >= length - last else 0) < found.keys[1]
        assert near.span.queries[0] <= seen < near.span.queries[1]
        assert window_start(near, group, seen // dilation) * dilation + seen % dilation - seen == low - query


@pytest.mark.parametrize(
    ("neighborhood", "lengths"),
    [
        (of(2, 3, boundary="wrap"), (90, 90)),  # two circles
        (of(1, 5, 4, boundary="wrap"), (402,)),  # blocks that end within the axis
        (of(1, 9, boundary="wrap"), (64,)),  # no few queries
        (of(1, 1, boundary="wrap"), (64,)),  # none
        (of(1, 3), (64,)),
    ],
)
def test_where_no_seam_is_computed_by_itself(neighborhood, lengths):
    assert seam((neighborhood.resolve(lengths),), lengths) is None
