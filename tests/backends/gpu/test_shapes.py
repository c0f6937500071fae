"""Shapes of tiles: few for images of any size, chosen by a bounded number of looks at the axes."""

from __future__ import annotations

import random
import sys
from math import prod

import pytest
import torch

from vicinal.backends.gpu.shapes import kind_of, shapes, shapes_of, tile_shapes
from vicinal.backends.hopper.tilings import backward_configs, forward_configs, one_pass_configs
from vicinal.backends.triton.tilings import best
from vicinal.bench.planning import PLANNERS, random_problem
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.walks import Walks
from vicinal.problem import Problem


def problem(lengths, window, heads=8, head_dim=64):
    neighborhoods = (Neighborhood.of(len(lengths), window).resolve(lengths),)
    device = torch.device("cpu")
    return Problem(1, lengths, heads, heads, head_dim, head_dim, torch.bfloat16, device, neighborhoods, 0.1)


def images(spans, window, **sizes):
    rng = random.Random(0)
    return [problem(tuple(rng.randint(*span) for span in spans), window, **sizes) for _ in range(40)]


FAMILIES = {
    "large images": (images([(120, 200), (160, 333)], 7, heads=2, head_dim=32), 3),
    "images": (images([(30, 50), (40, 84)], 7), 3),
    "sequences": (images([(2000, 20_000)], 127), 3),
    "videos": (images([(8, 24), (20, 40), (20, 60)], 5), 7),
}


@pytest.mark.parametrize(("family", "most"), FAMILIES.values(), ids=FAMILIES)
def test_images_of_any_size_share_triton_kernels(family, most):
    """And for small windows one or two more, whose products start from tiles of classes."""
    backward = [best(p, "backward")[0] for p in family]
    forward = [best(p, "forward")[0] for p in family]
    for kernel in (forward, [c.query for c in backward], [c.key_value for c in backward]):
        of_classes = {tiling for tiling in kernel if tiling.of_classes}
        assert len(set(kernel) - of_classes) <= most
        assert len(of_classes) <= (1 if most == 3 else 2)


@pytest.mark.parametrize(("family", "most"), FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("configs", [forward_configs, backward_configs, one_pass_configs])
def test_images_of_any_size_share_hopper_kernels(family, most, configs):
    assert len({found[0] for p in family if (found := configs(p))}) <= most


@pytest.mark.parametrize(("size", "rank"), [(64, 1), (64, 2), (128, 3)])
def test_shapes_have_all_tokens(size, rank):
    found = shapes_of(size, rank)
    assert len(set(found)) == len(found)
    assert all(prod(shape) == size for shape in found)


def test_short_axes_take_short_sides():
    kind = kind_of(problem((4, 200), (3, 31)), False)
    tile, step = shapes(kind, 64, 64)[0]
    assert tile[0] <= 4
    assert step[0] <= 4


def test_tiles_follow_the_window():
    """Where windows are long along one axis, tiles that are long along it share more keys."""
    tile = tile_shapes(kind_of(problem((1000, 1000), (3, 63)), False), 64, 64)[0][1]
    assert tile[1] > tile[0]


@pytest.mark.parametrize("seed", range(8))
def test_planning_looks_at_few_candidates(seed, monkeypatch):
    """Three tilings of each kernel and one of classes, and so many looks at axes, however long these are."""
    module = sys.modules["vicinal.backends.triton.tilings"]
    looks, estimates = [], []
    walk, one = Walks._walk, module.estimate
    monkeypatch.setattr(Walks, "_walk", lambda self, *own: looks.append(own) or walk(self, *own))
    monkeypatch.setattr(module, "estimate", lambda *own: estimates.append(own) or one(*own))
    given = random_problem(random.Random(seed), PLANNERS["hopper"].dtypes)
    best(given, "forward")
    best(given, "backward")
    assert len(estimates) <= 12
    assert len(looks) <= 200
    looks.clear()
    for configs in (forward_configs, backward_configs, one_pass_configs):
        configs(given)
    assert len(looks) <= 200
