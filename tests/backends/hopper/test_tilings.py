"""Tilings of the Hopper backend fit the chip, and are ranked by what its kernels would walk."""

from __future__ import annotations

from math import prod

import pytest
import torch

from vicinal.backends.hopper import tilings as hopper_tiles
from vicinal.backends.hopper import unsupported_anywhere
from vicinal.backends.hopper.layout import three
from vicinal.backends.hopper.tilings import (
    ROWS,
    SHARED_MEMORY,
    backward_configs,
    backward_shared,
    forward_configs,
    forward_shared,
)
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.window import window_start, window_stop
from vicinal.problem import Problem


def problem_of(lengths, head_dim=128, value_dim=None, dtype=torch.bfloat16, **arguments) -> Problem:
    neighborhood = Neighborhood.of(len(lengths), **arguments).resolve(lengths)
    value_dim = head_dim if value_dim is None else value_dim
    return Problem(1, lengths, 2, 2, head_dim, value_dim, dtype, torch.device("cpu"), (neighborhood,), 0.1)


@pytest.mark.parametrize("head_dims", [(32, 32), (64, 64), (96, 96), (128, 128), (192, 192), (192, 128), (256, 256)])
@pytest.mark.parametrize("lengths", [(1000,), (40, 50), (9, 20, 30)])
def test_forward_configs_fit(lengths, head_dims):
    problem = problem_of(lengths, *head_dims, kernel_size=7)
    for config in forward_configs(problem):
        keys = prod(config.key_tile) * (2 if "c" in config.variant else 1)
        assert prod(config.query_tile) * hopper_tiles.heads_together(config) == ROWS
        assert forward_shared(keys, *head_dims, config.stages, False) <= SHARED_MEMORY
        assert 3 - len(lengths) <= int(config.variant[0]) <= 2


@pytest.mark.parametrize("head_dims", [(32, 32), (64, 64), (96, 96), (128, 128), (192, 192), (192, 128), (256, 256)])
def test_backward_configs_fit(head_dims):
    for config in backward_configs(problem_of((40, 50), *head_dims, kernel_size=7)):
        assert prod(config.query_tile) == prod(config.key_tile) == ROWS
        assert backward_shared(*head_dims, config.stages) <= SHARED_MEMORY


@pytest.mark.parametrize(("kernel_size", "kv_heads", "packed"), [(7, 2, True), (7, 8, False), (33, 2, False)])
def test_heads_are_packed_where_the_box_shrinks(kernel_size, kv_heads, packed):
    """Small windows with several query heads for a key head; a box of a larger window is as many tiles either way."""
    neighborhood = Neighborhood.of(2, kernel_size).resolve((128, 128))
    problem = Problem(4, (128, 128), 8, kv_heads, 64, 64, torch.bfloat16, torch.device("cpu"), (neighborhood,), 0.125)
    assert (hopper_tiles.heads_together(forward_configs(problem)[0]) > 1) == packed


def test_a_stride_aligned_problem_walks_no_masked_tile():
    problem = problem_of((128, 128), kernel_size=32, stride=16)
    best = forward_configs(problem)[0]
    split = int(best.variant[0])
    for a, axis in enumerate((Axis(1), *problem.neighborhood.axes)):
        q, k = three(best.query_tile, 1)[a], three(best.key_tile, 1)[a]
        walked, full = hopper_tiles._axis_tiles(axis, (1, 128, 128)[a], q, k, a == split, best.stages - 1)
        assert walked == full


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    "axis", [Axis(13), Axis(16, 4), Axis(9, causal=True), Axis(9, boundary="clip"), Axis(40)], ids=str
)
def test_axis_tiles_counts_the_walk(axis, split):
    """Against a walk written out: every key tile from the pair's first key on, less those passed over."""
    length, query_tile, key_tile, passes = 41, 8, 4, 1
    walked = full = 0
    for start in range(0, length, query_tile * (1 + split)):
        queries = [
            range(min(start + w * query_tile, length - 1), max(min(start + (w + 1) * query_tile, length), 1))
            for w in range(1 + split)
        ]
        queries = [r if len(r) else range(length - 1, length) for r in queries]
        first = window_start(axis, length, queries[0][0])
        last = window_stop(axis, length, queries[-1][-1])
        for w, own in enumerate(queries):
            tiles = list(range(first, last, key_tile))
            if split:
                dropped = 0
                while dropped < passes:
                    tile = tiles[0] if w else tiles[-1]
                    if any(
                        window_start(axis, length, q) < tile + key_tile and tile < window_stop(axis, length, q)
                        for q in own
                    ):
                        break
                    tiles.remove(tile)
                    dropped += 1
            walked += len(tiles)
            full += sum(
                all(window_start(axis, length, q) <= t and t + key_tile <= window_stop(axis, length, q) for q in own)
                for t in tiles
            )
    assert hopper_tiles._axis_tiles(axis, length, query_tile, key_tile, split, passes) == (walked, full)


def test_backward_query_tiles_are_wide_enough_for_tma():
    for config in backward_configs(problem_of((9, 20, 30), kernel_size=(3, 5, 7))):
        assert config.query_tile[-1] * 4 >= 16


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"dtype": torch.float32}, "float16"),
        ({"head_dim": 48}, "head_dim"),
        ({"head_dim": 128, "value_dim": 64}, "head_dim"),
    ],
)
def test_unsupported_says_why(arguments, reason):
    assert reason in unsupported_anywhere(problem_of((20,), kernel_size=5, **arguments))
