"""Launchers of the Hopper backward: prepare, then dK and dV, then dQ (`vicinal.backends.hopper.kernels.backward`)."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vicinal.backends.gpu.devices import chains
from vicinal.backends.gpu.strides import contiguous_like
from vicinal.backends.hopper.additional import Following, Sums, Walks, readable
from vicinal.backends.hopper.arguments import (
    LOG2E,
    Tensors,
    axes_of,
    constants_of,
    dilated,
    grid_of,
    groups_of,
    head_table,
    moved,
    options_of,
    reach_of,
    token_strides,
)
from vicinal.backends.hopper.config import BackwardConfig
from vicinal.backends.hopper.kernels.arguments import (
    KeysStrides,
    PrepareStrides,
    QueriesStrides,
    RowConstants,
    RowStrides,
    Scalars,
)
from vicinal.backends.hopper.launch import Block, Launcher, of_any_alignment
from vicinal.backends.hopper.layout import (
    Descriptor,
    Strided,
    Subproblem,
    Triple,
    describe,
    described,
    packed,
    subproblems,
    three,
)
from vicinal.backends.hopper.steps import Steps, Walking, masks_of
from vicinal.backends.hopper.tilings import fewer_keys, kernel_dims, piece, shares_keys
from vicinal.caching import Cache
from vicinal.problem import Inputs, Problem, Upstream, Wanted

TOKENS = 64  # per program of a kernel of rows, at most
CLEARED = 4096  # elements that `prepare` sets to 0 at a time
ELEMENTS = 64 * 128  # likewise of a tensor: 64 a thread, twice as many are spilled
TensorStrides = tuple[tuple[int, ...], ...]


def backward(problem: Problem, config: BackwardConfig, inputs: Inputs, upstream: Upstream, wanted: Wanted) -> Inputs:
    """The gradients that are wanted; see `vicinal.backends.protocol.Backend`."""
    if not any(wanted[:5]):
        return Inputs(None, None, None)  # type: ignore[arg-type]
    given = Given.of(problem, inputs, upstream)
    query, key, value = given.query, given.key, given.value
    d_query, d_key, d_value = (contiguous_like(t) if needed else None for t, needed in zip((query, key, value), wanted))
    passes = Passes(*wanted[:5], has_grad_lse=upstream.grad_lse is not None)
    parts = _kept_launchers(problem, config, given.strides, passes)
    lse2, delta = query.new_empty((2, max(part.rows for part in parts)), dtype=torch.float32).unbind()
    sums = Sums(problem, inputs)
    states, key_mask = masks_of(problem, inputs, given.lse)
    for part in parts:  # one after the other: they share the scratch
        part.prepare(given.output, given.grad_output, given.lse, given.grad_lse, lse2, delta, delta)
        read = (query, given.grad_output, lse2, delta)
        if part.keys is not None:  # a gradient that nobody needs is not written
            dk, dv = key if d_key is None else d_key, value if d_value is None else d_value
            part.keys.launch(*read, key, value, dk, dv, part.keys.table(states, key_mask, given.table))
        if part.queries is not None and d_query is not None:
            table = part.queries.table(key_mask, key_mask, given.table)
            part.queries.launch(*read, key, value, d_query, table, *given.more)
        if part.more is not None:
            own = part.more.walks.new(query)
            part.more.launch(*read, *given.more, *own, given.table)
            sums.add(part.more.part, own)
    return Inputs(d_query, d_key, d_value, *sums.gradients(wanted))  # type: ignore[arg-type]


class Given(NamedTuple):
    """The tensors of a backward as kernels take them."""

    query: Tensor
    key: Tensor
    value: Tensor
    more: tuple[Tensor, ...]  # additional keys and values, where there are any
    output: Tensor
    lse: Tensor
    grad_output: Tensor
    grad_lse: Tensor  # any, where nothing depends on the log-sum-exp
    table: Tensor  # any, where heads are alike

    @classmethod
    def of(cls, problem: Problem, inputs: Inputs, upstream: Upstream) -> Given:
        output, lse, grad_output = packed(upstream.output), packed(upstream.lse), packed(upstream.grad_output)
        grad_lse = lse if upstream.grad_lse is None else packed(upstream.grad_lse)
        table = head_table(problem)
        more = readable(problem, inputs)
        return cls(*described(inputs), more, output, lse, grad_output, grad_lse, lse if table is None else table)

    @property
    def strides(self) -> TensorStrides:
        """Of those that may have any."""
        return tuple(t.stride() for t in (self.query, self.key, self.value, *self.more))


class Passes(NamedTuple):
    """What a backward is to make, and from what."""

    query: bool
    key: bool
    value: bool
    additional_keys: bool = False
    additional_values: bool = False
    has_grad_lse: bool = False


class Launchers(NamedTuple):
    """Of one subproblem; None where nobody needs the gradients."""

    rows: int  # elements of each of `prepare`'s results
    prepare: Launcher
    keys: Walking | None
    queries: Walking | None
    more: More | None


class More(NamedTuple):
    """The launch for the gradients of additional keys and values of one subproblem."""

    part: Subproblem
    walks: Walks
    launch: Launcher


def launchers(
    problem: Problem, config: BackwardConfig, strides: TensorStrides, passes: Passes
) -> tuple[Launchers, ...]:
    """The backward's launchers, one set per subproblem; `strides`: `Given.strides`."""
    tensors = Tensors.of(problem, strides)
    gradients = [Strided.contiguous(*t.shape, keys=t.keys) for t in tensors[:3]]
    reach = reach_of(problem, config, (*tensors[:4], *tensors.additional, *gradients))
    return tuple(_launchers(problem, config, tensors, gradients, part, passes) for part in subproblems(problem, reach))


