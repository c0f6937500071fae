"""Which classes of tiles there are, and for which problems."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from classes_calls import call, of
from triton_calls import check
from vicinal.backends.triton import classes
from vicinal.backends.triton.classes import classes_of, have_classes, is_ahead
from vicinal.backends.triton.config import Tiling
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import alike, key_interval, query_interval
from vicinal.problem import Problem

pytestmark = pytest.mark.usefixtures("interpreting", "classes_everywhere")


@pytest.mark.parametrize(("window", "steps", "ahead"), [(13, 7, False), (33, 25, True)])
def test_large_windows_forward_and_many_steps(window, steps, ahead, monkeypatch):
    """Tiles of classes where scores start from masks, forward only, and a step ahead from many steps on."""
    monkeypatch.setattr(classes, "LEAST_TILES", 4)
    monkeypatch.setattr(classes, "MASKED", {("forward", 64, 2), ("query", 64, 2)})
    tile, step = (8, 8), (1, 64)
    neighborhood = of(2, window).resolve((128, 128))
    problem = Problem(4, (128, 128), 8, 8, 64, 64, torch.bfloat16, torch.device("cpu"), (neighborhood,), 0.125)
    found = classes_of(problem, tile, step, False)
    assert found.steps == steps
    assert is_ahead(found, Tiling(tile, step), True) is ahead
    assert have_classes(problem, Tiling(tile, step, of_classes=True), "forward")
    assert have_classes(problem, Tiling(tile, step, of_classes=True), "query") is not ahead
    assert not is_ahead(found, Tiling(tile, step, warps=1), True)
    assert not is_ahead(found, Tiling(tile, step), False)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tile", [2, 4, 16])
@pytest.mark.parametrize("length", range(24, 60, 5))
@pytest.mark.parametrize(
    "axis",
    [Axis(5), Axis(8), Axis(4, causal=True), Axis(6, boundary="clip"), Axis(3, dilation=3)],
    ids=["odd", "even", "causal", "clipped", "dilated"],
)
def test_tiles_of_a_class_are_alike(axis, length, tile, inverse):
    """Tile by tile: where windows and boxes are, from the tile's first token on."""
    own = classes_of(_problem(axis, length), (tile,), (16,), inverse)
    (before,), (after,) = own.before, own.after
    found: dict[int, tuple] = {}
    for n, kind in enumerate(alike(axis, length)):
        tiles = -(-kind.length // tile)
        for place in range(tiles):
            at_end = place >= before and tiles - 1 - place < after
            number = n * (before + 1 + after) + (before + tiles - place if at_end else min(place, before))
            assert number < own.counts[0]
            what = seen(axis, kind.length, place * tile, tile, inverse)
            assert found.setdefault(number, what) == what


def _problem(axis, length):
    drawn = call((length,), Neighborhood((axis,)))
    return Problem.of(drawn.inputs(torch.float32, "cpu"), drawn.neighborhoods, 1.0)


def seen(axis, length, first, tile, inverse):
    """What a tile's bias tiles depend on."""
    tokens = range(first, min(first + tile, length))
    interval = query_interval if inverse else key_interval
    start, stop = interval(axis, length, (tokens[0], tokens[-1] + 1))
    return start - first, stop - start, [tuple(n - first for n in interval(axis, length, (t, t + 1))) for t in tokens]


def test_only_where_tiles_share_them(monkeypatch):
    monkeypatch.setattr(classes, "LEAST_TILES", 4)
    drawn = call((40,), of(1, 5))
    few = Problem.of(drawn.inputs(torch.float32, "cpu"), drawn.neighborhoods, 1.0)
    tiling = Tiling((16,), (16,), of_classes=True)
    assert not have_classes(few, tiling, "forward")
    many = replace(few, batch=64)
    assert have_classes(many, tiling, "forward")
    assert not have_classes(replace(many, scale=-1.0), tiling, "forward")
    assert not have_classes(replace(many, scale=1e-39), tiling, "forward")


def test_no_batch_entries_abreast_under_a_key_mask():
    """Each has keys of its own that are there."""
    drawn = call((40,), of(1, 5), batch=64, bias=False)
    problem = Problem.of(drawn.inputs(torch.float32, "cpu"), drawn.neighborhoods, 1.0)
    abreast = Tiling((16,), (16,), of_classes=True, abreast=2)
    assert have_classes(problem, abreast, "query")
    masked = replace(problem, has_key_mask=True)
    assert have_classes(masked, replace(abreast, abreast=1), "query")
    assert not have_classes(masked, abreast, "query")


@pytest.mark.parametrize("masked", [(0.5, 0.0), (0.0, 0.5)])
def test_what_scores_start_from_is_of_the_problem(masked):
    """Boxes are of 64 tokens, four steps; under a key mask of one more, of none: what is kept is not the same."""
    drawn = call((8, 8), of(2, 5), bias=False)
    for share in masked:
        check(replace(drawn, masked=share), tiling=Tiling((4, 4), (1, 16), of_classes=True))
