"""Tilings of the Hopper backend fit the chip, and are ranked by what its kernels would walk."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch

from vicinal.backends.gpu.shapes import sampled_walks
from vicinal.backends.hopper import tilings, unsupported_anywhere
from vicinal.backends.hopper.config import BackwardConfig, ForwardConfig
from vicinal.backends.hopper.estimate import seconds
from vicinal.backends.hopper.kernels.arguments import block_of
from vicinal.backends.hopper.tilings import (
    ROWS,
    SHARED_MEMORY,
    backward_configs,
    backward_shared,
    forward_configs,
    forward_shared,
    one_pass_configs,
    one_pass_steps,
)
from vicinal.bench.cases import SUITES
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.window import first_query_starting_at, first_query_stopping_after
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
        keys = prod(config.key_tile) * (2 if config.paired else 1)
        assert prod(config.query_tile) * config.heads == ROWS
        assert forward_shared(keys, *head_dims, config.stages, False) <= SHARED_MEMORY
        assert 0 <= config.split < len(lengths)


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
    assert (forward_configs(problem)[0].heads > 1) == packed


def test_a_stride_aligned_problem_walks_no_masked_tile():
    problem = problem_of((128, 128), kernel_size=32, stride=16)
    best = forward_configs(problem)[0]
    _, axes = sampled_walks(problem, False)[0]
    assert all(axis.walk[n, step].full == 1 for axis, n, step in zip(axes, best.query_tile, best.key_tile))


@pytest.mark.parametrize("configs", [forward_configs, backward_configs, one_pass_configs])
def test_the_length_does_not_matter(configs):
    found = [configs(problem_of((length,), kernel_size=129)) for length in (4_096, 4_194_304)]
    assert found[0][0] == found[1][0]


def test_configs_say_what_they_are():
    plain = ForwardConfig((8, 8), (8, 16), 0, 2)
    packed = ForwardConfig((2, 8), (8, 8), 1, 2, heads=4, paired=True, persistent=True)
    assert str(plain) == "8x8 queries by 8x16 keys, side by side along axis 0, 2 stages"
    words = "2x8 queries of 4 heads by two chunks of 8x8 keys, side by side along axis 1, 2 stages, persistent"
    assert str(packed) == words
    assert str(BackwardConfig((64,), (64,), 0, 3)) == "64 queries by 64 keys, side by side along axis 0, 3 stages"


def test_backward_query_tiles_are_wide_enough_for_tma():
    for config in backward_configs(problem_of((9, 20, 30), kernel_size=(3, 5, 7))):
        assert config.query_tile[-1] * 4 >= 16


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"dtype": torch.float32}, "float16"),
        ({"head_dim": 44}, "head_dim"),
        ({"head_dim": 264}, "head_dim"),
        ({"head_dim": 64, "value_dim": 4}, "value_dim"),
    ],
)
def test_unsupported_says_why(arguments, reason):
    assert reason in unsupported_anywhere(problem_of((20,), kernel_size=5, **arguments))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"additional": 3}, "additional keys"),
        ({"neighborhoods": (Neighborhood.of(1, 5), Neighborhood.of(1, 3))}, "of their own"),
    ],
)
def test_key_masks_that_are_not_taken(changes, reason):
    problem = replace(problem_of((20,), kernel_size=5), has_key_mask=True)
    assert unsupported_anywhere(problem) is None
    assert unsupported_anywhere(replace(problem, head_dim=8, value_dim=160)) is None
    assert reason in unsupported_anywhere(replace(problem, **changes))


def test_tiles_under_a_key_mask_are_of_keys_side_by_side():
    """And of 64 queries: their bits are listed so."""
    problem = replace(problem_of((40, 50), kernel_size=13), has_key_mask=True, heads=8)
    assert not any(c.paired or c.heads > 1 for c in forward_configs(problem))


# --- one pass ----------------------------------------------------------------------------------------------


def test_one_pass_for_the_head_dims_of_its_kernel():
    dims = [(32, 32), (64, 64), (96, 96), (128, 128), (192, 128), (256, 256)]
    able = [pair for pair in dims if one_pass_configs(problem_of((40, 50), *pair, kernel_size=7))]
    assert able == [(64, 64), (96, 96), (128, 128)]


@pytest.mark.parametrize(
    ("dims", "apart", "together"),
    [
        ((8, 8), (32, 32), None),
        ((40, 40), (64, 64), (64, 64)),
        ((72, 48), (96, 64), (128, 128)),
        ((96, 96), (96, 96), (128, 128)),
        ((136, 256), (192, 256), None),
    ],
)
def test_kernels_have_the_next_head_dim_that_there_is(dims, apart, together):
    problem = problem_of((40, 50), *dims, kernel_size=7)
    assert tilings.kernel_dims(problem) == apart
    assert bool(one_pass_configs(problem)) == (together is not None)
    assert together is None or tilings.kernel_dims(problem, one_pass=True) == together


@pytest.mark.parametrize("scale", [0.0, -0.1, 1e-38])
def test_one_pass_divides_by_no_scale_that_is_nothing(scale):
    assert not one_pass_configs(replace(problem_of((40, 50), kernel_size=7), scale=scale))


@pytest.mark.parametrize("head_dim", range(8, 257, 24))
@pytest.mark.parametrize("value_dim", range(8, 257, 31 * 8))
def test_any_head_dim_fits(head_dim, value_dim):
    problem = problem_of((40, 50), head_dim, value_dim, kernel_size=7)
    dims = tilings.kernel_dims(problem)
    for config in forward_configs(problem):
        keys = prod(config.key_tile) * (2 if config.paired else 1)
        assert forward_shared(keys, *dims, config.stages, dims[0] != dims[1]) <= SHARED_MEMORY
        assert config.heads == 1 or dims == (head_dim, value_dim)
    assert all(backward_shared(*dims, config.stages) <= SHARED_MEMORY for config in backward_configs(problem))


def test_one_pass_counts_the_queries_of_pairs_of_key_tiles():
    """Exactly, of walks from multiples of a block of queries; less where one of the two tiles has no scores."""
    problem = problem_of((2100, 3400), kernel_size=(9, 12))
    (axes,) = (n.axes for n in problem.neighborhoods)
    for config in one_pass_configs(problem):
        assert config.one_pass
        total = 1.0
        units = block_of((1, *config.query_tile))[1:]
        for a, (axis, length, unit) in enumerate(zip(axes, problem.lengths, units)):
            n, step = config.key_tile[a], config.query_tile[a]
            if a == config.split:
                walked = _steps(axis, length, 2 * n, step, unit)
                alone = 2 * walked - _steps(axis, length, n, step, unit)
                walked -= (1 - tilings.ALONE) * alone
            else:
                walked = _steps(axis, length, n, step, unit)
            total *= walked
        assert one_pass_steps(problem, config.query_tile, config.key_tile, config.split)[0] == pytest.approx(
            total, rel=0.02
        )


def _steps(axis, length, tile, step, unit):
    """Of all tiles of keys, over their queries from the last multiple of `unit` before them."""
    total = 0
    for first in range(0, length, tile):
        begin = first_query_stopping_after(axis, length, first) // unit * unit
        end = first_query_starting_at(axis, length, min(first + tile, length))
        total += -(-(end - begin) // step)
    return total


@pytest.mark.parametrize("name", [case.name for case in SUITES["gpu"].cases])
def test_short_lists_hold_what_counting_everything_finds(name, monkeypatch):
    """By the estimate, to a tenth."""
    problem = next(case for case in SUITES["gpu"].cases if case.name == name).problem("cpu")
    kinds = (("forward", forward_configs), ("backward", backward_configs), ("backward", one_pass_configs))
    short = [configs(problem)[:1] for _, configs in kinds]
    monkeypatch.setattr(tilings, "COMPACT", 1 << 20)
    monkeypatch.setattr(tilings, "LIKELY", 1 << 20)
    for (direction, configs), found in zip(kinds, short):
        for best, ours in zip(configs(problem)[:1], found):
            assert seconds(problem, direction, ours) <= 1.1 * seconds(problem, direction, best)
