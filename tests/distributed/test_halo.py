"""Halo plans against the definition: what every query needs comes, once, from where it is."""

from itertools import combinations_with_replacement, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import neighborhoods
from vicinal.distributed.halo import NEVER, Halo, chunks, common, halo, volume
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import check_span
from vicinal.reference import neighbors

BORDERS = {
    "shift": {},
    "clip": {"boundary": "clip"},
    "causal": {"causal": True},
    "wrap": {"boundary": "wrap"},
}


def tokens(box):
    return product(*(range(*own) for own in box))


def needed_along(axis, length, own):
    """By the definition: the least interval of the keys of these queries."""
    each = [key for query in range(*own) for key in neighbors(axis, length, query)]
    return min(each), max(each) + 1


def check(plan: Halo):
    """Every rank gets the box that it needs, each token once, of a rank that holds it; nothing else is sent."""
    for rank, queries in enumerate(plan.shards):
        if not volume(queries):
            assert plan.keys(rank) is None
            assert plan.tokens_received(rank) == 0
            assert plan.parts(rank) == []
            continue
        axes = zip(zip(*(n.axes for n in plan.neighborhoods)), plan.lengths, queries)
        hulls = [[needed_along(axis, length, own) for axis in each] for each, length, own in axes]
        keys = tuple((min(a for a, _ in each), max(b for _, b in each)) for each in hulls)
        assert plan.keys(rank) == keys
        arrived = []
        for other, pieces in enumerate(plan.receives(rank)):
            assert other != rank or not pieces
            for piece in [*pieces, *(plan.pieces(rank, rank) if other == rank else [])]:
                assert common(piece.box, plan.shards[other]) == piece.box
                for here, there in zip(tokens(piece.box), tokens(piece.placed), strict=True):
                    assert here == tuple(n % length for n, length in zip(there, plan.lengths))
                arrived += tokens(piece.placed)
        assert sorted(arrived) == sorted(tokens(keys))
        assert plan.tokens_sent(rank) == sum(
            piece.tokens for other in range(len(plan.shards)) for piece in plan.receives(other)[rank]
        )
        for least in (0.0, 0.97, NEVER):
            parts = plan.parts(rank, least)
            assert sorted(token for part in parts for token in tokens(part.queries)) == sorted(tokens(queries))
            for i, part in enumerate(parts):
                assert common(part.keys, keys) == part.keys
                for n in plan.neighborhoods:
                    for index, axis in enumerate(n.over(plan.spans(part)).axes):
                        check_span(axis, index)
                if part.inside:
                    assert i == 0
                    for length, key, own in zip(plan.lengths, part.keys, queries):
                        assert own == (0, length) or common((key,), (own,)) == (key,)


def small_axes(length, border):
    longest = length if border in ("shift", "wrap") else length + 2
    for dilation in range(1, 4):
        for window in range(1, longest + 1):
            if border in ("shift", "wrap") and window * dilation > length:
                break
            if border == "wrap" and length % dilation:
                break
            yield from (Axis(window, s, dilation, **BORDERS[border]) for s in {1, min(2, window), window})


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("length", [1, 4, 6])
def test_every_small_axis(border, length):
    for axis in small_axes(length, border):
        for cuts in combinations_with_replacement(range(length + 1), 2):
            shards = tuple((own,) for own in pairwise((0, *cuts, length)))
            check(halo((Neighborhood((axis,)),), (length,), shards))


@st.composite
def grids(draw):
    rank = draw(st.integers(1, 3))
    neighborhood, lengths = draw(neighborhoods(rank, {1: 24, 2: 8, 3: 5}[rank], circular=True))
    every = (neighborhood,)
    if draw(st.booleans()) and not any(neighborhood.causal):
        every += (Neighborhood(tuple(Axis(a.window, 1, a.dilation, boundary=a.boundary) for a in neighborhood.axes)),)
    cuts = [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=2))}) for n in lengths]
    return every, lengths, tuple(product(*(list(pairwise(own)) for own in cuts)))


@settings(max_examples=100)
@given(grids())
def test_grids_of_up_to_three_axes(case):
    check(halo(*case))


def test_the_queries_inside_are_all_that_need_no_halo():
    for border in BORDERS:
        for axis in small_axes(9, border):
            if axis.dilation > 1:  # there, the largest interval that has no other
                continue
            plan = halo((Neighborhood((axis,)),), (9,), (((0, 2),), ((2, 7),), ((7, 9),)))
            for rank, (own,) in enumerate(plan.shards):
                found = [q for q in range(*own) if all(own[0] <= key < own[1] for key in neighbors(axis, 9, q))]
                inside = plan.inside(rank)
                assert found == ([] if inside is None else list(range(*inside[0])))


def test_a_video_by_hand():
    """30x48x80 in time over 2 ranks, window 18x24x24: each needs 3 more frames of the other's 15, whole ones."""
    window = Neighborhood.of(3, (18, 24, 24))
    shards = tuple((own, (0, 48), (0, 80)) for own in chunks((0, 30), 2))
    plan = halo((window,), (30, 48, 80), shards)
    assert [plan.keys(rank)[0] for rank in (0, 1)] == [(0, 23), (6, 30)]
    assert [plan.tokens_received(rank) for rank in (0, 1)] == [8 * 48 * 80, 9 * 48 * 80]


def test_one_sided_where_it_is_causal():
    plan = halo((Neighborhood.of(1, 8, is_causal=True),), (32,), tuple((own,) for own in chunks((0, 32), 4)))
    assert [plan.tokens_received(rank) for rank in range(4)] == [0, 7, 7, 7]
    assert [len([1 for pieces in plan.receives(rank) if pieces]) for rank in range(4)] == [0, 1, 1, 1]


def test_over_more_than_one_hop():
    plan = halo((Neighborhood.of(1, 21),), (40,), tuple((own,) for own in chunks((0, 40), 8)))
    assert [[len(pieces) for pieces in plan.receives(4)]] == [[0, 0, 1, 1, 0, 1, 1, 0]]


def test_around_a_circle():
    plan = halo((Neighborhood.of(1, 5, boundary="wrap"),), (12,), tuple((own,) for own in chunks((0, 12), 3)))
    assert [plan.tokens_received(rank) for rank in range(3)] == [4, 4, 4]
    assert plan.pieces(2, 0)[0].box == ((10, 12),)
    assert plan.pieces(2, 0)[0].placed == ((-2, 0),)


@pytest.mark.parametrize("shards", [(((0, 4),),), (((0, 4),), ((3, 8),)), (((0, 4),), ((4, 9),))])
def test_shards_that_are_not_all_tokens_once(shards):
    with pytest.raises(ValueError, match="shards must hold every token of"):
        halo((Neighborhood.of(1, 3),), (8,), shards)


@pytest.mark.parametrize(("n", "parts"), [(8, 2), (7, 3), (5, 4), (2, 4)])
def test_chunks_are_torchs(n, parts):
    import torch

    cut = [len(t) for t in torch.arange(n).chunk(parts)]
    assert [stop - start for start, stop in chunks((0, n), parts)] == cut + [0] * (parts - len(cut))
