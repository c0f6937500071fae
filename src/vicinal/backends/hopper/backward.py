"""Launchers of the Hopper backward: prepare, then dK and dV, then dQ (`vicinal.backends.hopper.kernels.backward`)."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch

from vicinal.backends.gpu.devices import chains
from vicinal.backends.hopper.arguments import (
    axes_of,
    constants_of,
    contiguous_strides,
    dilated,
    grid_of,
    groups_of,
    head_table,
    options_of,
    token_strides,
)
from vicinal.backends.hopper.kernels.arguments import (
    KeysStrides,
    PrepareConstants,
    PrepareStrides,
    QueriesStrides,
    RowStrides,
    Scalars,
)
from vicinal.backends.hopper.launch import Launcher, Tile
from vicinal.backends.hopper.layout import Descriptor, Launch, describe, described, launches, packed, three
from vicinal.backends.hopper.tilings import fewer_keys, piece, shares_keys
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.tuning.config import TileConfig

TOKENS = 64  # per program of `prepare`, at most
ELEMENTS = 64 * 128  # of each output, per program of `prepare`: 64 a thread, twice as many are spilled
Strides = tuple[tuple[int, ...], ...]


def backward(
    problem: Problem,
    config: TileConfig,
    inputs: Inputs,
    upstream: Upstream,
    wanted: Wanted,
) -> Inputs:
    """The gradients of query, key and value; see `vicinal.backends.protocol.Backend`."""
    output, lse, grad_output, grad_lse = upstream
    query, key, value = described(inputs)
    output, grad_output, lse = packed(output), packed(grad_output), packed(lse)
    grad_lse = None if grad_lse is None else packed(grad_lse)
    d_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    d_key = torch.empty_like(key, memory_format=torch.contiguous_format)
    d_value = torch.empty_like(value, memory_format=torch.contiguous_format)
    table = head_table(problem)
    table = lse if table is None else table
    strides = (query.stride(), key.stride(), value.stride())
    parts = _launchers(problem, config, strides, grad_lse is not None)
    lse2, delta = query.new_empty((2, max(part[0] for part in parts)), dtype=torch.float32).unbind()
    for _, prepare, keys, queries in parts:  # one after the other: they share the scratch
        prepare(output, grad_output, lse, lse if grad_lse is None else grad_lse, lse2, delta)
        keys(query, grad_output, lse2, delta, key, value, d_key, d_value, table)
        queries(query, grad_output, lse2, delta, key, value, d_query, table)
    return Inputs(d_query, d_key, d_value)


@lru_cache(maxsize=1024)
def _launchers(
    problem: Problem, config: TileConfig, strides: Strides, has_grad_lse: bool
) -> list[tuple[int, Launcher, Launcher, Launcher]]:
    return [launchers(problem, config, strides, has_grad_lse, launch) for launch in launches(problem)]


def launchers(
    problem: Problem, config: TileConfig, strides: Strides, has_grad_lse: bool, launch: Launch
) -> tuple[int, Launcher, Launcher, Launcher]:
    """For part of a problem: elements of each of `prepare`'s results, and the three launchers."""
    from vicinal.backends.hopper.kernels import backward as kernels

    d, dv = problem.head_dim, problem.value_dim
    qd, vd = piece(d), piece(dv)
    x = (problem.batch, *problem.lengths)
    q_shape, k_shape = (*x, problem.heads, d), (*x, problem.kv_heads, d)
    v_shape, o_shape = (*x, problem.kv_heads, dv), (*x, problem.heads, dv)

    def of(shape: tuple[int, ...], own: tuple[int, ...] | None = None) -> Descriptor:
        return describe(problem, launch, shape, contiguous_strides(shape) if own is None else own)

    q, k, v = of(q_shape, strides[0]), of(k_shape, strides[1]), of(v_shape, strides[2])
    o, dq, dk, dvalue = of(o_shape), of(q_shape), of(k_shape), of(v_shape)
    lse = of((*x, problem.heads, 1))
    rows = problem.batch * prod(launch.groups) * problem.heads
    n0, n1, n2 = launch.lengths
    padded = -(-n2 // 4) * 4  # a stride in a descriptor is a multiple of 16 bytes
    r_strides = RowStrides(n0 * n1 * padded, (n1 * padded, padded))
    prepared = Descriptor((rows, n0, n1, n2), (r_strides.row, *r_strides.axes, 1), 0, 0)
    tokens = prod(launch.lengths)
    chained = chains(problem.device)
    width = 1 << (dv - 1).bit_length()
    tokens_each = min(TOKENS, ELEMENTS // width)
    prepare = Launcher(
        kernels.prepare,
        (None,) * 6,
        (o.offset, o.offset, lse.offset, lse.offset, 0, 0),
        (
            launch.lengths,
            tokens,
            problem.heads,
            groups_of(launch),
            PrepareStrides(token_strides(o), token_strides(lse), r_strides),
            PrepareConstants(dv, width, tokens_each, dilated(problem), has_grad_lse, chained),
        ),
        (-(-tokens // tokens_each) * rows,),
        options_of(chained, num_warps=4),
    )

    queries_tile, keys_tile = three(config.query_tile, 1), three(config.key_tile, 1)
    constants = constants_of(problem, config, keys_tile, queries_tile)
    constants = constants._replace(inverse=True, shared=shares_keys(d))
    grid = grid_of(problem, launch, constants, problem.kv_heads)
    columns = (q.token_columns, o.token_columns, k.token_columns, v.token_columns)
    keys_strides = KeysStrides(*columns, dk.token_columns, dvalue.token_columns)
    axes = axes_of(problem, launch)
    one_row = (1, *queries_tile)
    keys = Launcher(
        kernels.backward_keys,
        (Tile(q, (1, *queries_tile, qd)), Tile(o, (1, *queries_tile, vd)), Tile(prepared, one_row),
         Tile(prepared, one_row), Tile(k, (1, *keys_tile, qd)), Tile(v, (1, *keys_tile, vd)),
         Tile(dk, (1, *keys_tile, qd)), Tile(dvalue, (1, *keys_tile, vd)), None),
        (0,) * 9,
        (
            Scalars(axes, grid._replace(heads=problem.heads), keys_strides, problem.scale),
            groups_of(launch),
            constants,
        ),
        (grid.items,),
        options_of(constants.chained, num_warps=4, maxnreg=168),
    )  # fmt: skip
    few = fewer_keys(keys_tile, d)
    constants = constants_of(problem, config, queries_tile, few)
    grid = grid_of(problem, launch, constants, problem.heads)
    queries = Launcher(
        kernels.backward_queries,
        (Tile(q, (1, *queries_tile, qd)), Tile(o, (1, *queries_tile, vd)), None, None,
         Tile(k, (1, *few, qd)), Tile(v, (1, *few, vd)), Tile(dq, (1, *queries_tile, qd)), None),
        (0,) * 8,
        (
            Scalars(axes, grid, QueriesStrides(*columns, dq.token_columns, r_strides), problem.scale),
            groups_of(launch),
            constants,
        ),
        (grid.items,),
        options_of(constants.chained, num_warps=4, maxnreg=168),
    )  # fmt: skip
    return rows * r_strides.row, prepare, keys, queries