def _launchers(
    problem: Problem,
    config: BackwardConfig,
    tensors: Tensors,
    gradients: list[Strided],
    part: Subproblem,
    passes: Passes,
) -> Launchers:
    shared = Shared.of(problem, config, part, tensors)
    rows, size = shared.prepared.shape[0], shared.prepared.shape[0] * shared.prepared.strides[0]
    dq, dk, dv = (moved(problem, config, part, t) for t in gradients)
    keys = _keys(shared, dk, dv, passes) if passes.key or passes.value else None
    queries = _queries(shared, dq, tensors) if passes.query else None
    more = _more(shared, tensors, passes) if passes.additional_keys or passes.additional_values else None
    prepare = prepare_launcher(shared, rows, LOG2E, passes.has_grad_lse)
    return Launchers(size, prepare, keys, queries, more)


class Shared(NamedTuple):
    """What the kernels of a subproblem have in common."""

    problem: Problem
    config: BackwardConfig
    part: Subproblem
    prepared: Descriptor  # of `prepare`'s results
    output: Descriptor  # and of its gradient, read by tokens
    lse: Descriptor  # and of its gradient
    query: Descriptor  # this and the others: moved in tiles
    key: Descriptor
    value: Descriptor
    grad_output: Descriptor

    @classmethod
    def of(cls, problem: Problem, config: BackwardConfig, part: Subproblem, tensors: Tensors) -> Shared:
        rows = prod(part.groups) * part.batch * problem.heads
        n0, n1, n2 = part.lengths
        padded = -(-n2 // 4) * 4  # a stride in a descriptor is a multiple of 16 bytes
        prepared = Descriptor((rows, n0, n1, n2), (n0 * n1 * padded, n1 * padded, padded, 1), 0, 0)
        read = (describe(problem, part, t) for t in (tensors.output, tensors.lse))
        tiles = (moved(problem, config, part, t) for t in tensors[:4])
        return cls(problem, config, part, prepared, *read, *tiles)

    @property
    def result(self) -> RowStrides:
        row, x0, x1, _ = self.prepared.strides
        return RowStrides(row, (x0, x1))

    def blocks(self, queries: Triple, keys: Triple) -> tuple[Block, Block, Block, Block]:
        """Tiles of query, the output's gradient, key and value."""
        qd, vd = map(piece, kernel_dims(self.problem, self.config.one_pass))
        return (
            Block(self.query, (1, *queries, qd)),
            Block(self.grad_output, (1, *queries, vd)),
            Block(self.key, (1, *keys, qd)),
            Block(self.value, (1, *keys, vd)),
        )


def prepare_launcher(
    shared: Shared, rows: int, unit: float, has_grad_lse: bool, negated: bool = False, zeros: int = 0
) -> Launcher:
    """Of `prepare`: log-sum-exps times `unit`, and deltas; both `negated`, if so; `zeros`: so many times `CLEARED`."""
    from vicinal.backends.hopper.kernels.backward import prepare

    problem, part = shared.problem, shared.part
    o, lse = shared.output, shared.lse
    strides = PrepareStrides(token_strides(o), token_strides(lse), shared.result)
    constants, programs = row_constants(problem, part, problem.value_dim)
    constants = constants._replace(
        has_grad_lse=has_grad_lse, negated=negated, masked=problem.has_key_mask, cleared=CLEARED if zeros else 0
    )
    given = (part.lengths, prod(part.lengths), problem.heads, groups_of(part))
    # Numbers are read and written one by one: kernels for some of their strides would be no others.
    seen = strides._replace(lse=of_any_alignment(strides.lse), result=of_any_alignment(strides.result))
    return Launcher(
        prepare,
        (o.offset, o.offset, lse.offset, lse.offset, 0, 0, 0),
        (*given, strides, unit, zeros, constants),
        (programs * rows,),
        options_of(constants.chained, num_warps=4),
        (*given, seen, unit, zeros, constants),
    )


def row_constants(problem: Problem, part: Subproblem, columns: int) -> tuple[RowConstants, int]:
    """What a kernel of some tokens of a row is compiled for, and how many programs a row has."""
    width = 1 << (columns - 1).bit_length()
    tokens = min(TOKENS, ELEMENTS // width)
    constants = RowConstants(columns, width, tokens, dilated(problem), chains(problem.device))
    return constants, -(-prod(part.lengths) // tokens)


def _keys(shared: Shared, dk: Descriptor, dv: Descriptor, passes: Passes) -> Walking:
    from vicinal.backends.hopper.kernels.backward import backward_keys

    problem, config, part = shared[:3]
    queries, keys = three(config.query_tile, 1), three(config.key_tile, 1)
    constants = constants_of(problem, config, keys, queries)._replace(
        inverse=True, shared=shares_keys(*kernel_dims(problem)), makes_dk=passes.key, makes_dv=passes.value
    )
    q, do, k, v = shared.blocks(queries, keys)
    row = Block(shared.prepared, (1, *queries))
    columns = (d.steps for d in (shared.query, shared.grad_output, shared.key, shared.value, dk, dv))
    grid = grid_of(problem, part, constants, problem.kv_heads)
    scalars = Scalars(axes_of(problem, part), grid._replace(heads=problem.heads), KeysStrides(*columns), problem.scale)
    steps = Steps.of(problem, part, constants, scalars)
    launch = Launcher(
        backward_keys,
        (q, do, row, row, k, v, Block(dk, k.block), Block(dv, v.block), 0),
        (scalars, groups_of(part), steps.lists if steps else None, constants),
        (grid.items,),
        options_of(constants.chained, num_warps=4, maxnreg=168),
    )
    return Walking(launch, steps)


def _more(shared: Shared, tensors: Tensors, passes: Passes) -> More:
    from vicinal.backends.hopper.kernels.backward import backward_keys

    walks = Walks.of(shared.problem, shared.config, shared.part, tensors)
    constants = walks.constants._replace(makes_dk=passes.additional_keys, makes_dv=passes.additional_values)
    return more_launch(backward_keys, shared, walks._replace(constants=constants), walks.grid.items, adds=())


def more_launch(kernel: Any, shared: Shared, walks: Walks, programs: int, adds: tuple[Block | int, ...]) -> More:
    """Of a kernel that makes dK and dV; `adds`: of the tensors that it takes where it adds to dQ too."""
    q, do, _, _ = shared.blocks(walks.queries, walks.queries)
    row = Block(shared.prepared, (1, *walks.queries))
    read = (shared.query.steps, shared.grad_output.steps, walks.more.key, walks.more.value)
    scalars = Scalars(walks.axes, walks.grid, KeysStrides(*read, 0, 0), shared.problem.scale)
    launch = Launcher(
        kernel,
        (q, do, row, row, walks.key, walks.value, 0, 0, *adds, 0),
        (scalars, groups_of(shared.part), walks.more, walks.constants),
        (programs,),
        options_of(walks.constants.chained, num_warps=4, maxnreg=168),
    )
    return More(shared.part, walks, launch)


def _queries(shared: Shared, dq: Descriptor, tensors: Tensors) -> Walking:
    from vicinal.backends.hopper.kernels.backward import backward_queries

    problem, config, part = shared[:3]
    queries, few = three(config.query_tile, 1), fewer_keys(three(config.key_tile, 1), *kernel_dims(problem))
    constants = constants_of(problem, config, queries, few)._replace(additional=problem.additional > 0)
    q, do, k, v = shared.blocks(queries, few)
    following = Following.of(problem, config, part, tensors, k, v)
    columns = (d.steps for d in (shared.query, shared.grad_output, shared.key, shared.value, dq))
    grid = grid_of(problem, part, constants, problem.heads)
    scalars = Scalars(axes_of(problem, part), grid, QueriesStrides._make((*columns, shared.result)), problem.scale)
    steps = Steps.of(problem, part, constants, scalars)
    launch = Launcher(
        backward_queries,
        (q, do, 0, 0, k, v, Block(dq, q.block), 0, *following.blocks),
        (*following.absent, scalars, groups_of(part), steps.lists if steps else following.more, constants),
        (grid.items,),
        options_of(constants.chained, num_warps=4, maxnreg=168),
    )
    return Walking(launch, steps)


_kept_launchers = Cache[tuple[Launchers, ...]](1024).memoize(launchers)
