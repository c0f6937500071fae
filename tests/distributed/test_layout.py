"""What a layout knows of the ranks that hold a map."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from vicinal.distributed.halo import LEAST_INSIDE, Halo, shards_of
from vicinal.distributed.layout import Layout, _on_one_host
from vicinal.distributed.style import SplitMap
from vicinal.geometry.neighborhood import Neighborhood


@pytest.mark.parametrize(
    ("local", "ranks", "one"), [(None, [0, 5], True), ("4", [0, 3], True), ("4", [4, 7], True), ("4", [3, 4], False)]
)
def test_hosts_are_as_torchrun_numbers_ranks(monkeypatch, local, ranks, one):
    if local is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert _on_one_host(ranks) is one


@pytest.mark.parametrize(("window", "near", "far"), [(5, 2, 2), (31, 1, 2), (199, 1, 1)])
def test_a_second_launch_is_for_many_queries_inside_or_a_slow_link(window, near, far):
    lengths = (200, 40)
    shards = shards_of(lengths, (2, 1))
    here = Layout(None, lengths, ((0, 0),), shards, 0, None)
    plan = Halo((Neighborhood.of(2, (window, 7)).resolve(lengths),), lengths, shards)
    assert len(plan.parts(0, here.least_inside)) == near
    there = replace(here, on_one_host=False)
    assert there.least_inside == LEAST_INSIDE
    assert len(plan.parts(0, there.least_inside)) == far


def test_a_dimension_of_the_mesh_is_named_once():
    mesh = SimpleNamespace(mesh_dim_names=("cp",), ndim=1)
    with pytest.raises(ValueError, match="axes must name every dimension of the mesh once, got {'cp': 0, 0: 1}"):
        Layout.of(mesh, {"cp": 0, 0: 1}, (8, 8))


@pytest.mark.parametrize("axis", [-1, 3, "0"])
def test_modules_are_split_along_spatial_axes(axis):
    with pytest.raises(ValueError, match=f"axis must be a spatial axis, from 0 to 2, got {axis!r}"):
        SplitMap(axis)
