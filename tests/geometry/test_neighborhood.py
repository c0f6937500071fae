"""Validation and encoding of neighborhoods."""

import os
import pickle
import re
import subprocess
import sys

import pytest
from hypothesis import given

from strategies import neighborhoods
from vicinal.geometry.neighborhood import Axis, Neighborhood, decode, encode


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"window": 0}, ValueError, "kernel_size must be at least 1 .* got 0"),
        ({"window": 2.5}, TypeError, "kernel_size must be an integer .* got 2.5"),
        ({"window": True}, TypeError, "kernel_size must be an integer"),
        ({"window": 2**62 + 1}, ValueError, r"kernel_size must be at most 2\*\*62 .* got 4611686018427387905"),
        ({"window": 3, "dilation": 2**64}, ValueError, r"dilation must be at most 2\*\*62"),
        ({"window": 3, "stride": 4}, ValueError, "stride must not exceed kernel_size, got stride 4 > 3"),
        ({"window": 3, "stride": 0}, ValueError, "stride must be at least 1"),
        ({"window": 3, "stride": "1"}, TypeError, "stride must be an integer"),
        ({"window": 3, "dilation": 0}, ValueError, "dilation must be at least 1"),
        ({"window": 3, "causal": 1}, TypeError, "is_causal must be a bool"),
        ({"window": 3, "boundary": "mirror"}, ValueError, "boundary must be one of"),
    ],
)
def test_bad_axis(values, error, message):
    with pytest.raises(error, match=message):
        Axis(**values)


@pytest.mark.parametrize(
    ("axis", "length", "message"),
    [
        (Axis(5), 4, "axis 1 has length 4, got kernel_size 5 . dilation 1 = 5"),
        (Axis(2, dilation=3), 5, "kernel_size 2 . dilation 3 = 6"),
        (Axis(None, stride=4), 3, "stride 4 > 3"),
        (Axis(1), 0, "length 0"),
        (Axis(None), 0, "length 0"),
    ],
)
def test_window_that_does_not_fit(axis, length, message):
    with pytest.raises(ValueError, match=message):
        axis.resolve(length, 1)


@pytest.mark.parametrize("edge", [{"boundary": "clip"}, {"causal": True}, {"causal": True, "boundary": "clip"}])
def test_window_that_a_border_cuts_may_exceed_the_axis(edge):
    assert Axis(9, dilation=2, **edge).resolve(4).window == 9


def test_none_means_the_whole_axis():
    assert Neighborhood.of(2, (None, 3)).resolve((7, 5)).window == (7, 3)


def test_wrong_number_of_values():
    with pytest.raises(ValueError, match=r"stride must be one value or 2 .* got 3"):
        Neighborhood.of(2, 3, stride=(1, 1, 1))


def test_wrong_number_of_axes():
    with pytest.raises(ValueError, match="rank must be an integer from 1 to 3, got 4"):
        Neighborhood.of(4, 3)
    with pytest.raises(ValueError, match="has 2 axes, the tokens have 1"):
        Neighborhood.of(2, 3).resolve((5,))


@pytest.mark.parametrize(
    ("neighborhood", "whole"),
    [
        (Neighborhood.of(2, (4, 5)), True),
        (Neighborhood.of(2, None), True),
        (Neighborhood.of(2, (4, 4)), False),
        (Neighborhood.of(2, None, is_causal=(True, False)), False),
        (Neighborhood.of(2, (4, 5), boundary="clip"), False),
    ],
)
def test_is_whole(neighborhood, whole):
    assert neighborhood.is_whole((4, 5)) is whole


@given(neighborhoods(2, 20), neighborhoods(2, 20))
def test_encoding_round_trips(one, two):
    pair = (one[0], two[0])
    assert decode(encode(pair), 2) == pair


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        (Axis(3), TypeError, "axes must be a tuple of Axis, got Axis"),
        ((3, 3), TypeError, r"axes must be a tuple of Axis, got \(3, 3\)"),
        ("33", TypeError, "axes must be a tuple of Axis, got '33'"),
        ((), ValueError, "axes must be 1 to 3, got 0"),
        ((Axis(3),) * 4, ValueError, "axes must be 1 to 3, got 4"),
    ],
)
def test_bad_axes(axes, error, message):
    with pytest.raises(error, match=message):
        Neighborhood(axes)


@pytest.mark.parametrize("given", [(2, 3), (7,), ((7, 7),), ((Axis(3),), 1)], ids=str)
def test_a_window_is_told_where_it_goes(given):
    words = ", ".join(map(repr, given))
    with pytest.raises(TypeError, match=rf"got {re.escape(words)}: for a window use Neighborhood.of"):
        Neighborhood(*given)


def test_a_list_of_axes_is_a_tuple():
    assert Neighborhood([Axis(3), Axis(5)]) == Neighborhood.of(2, (3, 5))
    assert hash(Neighborhood([Axis(3)])) == hash(Neighborhood.of(1, 3))


def test_none_is_the_default():
    assert Neighborhood.of(2, 3, None, None, None) == Neighborhood.of(2, 3)


def test_no_word_on_causality_is_not_causal():
    assert Neighborhood.of(2, 3, is_causal=None) == Neighborhood.of(2, 3, is_causal=False)


ELSEWHERE = """
import pickle, sys
found, resolved = pickle.load(sys.stdin.buffer)
print(found in {type(found)(found.axes)}, resolved == found and hash(resolved) == hash(found))
"""


def test_found_in_a_set_of_another_process():
    neighborhood = Neighborhood.of(2, 3, is_causal=True)
    assert hash(neighborhood) == hash(Neighborhood.of(2, 3, is_causal=True))  # and so it is cached
    sent = pickle.dumps((neighborhood, neighborhood.resolve((5, 5))))
    environment = os.environ | {"PYTHONHASHSEED": "17", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", ELSEWHERE], input=sent, env=environment, capture_output=True)
    assert ran.stdout.split() == [b"True", b"True"], ran.stderr.decode()


@pytest.mark.parametrize(
    ("axis", "length", "expected"),
    [
        (Axis(7, dilation=8), 56, Axis(7, dilation=8)),
        (Axis(7, dilation=8), 55, Axis(6, dilation=8)),
        (Axis(7, stride=6, dilation=2), 5, Axis(2, stride=2, dilation=2)),
        (Axis(7, dilation=8), 5, Axis(1, dilation=5)),
        (Axis(None, stride=4, dilation=3), 11, Axis(3, stride=3, dilation=3)),
        (Axis(7, causal=True), 3, Axis(7, causal=True)),
        (Axis(7, boundary="clip"), 3, Axis(7, boundary="clip")),
        (Axis(None), 3, Axis(None)),
    ],
)
def test_clamp_is_the_largest_that_fits(axis, length, expected):
    assert axis.clamp(length) == expected
    assert expected.least <= length
    expected.resolve(length)


def test_a_circle_has_no_order():
    with pytest.raises(ValueError, match="'wrap' has no order: is_causal must be False on such an axis, got True"):
        Neighborhood.of(2, 3, is_causal=(True, False), boundary="wrap")
