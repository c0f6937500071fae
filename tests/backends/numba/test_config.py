"""Configurations: which tiles there are, in which order, how they are told; planning whatever the lengths."""

import time
from dataclasses import replace
from math import prod

import pytest
import torch

from strategies import tiles, whole
from vicinal.backends.numba import BACKEND, config, plan
from vicinal.backends.numba.config import NumbaConfig, head_sets, shapes
from vicinal.backends.numba.kernels import vectors
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import key_interval
from vicinal.problem import Problem, Wanted


def problem(neighborhoods, lengths, heads=1):
    """Of any size: without tensors."""
    dtype, device = torch.float32, torch.device("cpu")
    return Problem(1, lengths, heads, heads, 64, 64, dtype, device, tuple(neighborhoods), 1.0)


def test_a_tile_is_a_vector():
    assert config.LANES == vectors.LANES


@pytest.mark.parametrize("lengths", [(100,), (5,), (64, 48), (3, 64), (9, 9, 9)])
def test_tiles_could_not_be_longer(lengths):
    axes = (Axis(3),) * len(lengths)
    found = [tile for tile, _ in shapes(axes, lengths)]
    assert len(set(found)) == len(found)
    for tile in found:
        assert prod(tile) <= 16
        for axis, length in enumerate(lengths):
            longer = tuple(n + (i == axis) for i, n in enumerate(tile))
            assert prod(longer) > 16 or longer[axis] > length


def test_configs_tell_the_box_of_keys():
    neighborhood = Neighborhood((Axis(13), Axis(5, causal=True)))
    found = BACKEND.configs(problem([neighborhood], (64, 48)), "forward")
    assert len(found) > 3
    for own in found:
        for axis, length, size, box in zip(neighborhood.axes, (64, 48), own.query_tile, own.key_tile):
            boxes = [key_interval(axis, length, tile) for tile in tiles(length, size)]
            assert box == max(high - low for low, high in boxes)


def test_heads_that_share_a_neighborhood_are_a_set():
    one, other = Neighborhood.of(2, 7), Neighborhood.of(2, 7, dilation=(1, 3))
    call = problem([one, other, one, one], (32, 32), heads=4)
    assert head_sets(call) == {one: (0, 2, 3), other: (1,)}
    (found,) = BACKEND.configs(call, "forward")
    assert found.tiles == tuple(shapes(n.axes, (32, 32))[0][0] for n in (one, other))
    assert head_sets(problem([one], (32, 32), heads=3)) == {one: (0, 1, 2)}


def test_configs_in_words():
    assert str(NumbaConfig(((4, 4),), ((10, 10),))) == "4x4 queries by 10x10 keys"
    both = NumbaConfig(((4, 4), (16, 1), (4, 4)), ((10, 10), (22, 7), (10, 10)))
    assert str(both) == "4x4 queries by 10x10 keys; 16x1 queries by 22x7 keys"


def kernel_call(call, direction="forward"):
    layouts = (None,) * 5 if direction == "forward" else (None,) * 9
    tiles = BACKEND.configs(call, direction)[0].tiles
    return plan.kernel_call(call, direction, tiles, layouts, Wanted(), 2)


def test_memory_of_scratch_is_bounded():
    call = problem([Neighborhood((Axis(1 << 14),))], (1 << 14,))
    assert kernel_call(call).scratch < 350_000


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_planning_takes_no_longer_for_more_tokens(direction):
    def least(length):
        times = []
        for n in range(20):
            own = problem([Neighborhood((Axis(255, dilation=3), Axis(7, 3)))], (length, length + n))
            start = time.process_time()
            assert kernel_call(own, direction).nbytes < 1 << 15
            times.append(time.process_time() - start)
        return min(times)

    least(2000)  # what is made once
    assert least(1 << 20) < 3 * least(3000)


def test_plans_are_bounded_by_bytes():
    plan.CALLS.clear()
    for n in range(40):
        kernel_call(problem([Neighborhood((Axis(7),))], (200_000 + n,)))
    assert plan.CALLS.size == sum(entry.size for entry in plan.CALLS._entries.values())
    assert plan.CALLS.size < 40 << 13


@pytest.mark.parametrize(("threads", "slots"), [(1, 1), (2, 8)])
def test_gradients_of_biases_need_few_slots(threads, slots):
    call = replace(whole(5), batch=64, has_rpb=True)
    own = Problem.of(call.inputs(), call.neighborhoods, 1.0)
    found = plan.kernel_call(own, "backward", ((16,),), (None,) * 9, Wanted(), threads)
    assert found.threads <= threads
    assert found.slots <= slots
