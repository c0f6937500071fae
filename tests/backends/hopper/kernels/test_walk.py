"""Walks of the Hopper kernels, in plain Python: both warpgroups must free every tile of a ring, once.

A tile that a warpgroup never frees stops the program for good, which no test of results tells from one that is slow.
"""

from __future__ import annotations

import heapq
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton.experimental.gluon")

import plain_gluon
from vicinal.backends.hopper import onepass
from vicinal.backends.hopper.kernels.arguments import Constants, Grid, GroupAxes
from vicinal.backends.hopper.tilings import one_pass_configs
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.tiles import reach
from vicinal.geometry.window import window_start, window_stop
from vicinal.problem import Inputs, Problem

WALK = plain_gluon.module("walk")


@pytest.fixture
def passed_over(monkeypatch):
    """Numbers of tiles that `walk` passes over, in their order; nothing is waited for."""
    found = []

    def pass_over_tiles(rings, t, count, C):
        found.extend(range(t, t + count))
        return t + count

    monkeypatch.setattr(plain_gluon.module("walk"), "pass_over_tiles", pass_over_tiles)
    return found


def walked(axes, C, tile, warpgroup, freed):
    """As `backward_keys` walks: how many tiles there are, and where those that are read; `freed` gets the order."""
    freed.clear()
    read, walk = [], plain_gluon.module("walk")
    box = walk.union(tile, axes, C)
    loaded = []
    total = walk.fill(lambda arguments, at, t, C: loaded.append(at), None, box, 0, C)
    x = walk.beside(walk.first_of(tile, C), warpgroup, C)
    share = walk.share_of(x[C.split], box, axes, warpgroup, C)
    a, b, w = box.outer[0], box.inner[0], share.first
    t = walk.pass_over_tiles(None, 0, share.before, C)
    for _ in range(share.count):
        a, b, w, t = walk.on_line((a, b, w), t, None, box, share, C)
        assert walk.in_order(a, b, w, C) == loaded[t]
        read.append(loaded[t])
        freed.append(t)
        t += 1
        w += walk.walk_order(C.step, C)[2]
    walk.pass_over_tiles(None, t, share.skip - share.before, C)
    return total, read


@st.composite
def spans(draw):
    """Lengths of two axes, windows, and the queries and keys that are given: all keys that they need, or more."""
    axes = []
    for _ in range(2):
        length = draw(st.integers(8, 60))
        window = draw(st.integers(2, length))
        stride = draw(st.integers(1, min(window, 9)))
        queries = sorted(draw(st.lists(st.integers(0, length), min_size=2, max_size=2, unique=True)))
        axis = Neighborhood.of(1, window, stride=stride, is_causal=draw(st.booleans())).resolve((length,)).axes[0]
        low, high = reach(axis, length, tuple(queries))
        keys = draw(st.integers(0, low)), draw(st.integers(high, length))
        axes.append((axis, length, queries, keys))
    return axes


@pytest.mark.parametrize(("tile", "step", "split"), [((1, 8, 8), (1, 8, 8), 1), ((1, 4, 4), (1, 8, 8), 2)], ids=str)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(axes=spans(), stages=st.integers(2, 3))
def test_both_warpgroups_free_every_tile_of_keys_that_few_queries_reach(axes, stages, tile, step, split, passed_over):
    C = Constants(
        64, 64, tile, step, split, stages, 2, True, True, False, False, inverse=True, parts=True, aligned=False
    )  # fmt: skip
    starts, counts = [q[0] for _, _, q, _ in axes], [q[1] - q[0] for _, _, q, _ in axes]
    key_starts, key_counts = [k[0] for *_, k in axes], [k[1] - k[0] for *_, k in axes]
    lengths = [n for _, n, _, _ in axes]
    rule_axes = [axis for axis, *_ in axes]
    group = GroupAxes(
        (1, *lengths, 0, *starts, 1, *counts, 0, *key_starts, 1, *key_counts),
        (1, *(a.window for a in rule_axes)),
        (1, *(a.stride for a in rule_axes)),
        (0, *(2 if a.causal else 0 for a in rule_axes)),
    )
    for row in range(0, key_counts[0], tile[1] * (2 if split == 1 else 1)):
        for column in range(0, key_counts[1], tile[2] * (2 if split == 2 else 1)):
            number = (0, row // (tile[1] * (1 + (split == 1))), column // (tile[2] * (1 + (split == 2))))
            for warpgroup in (0, 1):
                total, read = walked(group, C, number, warpgroup, passed_over)
                assert passed_over == list(range(total))
                x = [row + warpgroup * tile[1] * (split == 1), column + warpgroup * tile[2] * (split == 2)]
                needed = reaching(x, tile[1:], axes)
                covered = {(a + i, b + j) for _, a, b in read for i in range(step[1]) for j in range(step[2])}
                assert needed <= covered


def reaching(first, tile, axes):
    """The given queries that attend to a key of a tile, by the definition; positions among those given."""
    found = []
    for x, size, (axis, length, queries, keys) in zip(first, tile, axes):
        own = range(keys[0] + x, min(keys[0] + x + size, keys[1]))
        each = set()
        for query in range(*queries):
            start, stop = window_start(axis, length, query), window_stop(axis, length, query)
            if own and start < own.stop and own.start < stop:
                each.add(query - queries[0])
        found.append(each)
    return {(a, b) for a in found[0] for b in found[1]}


@given(st.integers(1, 300), st.integers(1, 4), st.integers(0, 40))
def test_every_item_has_its_turn(tiles, heads, ends):
    """And all but the last head's keep their places."""
    grid = Grid((1, 1, tiles), heads, heads, 1, heads * tiles, 2 * ends if 2 * ends < tiles else 0)
    turns = [WALK.ordered(number, grid, SimpleNamespace(rank=1)) for number in range(grid.items)]
    assert sorted(turns) == list(range(grid.items))
    others = (heads - 1) * tiles
    assert turns[:others] == list(range(others))


@pytest.mark.parametrize(("length", "window", "heads"), [(32768, 2048, 1), (32768, 2048, 4), (65536, 4096, 1)])
def test_programs_end_together(length, window, heads):
    """In the order of `ordered`, where who is done takes what is next, the last ends little after the mean."""
    tokens = torch.empty(1, length, heads, 128, dtype=torch.bfloat16, device="meta")
    problem = Problem.of(Inputs(tokens, tokens, tokens), (Neighborhood.of(1, window).resolve((length,)),), 1.0)
    (part,) = onepass.launchers(problem, one_pass_configs(problem)[0], (tokens.stride(),) * 3, has_grad_lse=False)
    scalars, groups, _, C = part.gradients.launch.arguments
    work = WALK.work_of(scalars, groups, None, None)

    def steps(number):
        item = WALK.locate(number, work.grid.tiles, work.grid.kv_heads, groups, C)
        return WALK.whole(WALK.union(item.tile, work.axes, C), C).count

    def last_over_mean(numbers):
        ends = [0] * 132
        for number in numbers:
            heapq.heappush(ends, heapq.heappop(ends) + steps(number))
        return max(ends) / (sum(ends) / len(ends))

    numbers = range(work.grid.items)
    ordered = last_over_mean(WALK.ordered(number, work.grid, C) for number in numbers)
    assert ordered < 1.06
    assert ordered < last_over_mean(numbers)
