"""Additional keys on Hopper: what kernels read, tile by tile, and which queries their gradients' programs walk."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton.experimental.gluon")

from vicinal.backends.hopper.additional import Following, Walks, readable
from vicinal.backends.hopper.arguments import TILE, Tensors
from vicinal.backends.hopper.backward import Shared
from vicinal.backends.hopper.forward import launchers
from vicinal.backends.hopper.launch import Block
from vicinal.backends.hopper.layout import Strided, subproblems
from vicinal.backends.hopper.tilings import backward_configs, forward_configs, kernel_dims, one_pass_configs
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem


def inputs_of(lengths=(9, 12), head_dim=64, additional=77, batch=2, heads=4, kv_heads=2) -> Inputs:
    torch.manual_seed(0)
    x = (batch, *lengths)
    shapes = ((*x, heads), (*x, kv_heads), (*x, kv_heads), (batch, additional, kv_heads), (batch, additional, kv_heads))
    return Inputs(*(torch.randn(*shape, head_dim).to(torch.bfloat16) for shape in shapes))


def problem_of(inputs: Inputs, **arguments) -> Problem:
    lengths = tuple(inputs.query.shape[1:-2])
    neighborhood = Neighborhood.of(len(lengths), **({"kernel_size": 2} | arguments)).resolve(lengths)
    return Problem.of(inputs, [neighborhood], 0.1)


def strides_of(problem: Problem, inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    return tuple(t.stride() for t in (*inputs[:3], *readable(problem, inputs)))


@pytest.mark.parametrize("additional", [1, 77, 128, 300])
@pytest.mark.parametrize("layout", ["packed", "sliced"])
def test_they_are_filled_up_with_zeros(additional, layout):
    inputs = inputs_of(additional=additional)
    if layout == "sliced":
        both = torch.cat([inputs.additional_keys, inputs.additional_values], -1)
        inputs = inputs._replace(additional_keys=both[..., :64], additional_values=both[..., 64:])
    for own, read in zip(inputs[3:5], readable(problem_of(inputs), inputs)):
        assert read.shape[1] % TILE == 0
        assert torch.equal(read[:, :additional], own)
        assert not read[:, additional:].any()


def test_they_are_read_in_place_where_they_can_be():
    inputs = inputs_of(additional=256)
    keys, values = readable(problem_of(inputs), inputs)
    assert keys.data_ptr() == inputs.additional_keys.data_ptr()
    assert values.data_ptr() == inputs.additional_values.data_ptr()


@pytest.mark.parametrize("lengths", [(300,), (9, 12), (4, 6, 8)])
@pytest.mark.parametrize("head_dim", [64, 40])
def test_tiles_that_follow_a_walk_are_adjacent_keys(lengths, head_dim):
    """Whatever box a step is: what a copy of it reads, in the order of a tile's columns, are so many keys in a row."""
    inputs = inputs_of(lengths, head_dim, additional=200)
    problem = problem_of(inputs)
    keys = readable(problem, inputs)[0]
    for config in forward_configs(problem):
        ((launcher, _),) = launchers(problem, config, strides_of(problem, inputs))
        walked, of = launcher.tensors[1], launcher.tensors[6]
        assert isinstance(walked, Block)
        assert isinstance(of, Block)
        assert of.block == walked.block
        size, sides = prod(of.block[1:4]), of.block[1:4]
        more = launcher.arguments[-2]
        for batch, head, tile in ((0, 0, 0), (1, 1, 1), (1, 0, 256 // size - 1)):
            seen = _box(keys, of, (tile * sides[0], 0, 0), batch, head, head_dim, more.key)
            assert torch.equal(seen, keys[batch, tile * size : (tile + 1) * size, head])


def _box(tensor, of: Block, at, batch: int, head: int, columns: int, steps) -> torch.Tensor:
    """`[tokens, columns]`: what a copy reads at `at` of a head, computed as kernels do."""
    d = of.description
    view = tensor.as_strided(d.shape[1:], d.strides[1:], d.offset)
    if isinstance(steps, int):
        first, column = batch * d.strides[0], head * columns
    else:
        first, column = (batch * steps.batch + head * steps.head) * d.strides[0], 0
    view = tensor.as_strided(d.shape[1:], d.strides[1:], d.offset + first) if first else view
    (a, b, c), (x, y, z) = at, of.block[1:4]
    return view[a : a + x, b : b + y, c : c + z, column : column + columns].flatten(0, 2)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    additional=st.integers(1, 300),
    head_dim=st.sampled_from([32, 48, 128, 256]),
    one_pass=st.booleans(),
    dilation=st.sampled_from([1, 1, 2]),
)
@settings(max_examples=60, deadline=None)
def test_programs_of_a_tile_share_all_queries(lengths, additional, head_dim, one_pass, dilation):
    inputs = inputs_of(lengths, head_dim, additional)
    problem = problem_of(inputs, kernel_size=1, dilation=tuple(min(dilation, n) for n in lengths))
    configs = one_pass_configs(problem) if one_pass else backward_configs(problem)
    if not configs:
        return
    tensors = Tensors.of(problem, strides_of(problem, inputs))
    assert all(isinstance(t, Strided) for t in tensors.additional)
    for part in subproblems(problem):
        walks = Walks.of(problem, configs[0], part, tensors)
        axis, (parts, one, tiles) = walks.constants.cut, walks.grid.tiles
        chunk, step = walks.more.chunk, walks.queries[axis]
        assert prod(walks.queries) == 64
        assert walks.queries[2] >= 4  # TMA moves log-sum-exps by 16 bytes
        assert chunk % step == 0  # no step has queries of two parts
        assert (parts - 1) * chunk < part.lengths[axis] <= parts * chunk
        own = 64 * (1 if walks.constants.shared else 2)
        assert (one, tiles * own) == (1, walks.sums[2])
        assert tiles * own >= additional
        assert walks.grid.items == parts * tiles * problem.kv_heads * part.batch * prod(part.groups)
        assert (walks.constants.head_dim, walks.constants.value_dim) == kernel_dims(problem, one_pass)


def test_nothing_follows_without_them():
    inputs = Inputs(*inputs_of()[:3])
    problem = problem_of(inputs)
    (part,) = subproblems(problem)
    config = backward_configs(problem)[0]
    tensors = Tensors.of(problem, tuple(t.stride() for t in inputs[:3]))
    _, _, k, v = Shared.of(problem, config, part, tensors).blocks((1, 8, 8), (1, 8, 8))
    assert Following.of(problem, config, part, tensors, k, v) == ((), (None, None), None)
