"""The backward in one pass: `prepare`, then all three gradients, then what finishes dQ (`kernels.onepass`).

It takes float32 scratch as large as dQ in float32, in whole blocks, to which programs add in any order, and two
counters of work items.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import NamedTuple

import torch

from vicinal.backends.gpu.devices import chains
from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.gpu.strides import contiguous_like
from vicinal.backends.hopper.additional import Sums, Walks
from vicinal.backends.hopper.arguments import (
    Tensors,
    axes_of,
    constants_of,
    dilated,
    extent_of,
    grid_of,
    groups_of,
    is_ragged,
    moved,
    options_of,
    reach_of,
    token_strides,
)
from vicinal.backends.hopper.backward import (
    CLEARED,
    Given,
    More,
    Shared,
    TensorStrides,
    more_launch,
    prepare_launcher,
)
from vicinal.backends.hopper.config import BackwardConfig
from vicinal.backends.hopper.kernels.arguments import (
    Constants,
    FinishConstants,
    KeysStrides,
    Scalars,
    block_of,
    is_narrow,
    parts_of,
)
from vicinal.backends.hopper.launch import Block, Launcher
from vicinal.backends.hopper.layout import (
    Descriptor,
    Strided,
    Subproblem,
    Triple,
    describe,
    subproblems,
    three,
)
from vicinal.backends.hopper.steps import Steps, Walking, masks_of
from vicinal.backends.hopper.tilings import kernel_dims
from vicinal.caching import Cache
from vicinal.problem import Inputs, Problem, Upstream, Wanted

LINE = 32  # numbers of 128 bytes
COUNTER = 4  # elements for a counter, so that each is at a multiple of 16 bytes


def backward(problem: Problem, config: BackwardConfig, inputs: Inputs, upstream: Upstream) -> Inputs:
    """The gradients of all inputs; see `vicinal.backends.protocol.Backend`."""
    given = Given.of(problem, inputs, upstream)
    query, key, value = given.query, given.key, given.value
    d_query, d_key, d_value = contiguous_like(query), contiguous_like(key), contiguous_like(value)
    sums = Sums(problem, inputs)
    states, key_mask = masks_of(problem, inputs, given.lse)
    for part in _kept_launchers(problem, config, given.strides, upstream.grad_lse is not None):
        lse2, delta = query.new_empty((2, part.rows), dtype=torch.float32).unbind()
        addends = query.new_empty(scratch_size(part.addends), dtype=torch.float32)
        counters = addends[part.addends : part.addends + 2 * COUNTER].split(COUNTER)
        part.prepare(given.output, given.grad_output, given.lse, given.grad_lse, lse2, delta, addends)
        read = (query, given.grad_output, lse2, delta)
        table = part.gradients.table(states, key_mask, given.table)
        part.gradients.launch(*read, key, value, d_key, d_value, addends, addends, counters[0], table)
        if part.more is not None:
            own = part.more.walks.new(query)
            part.more.launch(*read, *given.more, *own, addends, addends, counters[1], given.table)
            sums.add(part.more.part, own)
        part.finish(addends, d_query)
    return Inputs(d_query, d_key, d_value, *sums.gradients(Wanted.of(inputs)))


class Launchers(NamedTuple):
    """Of one subproblem."""

    rows: int  # elements of each of `prepare`'s results
    addends: int  # elements of the sum of dQ's addends
    prepare: Launcher
    gradients: Walking
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
    rows, width = shared.prepared.shape[0], kernel_dims(problem, one_pass=True)[0]
    block = block_of(three(config.query_tile, 1))
    blocks = tuple(-(-n // size) for n, size in zip(part.lengths, block))
    addends = rows * prod(blocks) * prod(block) * width
    return Launchers(
        rows * shared.prepared.strides[0],
        addends,
        prepare_launcher(
            shared, rows, 1 / problem.scale, has_grad_lse, negated=True, zeros=scratch_size(addends) // CLEARED
        ),
        _gradients(shared, dk, dv, addends),
        _more(shared, tensors, addends) if problem.additional else None,
        _finish(shared, rows, block, blocks, dq),
    )


def scratch_size(addends: int) -> int:
    """Elements of float32 for the addends, and the counters behind them: a multiple of what `prepare` clears in one."""
    return -(-(addends + 2 * COUNTER) // CLEARED) * CLEARED


def _gradients(shared: Shared, dk: Descriptor, dv: Descriptor, addends: int) -> Walking:
    from vicinal.backends.hopper.kernels.onepass import backward as kernel

    problem, config, part = shared[:3]
    queries, keys = three(config.query_tile, 1), three(config.key_tile, 1)
    constants = constants_of(problem, config, keys, queries)._replace(inverse=True, aligned=True)
    constants = constants._replace(ragged=is_ragged(part, constants))
    q, do, k, v = shared.blocks(queries, keys)
    row = Block(shared.prepared, (1, *queries))
    columns = (t.steps for t in (shared.query, shared.grad_output, shared.key, shared.value, dk, dv))
    grid = grid_of(problem, part, constants, problem.kv_heads)
    grid = grid._replace(heads=problem.heads, short=_short(problem, constants, grid.tiles))
    scalars = Scalars(axes_of(problem, part), grid, KeysStrides(*columns), problem.scale)
    steps = Steps.of(problem, part, constants, scalars)
    launch = Launcher(
        kernel,
        (q, do, row, row, k, v, Block(dk, k.block), Block(dv, v.block), 0, _lines(addends, constants), 0, 0),
        (scalars, groups_of(part), steps.lists if steps else None, constants),
        (_programs(problem, grid.items, constants),),
        options_of(constants.chained, num_warps=4, maxnreg=168),
    )
    return Walking(launch, steps)


def _short(problem: Problem, constants: Constants, tiles: tuple[int, ...]) -> int:
    """`Grid.short`: tiles of keys that are nearer to an end than half a window."""
    axis = problem.neighborhoods[0].axes[0]
    if problem.rank > 1 or axis.causal:
        return 0
    ends = 2 * ((axis.window or 1) // 2 // extent_of(constants)[-1])
    return ends if ends < tiles[-1] else 0


def _more(shared: Shared, tensors: Tensors, addends: int) -> More:
    from vicinal.backends.hopper.kernels.onepass import backward as kernel

    walks = Walks.of(shared.problem, shared.config, shared.part, tensors)
    walks = walks._replace(constants=walks.constants._replace(aligned=True))
    programs = _programs(shared.problem, walks.grid.items, walks.constants)
    return more_launch(kernel, shared, walks, programs, (0, _lines(addends, walks.constants), 0))


def _lines(addends: int, constants: Constants) -> Block:
    """The addends as lines of 32 numbers; so many are added at once: a block's, of a part of the columns."""
    columns = constants.head_dim // parts_of(constants.head_dim)
    lines = prod(block_of(constants.step)) * columns // LINE
    return Block(Descriptor((addends // LINE, LINE), (LINE, 1), 0, 0), (lines, LINE))


def _programs(problem: Problem, items: int, constants: Constants) -> int:
    """One for each item; where they take one after the other, at most as many as run at once."""
    return min(items, gpu_of(problem.device).processors) if is_narrow(constants) else items


def _finish(shared: Shared, rows: int, block: Triple, blocks: tuple[int, ...], dq: Descriptor) -> Launcher:
    from vicinal.backends.hopper.kernels.finish import finish

    problem, part = shared.problem, shared.part
    width = kernel_dims(problem, one_pass=True)[0]
    constants = FinishConstants(problem.head_dim, width, block, dilated(problem), chains(problem.device))
    return Launcher(
        finish,
        (0, dq.offset),
        (part.lengths, blocks, problem.heads, groups_of(part), token_strides(dq), problem.scale, constants),
        (-(-prod(blocks) // 4) * rows,),
        options_of(constants.chained, num_warps=4),
    )


_kept_launchers = Cache[tuple[Launchers, ...]](1024).memoize(launchers)
