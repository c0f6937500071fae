"""The window rule against the oracle's mask, which is written from the definition without it."""

import pytest
import torch
from hypothesis import given, settings

from strategies import axes
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.window import (
    first_query_starting_at,
    first_query_stopping_after,
    group_length,
    window,
    window_start,
    window_stop,
)
from vicinal.reference import axis_mask, neighbors

EVERY_SMALL_AXIS = [
    (Axis(window, stride, 1, causal, boundary), length)
    for length in (1, 2, 5, 8)
    for window in range(1, length + 3)
    for stride in range(1, window + 1)
    for causal in (False, True)
    for boundary in ("shift", "clip")
    if window <= length or boundary == "clip" or causal
]


@pytest.mark.parametrize(("axis", "length"), EVERY_SMALL_AXIS)
def test_rule_and_inverse_on_every_small_axis(axis, length):
    starts = [window_start(axis, length, i) for i in range(length)]
    stops = [window_stop(axis, length, i) for i in range(length)]
    assert [window(axis, length, i) for i in range(length)] == list(zip(starts, stops))
    for i in range(length):
        assert list(range(starts[i], stops[i])) == neighbors(axis, length, i)
    assert starts == sorted(starts)
    assert stops == sorted(stops)
    for key in range(-2, length + 2):
        assert first_query_starting_at(axis, length, key) == first(starts, lambda s, k=key: s >= k)
        assert first_query_stopping_after(axis, length, key) == first(stops, lambda s, k=key: s > k)


@settings(max_examples=300)
@given(axes(60))
def test_windows_of_dilated_axes(axis_and_length):
    axis, length = axis_and_length
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        group, i = query % axis.dilation, query // axis.dilation
        n = group_length(length, axis.dilation, group)
        start, stop = window_start(axis, n, i), window_stop(axis, n, i)
        assert 0 <= start <= i < stop <= n, "a query is its own neighbor"
        mask[query, [group + axis.dilation * j for j in range(start, stop)]] = True
    assert torch.equal(mask, axis_mask(axis, length))


@pytest.mark.parametrize(
    ("axis", "query", "expected"),
    [  # worked by hand for 8 tokens
        (Axis(3), 0, [0, 1, 2]),
        (Axis(3), 4, [3, 4, 5]),
        (Axis(3), 7, [5, 6, 7]),
        (Axis(4), 4, [2, 3, 4, 5]),
        (Axis(3, boundary="clip"), 0, [0, 1]),
        (Axis(3, boundary="clip"), 7, [6, 7]),
        (Axis(3, causal=True), 1, [0, 1]),
        (Axis(3, causal=True), 6, [4, 5, 6]),
        (Axis(4, stride=2, causal=True), 4, [2, 3, 4]),
        (Axis(4, stride=2), 4, [3, 4, 5, 6]),
        (Axis(4, stride=4), 5, [4, 5, 6, 7]),
        (Axis(3, dilation=2), 0, [0, 2, 4]),
        (Axis(3, dilation=2), 7, [3, 5, 7]),
    ],
)
def test_oracle_by_hand(axis, query, expected):
    assert neighbors(axis, 8, query) == expected


@pytest.mark.parametrize("rule", [window_start, window_stop])
@given(axes())
def test_a_rule_of_tensors_is_the_rule_of_their_elements(rule, case):
    axis, length = case
    token = torch.arange(length)
    n, place = group_length(length, axis.dilation, token % axis.dilation), token // axis.dilation
    one_by_one = [rule(axis, *pair) for pair in zip(n.tolist(), place.tolist())]
    assert rule(axis, n, place).tolist() == one_by_one


def first(values, accept):
    """The index of the first value that `accept` takes, or the number of values."""
    return next((i for i, value in enumerate(values) if accept(value)), len(values))
