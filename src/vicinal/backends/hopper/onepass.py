"""The backward in one pass: `prepare`, then all three gradients, then what finishes dQ (`kernels.onepass`).

It takes float32 scratch as large as dQ in float32, to which programs add in any order.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import NamedTuple

import torch

from vicinal.backends.gpu.strides import contiguous_like
from vicinal.backends.hopper.arguments import (
    Tensors,
    axes_of,
    constants_of,
    grid_of,
    groups_of,
    head_table,
    options_of,
    token_strides,
)
from vicinal.backends.hopper.backward import Shared, TensorStrides, prepare_launcher, row_constants
from vicinal.backends.hopper.config import BackwardConfig
from vicinal.backends.hopper.kernels.arguments import KeysStrides, Scalars
from vicinal.backends.hopper.launch import Block, Launcher
from vicinal.backends.hopper.layout import (
    Descriptor,
    Reach,
    Strided,
    Subproblem,
    describe,
    described,
    packed,
    subproblems,
    three,
)
from vicinal.caching import Cache
from vicinal.problem import Inputs, Problem, Upstream


def backward(problem: Problem, config: BackwardConfig, inputs: Inputs, upstream: Upstream) -> Inputs:
    """The gradients of query, key and value, all three; see `vicinal.backends.protocol.Backend`."""
    query, key, value = described(inputs)
    output, lse, grad_output = packed(upstream.output), packed(upstream.lse), packed(upstream.grad_output)
    grad_lse = lse if upstream.grad_lse is None else packed(upstream.grad_lse)
    d_query, d_key, d_value = contiguous_like(query), contiguous_like(key), contiguous_like(value)
    table = head_table(problem)
    table = lse if table is None else table
    strides = (query.stride(), key.stride(), value.stride())
    for part in _kept_launchers(problem, config, strides, upstream.grad_lse is not None):
        lse2, delta = query.new_empty((2, part.rows), dtype=torch.float32).unbind()
        addends = query.new_zeros(part.addends, dtype=torch.float32)
        part.prepare(output, grad_output, lse, grad_lse, lse2, delta)
        part.gradients(query, grad_output, lse2, delta, key, value, d_key, d_value, addends, table)
        part.finish(addends, d_query)
    return Inputs(d_query, d_key, d_value)


class Launchers(NamedTuple):
    """Of one subproblem."""

    rows: int  # elements of each of `prepare`'s results
    addends: int  # elements of dQ
    prepare: Launcher
    gradients: Launcher
    finish: Launcher


def launchers(
    problem: Problem, config: BackwardConfig, strides: TensorStrides, has_grad_lse: bool
) -> tuple[Launchers, ...]:
    """The launchers, one set per subproblem; `strides`: of query, key and value."""
    tensors = Tensors.of(problem, strides)
    gradients = [Strided.contiguous(*t.shape) for t in tensors[:3]]
    reach = Reach.of((*tensors[:4], *gradients))
    made = partial(_launchers, problem, config, tensors, gradients, has_grad_lse)
    return tuple(made(part) for part in subproblems(problem, reach))


def _launchers(
    problem: Problem,
    config: BackwardConfig,
    tensors: Tensors,
    gradients: list[Strided],
    has_grad_lse: bool,
    part: Subproblem,
) -> Launchers:
    shared = Shared.of(problem, config, part, tensors)
    dq, dk, dv = (describe(problem, part, t) for t in gradients)
    rows, (n0, n1, n2), d = shared.prepared.shape[0], part.lengths, problem.head_dim
    addends = Descriptor((rows, n0, n1, n2, d), (n0 * n1 * n2 * d, n1 * n2 * d, n2 * d, d, 1), 0, 0)
    return Launchers(
        rows * shared.prepared.strides[0],
        rows * addends.strides[0],
        prepare_launcher(shared, rows, 1 / problem.scale, has_grad_lse, negated=True),
        _gradients(shared, dk, dv, addends),
        _finish(shared, rows, dq),
    )


def _gradients(shared: Shared, dk: Descriptor, dv: Descriptor, addends: Descriptor) -> Launcher:
    from vicinal.backends.hopper.kernels.onepass import backward as kernel

    problem, config, part = shared[:3]
    queries, keys = three(config.query_tile, 1), three(config.key_tile, 1)
    constants = constants_of(problem, config, keys, queries)._replace(inverse=True)
    q, do, k, v = shared.blocks(queries, keys)
    row = Block(shared.prepared, (1, *queries))
    columns = (t.token_columns for t in (shared.query, shared.output, shared.key, shared.value, dk, dv))
    grid = grid_of(problem, part, constants, problem.kv_heads)
    scalars = Scalars(axes_of(problem, part), grid._replace(heads=problem.heads), KeysStrides(*columns), problem.scale)
    half = Block(addends, (1, *queries, problem.head_dim // 2))
    return Launcher(
        kernel,
        (q, do, row, row, k, v, Block(dk, k.block), Block(dv, v.block), half, 0),
        (scalars, groups_of(part), constants),
        (grid.items,),
        options_of(constants.chained, num_warps=4, maxnreg=168),
    )


def _finish(shared: Shared, rows: int, dq: Descriptor) -> Launcher:
    from vicinal.backends.hopper.kernels.onepass import finish

    problem, part = shared.problem, shared.part
    constants, programs = row_constants(problem, part, problem.head_dim)
    return Launcher(
        finish,
        (0, dq.offset),
        (
            part.lengths,
            prod(part.lengths),
            problem.heads,
            groups_of(part),
            token_strides(dq),
            problem.scale,
            constants,
        ),
        (programs * rows,),
        options_of(constants.chained, num_warps=4),
    )


_kept_launchers = Cache[tuple[Launchers, ...]](1024).memoize(launchers)
