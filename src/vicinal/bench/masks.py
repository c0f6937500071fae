"""Masks for peers that need one: dense for SDPA; for FlexAttention a mask function and its exact block mask."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import groups
from vicinal.geometry.window import window_start, window_stop
from vicinal.problem import Problem

BLOCK = 128


def dense_mask(problem: Problem) -> Tensor:
    """`[N, N]` boolean on the problem's device, True where a query (row) attends to a key (column)."""
    tokens = torch.arange(prod(problem.lengths), dtype=torch.int64, device=problem.device)
    return mask_mod(problem, tokens.numel())(None, None, tokens[:, None], tokens[None, :])


def flex_block_mask(problem: Problem) -> BlockMask:
    """The block mask of `problem` on its device, tokens flattened in row-major order, blocks of 128x128."""
    device = problem.device
    tokens = prod(problem.lengths)
    padded = -(-tokens // BLOCK) * BLOCK
    allowed = mask_mod(problem, padded)
    keys = torch.arange(padded, dtype=torch.int64, device=device)
    some, every = [], []
    for start in range(0, padded, BLOCK):  # row of blocks by row, so that memory stays O(n)
        queries = torch.arange(start, start + BLOCK, dtype=torch.int64, device=device)
        pairs = allowed(None, None, queries[:, None], keys[None, :]).view(BLOCK, -1, BLOCK)
        some.append(pairs.any(2).any(0))
        every.append(pairs.all(2).all(0))
    partial, full = torch.stack(some), torch.stack(every)
    partial &= ~full
    return BlockMask.from_kv_blocks(
        *_listed(partial), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=allowed, seq_lengths=(tokens, tokens)
    )


def mask_mod(problem: Problem, padded: int) -> Callable[..., Tensor]:
    """FlexAttention's mask function: per axis, is the key's place within the query's interval of places?

    Places number an axis with the tokens of one dilation group next to each other, so that a window is an interval
    also when dilated. Tables are `[padded]`; tokens past the end attend to nothing.
    """
    tables = []
    positions = torch.arange(prod(problem.lengths), dtype=torch.int32, device="cpu")
    inner = prod(problem.lengths)
    for axis, length in zip(problem.neighborhood.axes, problem.lengths):
        inner //= length
        at = positions // inner % length
        place, start, stop = (
            torch.tensor(t, dtype=torch.int32, device="cpu")[at.long()] for t in _places(axis, length)
        )
        tables.append(
            tuple(_pad(t, padded, fill).to(problem.device) for t, fill in ((place, -1), (start, 1), (stop, 0)))
        )

    def one(q: Tensor, k: Tensor, axis: int) -> Tensor:
        place, start, stop = tables[axis]
        return (place[k] >= start[q]) & (place[k] < stop[q])

    if len(tables) == 1:
        return lambda b, h, q, k: one(q, k, 0)
    if len(tables) == 2:
        return lambda b, h, q, k: one(q, k, 0) & one(q, k, 1)
    return lambda b, h, q, k: one(q, k, 0) & one(q, k, 1) & one(q, k, 2)


def _places(axis: Axis, length: int) -> tuple[list[int], list[int], list[int]]:
    """For every token of an axis: its place, and the first and past-the-last place of its window."""
    place, start, stop = [0] * length, [0] * length, [0] * length
    first = 0
    for group in groups(axis, length):
        for i in range(group.length):
            token = group.offset + i * axis.dilation
            place[token] = first + i
            start[token] = first + window_start(axis, group.length, i)
            stop[token] = first + window_stop(axis, group.length, i)
        first += group.length
    return place, start, stop


def _pad(table: Tensor, size: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(table, (0, size - table.numel()), value=fill)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """FlexAttention's form of a boolean `[rows, columns]`: counts `[1, 1, rows]`, indices `[1, 1, rows, columns]`."""
    indices = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], indices.int()[None, None].contiguous()
