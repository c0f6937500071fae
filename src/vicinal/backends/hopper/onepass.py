"""The backward in one pass: `prepare`, then all three gradients, then what finishes dQ (`kernels.onepass`).

It takes float32 scratch as large as dQ in float32, to which programs add in any order.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import NamedTuple

import torch

from vicinal.backends.gpu.strides import contiguous_like
from vicinal.backends.hopper.additional import Sums, Walks
from vicinal.backends.hopper.arguments import (
    Tensors,
    axes_of,
    constants_of,
    grid_of,
    groups_of,
    is_ragged,
    moved,
    options_of,
    reach_of,
    token_strides,
)
from vicinal.backends.hopper.backward import (
    Given,
    More,
    Shared,
    TensorStrides,
    more_launch,
    prepare_launcher,
    row_constants,
)
from vicinal.backends.hopper.config import BackwardConfig
from vicinal.backends.hopper.kernels.arguments import KeysStrides, Scalars
from vicinal.backends.hopper.launch import Block, Launcher
from vicinal.backends.hopper.layout import (
    Descriptor,
    Strided,
    Subproblem,
    describe,
    subproblems,
    three,
)
from vicinal.caching import Cache
from vicinal.problem import Inputs, Problem, Upstream, Wanted


def backward(problem: Problem, config: BackwardConfig, inputs: Inputs, upstream: Upstream) -> Inputs:
    """The gradients of all inputs; see `vicinal.backends.protocol.Backend`."""
    given = Given.of(problem, inputs, upstream)
    query, key, value = given.query, given.key, given.value
    d_query, d_key, d_value = contiguous_like(query), contiguous_like(key), contiguous_like(value)
    sums = Sums(problem, inputs)
    for part in _kept_launchers(problem, config, given.strides, upstream.grad_lse is not None):
        lse2, delta = query.new_empty((2, part.rows), dtype=torch.float32).unbind()
        addends = query.new_zeros(part.addends, dtype=torch.float32)
        part.prepare(given.output, given.grad_output, given.lse, given.grad_lse, lse2, delta)
        read = (query, given.grad_output, lse2, delta)
        part.gradients(*read, key, value, d_key, d_value, addends, given.table)
        if part.more is not None:
            own = part.more.walks.new(query)
            part.more.launch(*read, *given.more, *own, addends, given.table)
            sums.add(part.more.part, own)
        part.finish(addends, d_query)
    return Inputs(d_query, d_key, d_value, *sums.gradients(Wanted.of(inputs)))


class Launchers(NamedTuple):
    """Of one subproblem."""

    rows: int  # elements of each of `prepare`'s results
    addends: int  # elements of dQ
    prepare: Launcher
    gradients: Launcher
    more: More | None  # what additional keys give
    finish: Launcher


def launchers(
    problem: Problem, config: BackwardConfig, strides: TensorStrides, has_grad_lse: bool
) -> tuple[Launchers, ...]:
    """The launchers, one set per subproblem; `strides`: `Given.strides`."""
    tensors = Tensors.of(problem, strides)
    gradients = [Strided.contiguous(*t.shape, keys=t.keys) for t in tensors[:3]]
    reach = reach_of(problem, config, (*tensors[:4], *tensors.additional, *gradients))
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
    dq, (dk, dv) = describe(problem, part, gradients[0]), (moved(problem, config, part, t) for t in gradients[1:])
    rows, (n0, n1, n2), d = shared.prepared.shape[0], part.lengths, problem.head_dim
    addends = Descriptor((rows, n0, n1, n2, d), (n0 * n1 * n2 * d, n1 * n2 * d, n2 * d, d, 1), 0, 0)
    return Launchers(
        rows * shared.prepared.strides[0],
        rows * addends.strides[0],
        prepare_launcher(shared, rows, 1 / problem.scale, has_grad_lse, negated=True),
        _gradients(shared, dk, dv, addends),
        _more(shared, tensors, addends) if problem.additional else None,
        _finish(shared, rows, dq),
    )


def _gradients(shared: Shared, dk: Descriptor, dv: Descriptor, addends: Descriptor) -> Launcher:
    from vicinal.backends.hopper.kernels.onepass import backward as kernel

    problem, config, part = shared[:3]
    queries, keys = three(config.query_tile, 1), three(config.key_tile, 1)
    constants = constants_of(problem, config, keys, queries)._replace(inverse=True)
    constants = constants._replace(ragged=is_ragged(part, constants))
    q, do, k, v = shared.blocks(queries, keys)
    row = Block(shared.prepared, (1, *queries))
    columns = (t.steps for t in (shared.query, shared.grad_output, shared.key, shared.value, dk, dv))
    grid = grid_of(problem, part, constants, problem.kv_heads)
    scalars = Scalars(axes_of(problem, part), grid._replace(heads=problem.heads), KeysStrides(*columns), problem.scale)
    half = Block(addends, (1, *queries, constants.head_dim // 2))
    return Launcher(
        kernel,
        (q, do, row, row, k, v, Block(dk, k.block), Block(dv, v.block), half, 0),
        (scalars, groups_of(part), None, constants),
        (grid.items,),
        options_of(constants.chained, num_warps=4, maxnreg=168),
    )


def _more(shared: Shared, tensors: Tensors, addends: Descriptor) -> More:
    from vicinal.backends.hopper.kernels.onepass import backward as kernel

    walks = Walks.of(shared.problem, shared.config, shared.part, tensors)
    half = Block(addends, (1, *walks.queries, walks.constants.head_dim // 2))
    return more_launch(kernel, shared, walks, (half,))


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
