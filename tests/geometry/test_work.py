"""Counts against the oracle's mask."""

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import neighborhoods, tiles
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import groups, key_interval
from vicinal.geometry.work import backward_flops, computed_scores, forward_flops, useful_scores, waste
from vicinal.reference import neighborhood_mask


@given(st.integers(1, 3).flatmap(lambda rank: neighborhoods(rank, {1: 40, 2: 9, 3: 5}[rank])))
def test_useful_scores_count_the_mask(case):
    neighborhood, lengths = case
    assert useful_scores(neighborhood, lengths) == int(neighborhood_mask(neighborhood, lengths).sum())


@given(neighborhoods(2, 12), st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(1, 6))
def test_computed_scores_count_tiles(case, query_tile, key_tile):
    neighborhood, lengths = case
    per_axis = []
    for axis, length, size in zip(neighborhood.axes, lengths, query_tile):
        count = 0
        for group in groups(axis, length):
            for queries in tiles(group.length, size):
                start, stop = key_interval(axis, group.length, queries)
                count += len(range(start, stop, key_tile))
        per_axis.append(count * size * key_tile)
    assert computed_scores(neighborhood, lengths, query_tile, (key_tile, key_tile)) == prod(per_axis)


def test_waste_of_the_designs_example():
    # 2-D window 80, tiles of 8x16 queries and 8x16 keys: inner tiles compute 88 x 96 scores a query for 80 x 80 useful;
    # at a border windows are shifted inward and coincide, so the whole is a little better.
    axis = Axis(80)
    spans = [key_interval(axis, 256, (128, 128 + size)) for size in (8, 16)]
    assert [stop - start for start, stop in spans] == [87, 95]
    ratio = waste(Neighborhood((axis, axis)), (256, 256), (8, 16), (8, 16))
    assert 1.2 < ratio < 88 * 96 / (80 * 80)


def test_waste_of_several_groups_in_a_tile():
    # 20 tokens in 2 groups of 4 and 4 of 3: a tile of 4x4 for each kind, against one tile of keys; 3 keys a query.
    neighborhood = Neighborhood((Axis(3, dilation=6),))
    assert waste(neighborhood, (20,), (4, 4), (4, 4), unfolded=0) == 2 * 16 * 16 / (20 * 3)
    assert waste(neighborhood, (20,), (16,), (16,)) == 6 * 16 * 16 / (20 * 3)


@pytest.mark.parametrize(
    ("count", "expected"), [(forward_flops, 2 * 10 * (4 + 6)), (backward_flops, 2 * 10 * (12 + 12))]
)
def test_flops(count, expected):
    assert count(10, 4, 6) == expected
