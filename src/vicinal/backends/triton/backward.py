"""The backward pass of `vicinal.backends.triton`: its launches, in order, and their scratch."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from vicinal.backends.gpu.arguments import precision_of
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.strides import aligned
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.kernels.additional import additional_gradient_kernel
from vicinal.backends.triton.kernels.backward import gradients_kernel, key_value_gradient_kernel, query_gradient_kernel
from vicinal.backends.triton.kernels.bias import bias_gradient_kernel
from vicinal.backends.triton.launch import Prepared, tiles_of
from vicinal.problem import Inputs

BIAS_TILES = {1: (32,), 2: (4, 8), 3: (2, 4, 4)}  # of queries and of keys: what a sum along diagonals has room for
BIAS_SCRATCH = 2**28  # bytes of partial bias gradients, at most (but one table per head)
ENOUGH_PROGRAMS = 1024  # fill a GPU, where work is split to no other end
ADDITIONAL_TILE = 32  # additional keys per program
QUERIES_PER_STEP = 32


class Backward:
    """The backward pass of one problem, tiling and set of strides."""

    def __init__(self, prepared: Prepared, config: GradientTilings) -> None:
        problem = prepared.problem
        # Heads with neighborhoods of their own have tiles of their own: no program can sum over a group of them.
        self._per_query_head = problem.per_head and problem.group_size > 1
        self._problem = problem
        self._table = prepared.table
        self._both = self._query = self._key_value = None
        if config.together:
            self._both = _gradients_launch(prepared, config, self._per_query_head)
        else:
            self._query = _query_launch(prepared, config.query)
            self._key_value = _key_value_launch(prepared, config.key_value, self._per_query_head)
        self._additional = _additional_launch(prepared) if problem.additional else None
        self._bias = _bias_launch(prepared) if problem.has_rpb else None

    def __call__(
        self, inputs: Inputs, output: Tensor, lse: Tensor, grad_output: Tensor, grad_lse: Tensor | None
    ) -> Inputs:
        """All tensors but the inputs contiguous."""
        ok = aligned(inputs) and (grad_output.data_ptr() | output.data_ptr() | lse.data_ptr()) & 15 == 0
        ok = ok and (grad_lse is None or grad_lse.data_ptr() & 15 == 0)
        query, key, value, extra_keys, extra_values, rpb = inputs
        delta = torch.empty_like(lse)
        grad_query = _like(query)
        if self._per_query_head:
            grad_key = query.new_empty((*query.shape[:-1], key.shape[-1]), dtype=torch.float32)
            grad_value = query.new_empty((*query.shape[:-1], value.shape[-1]), dtype=torch.float32)
        else:
            grad_key, grad_value = _like(key), _like(value)
        read = (*inputs, self._table, output, lse, grad_output, grad_lse)
        if self._both is not None:
            self._both((*read, delta, grad_query, grad_key, grad_value), ok)
        else:
            assert self._query is not None
            assert self._key_value is not None
            self._query((*read, delta, grad_query), ok)
            self._key_value((query, key, value, rpb, self._table, lse, grad_output, delta, grad_key, grad_value), ok)
        if self._per_query_head:
            groups = (key.shape[-2], self._problem.group_size)
            grad_key = grad_key.unflatten(-2, groups).sum(-2).to(key.dtype)
            grad_value = grad_value.unflatten(-2, groups).sum(-2).to(value.dtype)
        grads = Inputs(grad_query, grad_key, grad_value)
        if self._additional is not None:
            assert extra_keys is not None
            assert extra_values is not None
            slices = self._additional.grid[1]
            partial_keys = query.new_empty((slices, *extra_keys.shape), dtype=torch.float32)
            partial_values = query.new_empty((slices, *extra_values.shape), dtype=torch.float32)
            self._additional(
                (query, extra_keys, extra_values, lse, grad_output, delta, partial_keys, partial_values), ok
            )
            grads = grads._replace(
                additional_keys=partial_keys.sum(0).to(extra_keys.dtype),
                additional_values=partial_values.sum(0).to(extra_values.dtype),
            )
        if self._bias is not None:
            assert rpb is not None
            partial = query.new_zeros((rpb.shape[0], self._bias.grid[0], *rpb.shape[1:]), dtype=torch.float32)
            self._bias((query, key, value, rpb, self._table, lse, grad_output, delta, partial), ok)
            grads = grads._replace(rpb=partial.sum(1).to(rpb.dtype))
        return grads


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _query_launch(prepared: Prepared, config: Tiling) -> Launch:
    problem = prepared.problem
    programs, count = _query_programs(prepared, config)
    arguments = (
        prepared.scale,
        problem.heads,
        problem.group_size,
        problem.additional,
        programs,
        *prepared.arguments(config.unfolded),
        config.query_tile,
        config.key_tile,
        prepared.vector,
        prepared.flags(config),
        precision_of(problem.dtype),
    )
    return Launch(query_gradient_kernel, (count, 1, 1), arguments, prepared.options(config))


def _key_value_launch(prepared: Prepared, config: Tiling, per_query_head: bool) -> Launch:
    problem = prepared.problem
    programs, count = _key_programs(prepared, config, per_query_head)
    arguments = (
        prepared.scale,
        problem.heads,
        problem.group_size,
        programs,
        *prepared.arguments(config.unfolded),
        config.query_tile,
        config.key_tile,
        prepared.vector,
        prepared.flags(config, inverse=True),
        problem.group_size > 1 and not per_query_head,
        per_query_head,
        precision_of(problem.dtype),
    )
    return Launch(key_value_gradient_kernel, (count, 1, 1), arguments, prepared.options(config))


def _gradients_launch(prepared: Prepared, config: GradientTilings, per_query_head: bool) -> Launch:
    """Both of the above; warps, stages and the axis unfolded are the same for both."""
    problem, query, key_value = prepared.problem, config.query, config.key_value
    programs, count = _query_programs(prepared, query)
    key_programs, key_count = _key_programs(prepared, key_value, per_query_head)
    arguments = (
        prepared.scale,
        problem.heads,
        problem.group_size,
        problem.additional,
        programs,
        key_programs,
        key_count,
        *prepared.arguments(query.unfolded),
        query.query_tile,
        query.key_tile,
        key_value.query_tile,
        key_value.key_tile,
        prepared.vector,
        prepared.flags(query),
        prepared.flags(key_value, inverse=True),
        problem.group_size > 1 and not per_query_head,
        per_query_head,
        precision_of(problem.dtype),
    )
    return Launch(gradients_kernel, (key_count + count, 1, 1), arguments, prepared.options(query))


def _query_programs(prepared: Prepared, config: Tiling) -> tuple[int, int]:
    """Programs of one head, and of all."""
    programs = tiles_of(prepared.problem, config)
    return programs, prepared.problem.batch * prepared.problem.heads * programs


def _key_programs(prepared: Prepared, config: Tiling, per_query_head: bool) -> tuple[int, int]:
    """Likewise."""
    problem = prepared.problem
    programs = tiles_of(problem, config)
    return programs, problem.batch * (problem.heads if per_query_head else problem.kv_heads) * programs


def _additional_launch(prepared: Prepared) -> Launch:
    problem = prepared.problem
    tokens = prod(problem.lengths)
    tiles = -(-problem.additional // ADDITIONAL_TILE)
    programs = problem.batch * problem.kv_heads * tiles
    steps = -(-tokens // QUERIES_PER_STEP)
    slices = min(steps, -(-ENOUGH_PROGRAMS // programs), 65535)
    slice_size = -(-steps // slices) * QUERIES_PER_STEP
    arguments = (
        prepared.scale,
        problem.heads,
        problem.group_size,
        problem.additional,
        tiles,
        slice_size,
        *prepared.arguments(),
        ADDITIONAL_TILE,
        QUERIES_PER_STEP,
        prepared.vector,
        precision_of(problem.dtype),
    )
    grid = (programs, -(-tokens // slice_size), 1)
    return Launch(additional_gradient_kernel, grid, arguments, options_of(4, 2))


def _bias_launch(prepared: Prepared) -> Launch:
    problem = prepared.problem
    config = Tiling(BIAS_TILES[problem.rank], BIAS_TILES[problem.rank], warps=4, stages=1)
    programs = tiles_of(problem, config)
    (window,) = {n.window for n in problem.neighborhoods}
    table_bytes = 4 * problem.heads * prod(2 * k - 1 for k in window if k is not None)
    shares = min(
        programs * problem.batch,
        max(1, BIAS_SCRATCH // table_bytes),
        -(-ENOUGH_PROGRAMS // problem.heads),
    )
    arguments = (
        prepared.scale,
        problem.heads,
        problem.group_size,
        problem.batch,
        programs,
        *prepared.arguments(),
        config.query_tile,
        config.key_tile,
        prepared.vector,
        prepared.flags(config),
        precision_of(problem.dtype),
    )
    return Launch(bias_gradient_kernel, (shares, problem.heads, 1), arguments, options_of(config.warps, config.stages))
