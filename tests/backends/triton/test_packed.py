"""Maps of different sizes in one launch, against one call for each; where their tiles are of classes, and which."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch

import vicinal
from vicinal.backends.triton import classes, packed
from vicinal.backends.triton.classes import classes_of_maps, maps_may_have_classes
from vicinal.backends.triton.config import Tiling
from vicinal.geometry.maps import Maps
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import key_interval, query_interval
from vicinal.problem import Inputs, PackedProblem

of = Neighborhood.of
device = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.usefixtures("interpreting")
VARLEN = {1: vicinal.na1d_varlen, 2: vicinal.na2d_varlen}


def packed_problem(lengths, neighborhoods, dtype=torch.bfloat16, dim=64):
    tokens = torch.empty(sum(map(prod, lengths)), 8, dim, dtype=dtype)
    return PackedProblem.of(Inputs(tokens, tokens, tokens), Maps.of(lengths, neighborhoods), dim**-0.5)


LINES = ([(33,), (7,), (0,), (5,), (21,)], 5, (2, 1), Tiling((8,), (16,), of_classes=True))
PLANES = ([(5, 7), (3, 4), (0, 3), (2, 11)], (2, 3), (4, 2), Tiling((2, 4), (1, 16), of_classes=True))


@pytest.mark.parametrize(
    ("lengths", "window", "heads", "tiling", "wanted"),
    [(*LINES, "query key value"), (*LINES, "key"), (*PLANES, "query key value")],
    ids=["lines", "lines, of keys alone", "planes"],
)
def test_in_one_launch(lengths, window, heads, tiling, wanted, monkeypatch):
    check(lengths, window, heads, tiling, wanted, monkeypatch)


def check(lengths, window, heads, tiling, wanted, monkeypatch, with_lse=True):
    """Results, and the gradients that are wanted, are those of plain torch operations; `with_lse`: some are of its."""
    monkeypatch.setattr(packed, "_tiling", lambda *_: tiling)
    monkeypatch.setattr(classes, "ENOUGH_PROGRAMS", 1)  # so programs take several heads
    call, total = VARLEN[len(lengths[0])], sum(map(prod, lengths))
    each = zip(("query", "key", "value"), (heads[0], heads[1], heads[1]))
    leaves = [torch.randn(total, h, 8, device=device, requires_grad=name in wanted) for name, h in each]
    found = call(*leaves, lengths, window, return_lse=True, backend="triton")
    expected = call(*leaves, lengths, window, return_lse=True, backend="torch")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    above = [torch.randn_like(t) for t in found[: 1 + with_lse]]
    leaves = [t for t in leaves if t.requires_grad]
    grads = (torch.autograd.grad(results[: 1 + with_lse], leaves, above) for results in (found, expected))
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "lines",
    [pytest.param(LINES, id="classes"), pytest.param((*LINES[:3], Tiling((8,), (16,))), id="boxes")],
)
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["more each time", "fewer"])
def test_other_gradients_of_the_same_maps(lines, order, monkeypatch):
    """Launches are prepared once for maps: not for which gradients an earlier call wanted, or had from above."""
    for wanted, with_lse in [("value", False), ("key value", False), ("query key value", True)][order]:
        check(*lines, wanted, monkeypatch, with_lse)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("window", [1, 4, 7, 13])
@pytest.mark.parametrize("tile", [2, 8])
def test_tiles_of_a_class_are_alike(tile, window, inverse):
    """Of lines of all lengths together, tile by tile, and no box is longer than what there is room for."""
    tiling = Tiling((tile,), (16,), of_classes=True)
    axis = Axis(window)
    own = classes_of_maps(Neighborhood((axis,)), tiling, inverse)
    found: dict[int, tuple] = {}
    for length in range(window, 4 * window + 3 * tile):
        for first in range(0, length, tile):
            number = min(first // tile, own.before[0]) * own.after[0] + min(length - first, own.after[0]) - 1
            assert number < own.counts[0]
            interval, tokens = query_interval if inverse else key_interval, range(first, min(first + tile, length))
            start, stop = interval(axis, length, (tokens[0], tokens[-1] + 1))
            assert stop - start <= 16 * own.steps
            each = [tuple(n - start for n in interval(axis, length, (t, t + 1))) for t in tokens]
            assert found.setdefault(number, (stop - start, each)) == (stop - start, each)


LENGTHS = [(40, 40), (20, 63)]


@pytest.mark.parametrize(
    ("kernel", "expected"), [("forward", True), ("query", False), ("key_value", True)], ids=lambda x: str(x)
)
def test_small_windows_are_of_classes_where_those_are_faster(kernel, expected):
    problem = packed_problem(LENGTHS * 16, [of(2, 7)])
    assert packed._tiling(problem, kernel).of_classes == expected
    assert not packed._tiling(packed_problem(LENGTHS * 16, [of(2, 7, dilation=(1, 2))]), kernel).of_classes


def test_maps_whose_windows_shift_have_classes():
    alike = packed_problem(LENGTHS, [of(2, 7)])
    assert maps_may_have_classes(alike.maps, alike.typical)
    assert not maps_may_have_classes(alike.maps, replace(alike.typical, scale=-1.0))


@pytest.mark.parametrize(
    ("neighborhoods", "dtype"),
    [
        ([of(2, 7), of(2, 5)], torch.bfloat16),
        ([of(2, 7, 2)], torch.bfloat16),
        ([of(2, 7, is_causal=True)], torch.bfloat16),
        ([of(2, 7, boundary="clip")], torch.bfloat16),
        ([of(2, 7)], torch.float32),
    ],
    ids=["several windows", "stride", "causal", "clip", "float32"],
)
def test_others_have_none(neighborhoods, dtype):
    other = packed_problem(LENGTHS, neighborhoods, dtype)
    assert not maps_may_have_classes(other.maps, other.typical)


def test_large_windows_have_too_many_classes():
    tiling = Tiling((8, 8), (1, 64), of_classes=True)
    assert classes_of_maps(of(2, 13), tiling, False) is not None
    assert classes_of_maps(of(2, 41), tiling, False) is None


@pytest.mark.parametrize("kernel", ["forward", "query", "key_value"])
@pytest.mark.parametrize(
    ("lengths", "neighborhood"), [([(300,)], of(1, 7, dilation=9)), ([(9, 20, 20)], of(3, 3, dilation=2))]
)
def test_no_tile_holds_several_dilation_groups(lengths, neighborhood, kernel):
    """The best of equal maps might."""
    tiling = packed._tiling(packed_problem(lengths * 32, [neighborhood]), kernel)
    assert tiling.unfolded is None
    assert not tiling.of_classes


def test_bounds_are_checked_only_where_a_map_is_small():
    tiling = Tiling((8, 8), (2, 16))
    assert packed._may_pass_end(Maps.of([(40, 40), (14, 15)], [of(2, 7)]), tiling, False)
    assert not packed._may_pass_end(Maps.of([(40, 40), (0, 3), (14, 16)], [of(2, 7)]), tiling, False)


@pytest.mark.parametrize(
    ("lengths", "window", "rest"),
    [
        ([(13,), (0,), (6,)], [(5,), (1,), (4,)], {}),
        ([(5, 7), (9, 4), (3, 4)], 3, {"dilation": (1, 2), "is_causal": (True, False), "clamp": True}),
    ],
    ids=["lines", "planes"],
)
def test_maps_of_different_sizes_in_one_launch(lengths, window, rest):
    call = {1: vicinal.na1d_varlen, 2: vicinal.na2d_varlen}[len(lengths[0])]
    total = sum(map(prod, lengths))
    leaves = [torch.randn(total, h, 8, device=device, requires_grad=True) for h in (2, 1, 1)]
    found = call(*leaves, lengths, window, return_lse=True, backend="triton", **rest)
    expected = call(*leaves, lengths, window, return_lse=True, backend="torch", **rest)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    above = [torch.randn_like(t) for t in found]
    grads = (torch.autograd.grad(results, leaves, above) for results in (found, expected))
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)
