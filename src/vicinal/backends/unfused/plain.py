"""The three unfused operators in plain torch: for CPU tensors, and wherever there is no Triton.

Every function walks blocks of queries, gathers the keys of a block by an index table and multiplies; no more than
`BLOCK_ELEMENTS` elements are gathered at once. Half precision is computed in float32.

Which key sits in which slot: `vicinal.geometry.slots`.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, cast

import torch
from torch import Tensor

from vicinal.geometry.slots import Slots
from vicinal.geometry.window import group_length, window_start, window_stop

BLOCK_ELEMENTS = 1 << 22


def pn(query: Tensor, key: Tensor, rpb: Tensor | None, slots: Slots, scale: float, fill: float) -> Tensor:
    """Pointwise-neighborhood: `scale * query . key (+ rpb)` in every slot, `fill` in absent ones.

    Args:
        query: `[B, *X, H, D]`.
        key: `[B, *X, Hkv, D]`, `H` a multiple of `Hkv`.
        rpb: `[H, 2*K0-1, ...]` or None.
        slots: which key sits in which slot.
        scale: factor of the dot products.
        fill: value of absent slots: minus infinity for scores, 0 for gradients.

    Returns:
        `[B, *X, H, slots]`, query's dtype.
    """
    kv_heads = key.shape[-2]
    q, k = _rows(query), _rows(key)
    table = None if rpb is None else rpb.to(q.dtype).flatten(1)
    result = query.new_empty((*query.shape[:-1], slots.count))
    out = result.flatten(1, -3)
    for rows, index, valid in _blocks(slots, k, query.device):
        gathered = k[:, index].permute(0, 1, 3, 4, 2)  # [B, n, Hkv, D, slots]
        scores = q[:, rows].unflatten(2, (kv_heads, -1)) @ gathered
        scores = scale * scores.flatten(2, 3)
        if table is not None:
            scores = scores + table[:, _bias_index(slots, rows, query.device)].transpose(0, 1)
        out[:, rows] = scores.masked_fill(~valid[:, None], fill).to(query.dtype)
    return result


def nn(attn: Tensor, value: Tensor, slots: Slots, scale: float) -> Tensor:
    """Neighborhood-neighborhood: for each query the sum of its neighbors' values weighted by `scale * attn`.

    Args:
        attn: `[B, *X, H, slots]`; absent slots are not read.
        value: `[B, *X, Hkv, Dv]`.
        slots: which key sits in which slot.
        scale: factor of the weights.

    Returns:
        `[B, *X, H, Dv]`, value's dtype.
    """
    a, v = _rows(attn), _rows(value)
    result = value.new_empty((*attn.shape[:-1], value.shape[-1]))
    out = result.flatten(1, -3)
    for rows, index, valid in _blocks(slots, v, value.device):
        weights = _weights(a, rows, valid, value.shape[-2])
        gathered = v[:, index].transpose(2, 3)  # [B, n, Hkv, slots, Dv]
        out[:, rows] = (scale * (weights @ gathered)).flatten(2, 3).to(value.dtype)
    return result


def inverse(attn: Tensor, query: Tensor, kv_heads: int, slots: Slots, scale: float) -> Tensor:
    """Inverse-neighborhood: for each key the sum over the queries that attend to it of `scale * attn * query`.

    Args:
        attn: `[B, *X, H, slots]`; absent slots are not read.
        query: `[B, *X, H, D]`.
        kv_heads: heads of the keys, a divisor of `H`.
        slots: which key sits in which slot.
        scale: factor of the weights.

    Returns:
        `[B, *X, Hkv, D]`, query's dtype.
    """
    a, q = _rows(attn), _rows(query)
    out = q.new_zeros((q.shape[0], q.shape[1], kv_heads, q.shape[-1]))
    for rows, index, valid in _blocks(slots, out, query.device):
        weights = _weights(a, rows, valid, kv_heads).transpose(-1, -2)
        terms = weights @ q[:, rows].unflatten(2, (kv_heads, -1))  # [B, n, Hkv, slots, D]
        out.index_add_(1, index.flatten(), terms.transpose(2, 3).flatten(1, 2))
    return (scale * out).to(query.dtype).unflatten(1, slots.lengths)


def bias_sum(grad: Tensor, slots: Slots) -> Tensor:
    """The gradient of the relative positional bias: `grad` `[B, *X, H, slots]` summed by relative position.

    Returns:
        `[H, 2*K0-1, ...]`, grad's dtype.
    """
    g = _rows(grad).sum(0)  # [N, H, slots]
    out = g.new_zeros((g.shape[1], prod(slots.bias_shape)))
    for rows, _index, valid in _blocks(slots, g[None], grad.device):
        terms = g[rows].masked_fill(~valid[:, None], 0).transpose(0, 1)
        out.index_add_(1, _bias_index(slots, rows, grad.device).flatten(), terms.flatten(1))
    return out.unflatten(1, slots.bias_shape).to(grad.dtype)


def _rows(t: Tensor) -> Tensor:
    """`[B, N, H, C]` in the dtype that is computed in."""
    return t.flatten(1, -3).to(torch.promote_types(t.dtype, torch.float32))


def _weights(attn: Tensor, rows: slice, valid: Tensor, kv_heads: int) -> Tensor:
    """`[B, n, Hkv, H / Hkv, slots]`, zero where absent."""
    return attn[:, rows].masked_fill(~valid[:, None], 0).unflatten(2, (kv_heads, -1))


def neighbors(slots: Slots, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The keys of some queries, slot by slot.

    Args:
        slots: which key sits in which slot.
        tokens: `[n]`, flat indices of queries.

    Returns:
        `[n, slots]` flat indices of their keys, 0 where a slot is absent; and which are present.
    """
    index = torch.zeros((len(tokens), 1), dtype=torch.int64, device=tokens.device)
    valid = torch.ones((len(tokens), 1), dtype=torch.bool, device=tokens.device)
    for a, (axis, length) in enumerate(zip(slots.neighborhood.axes, slots.lengths)):
        position, keys, present = _along(slots, a, tokens)
        keys = (keys * axis.dilation + (position % axis.dilation)[:, None]).masked_fill(~present, 0)
        index = (index[..., None] * length + keys[:, None]).flatten(-2)
        valid = (valid[..., None] & present[:, None]).flatten(-2)
    return index, valid


def _blocks(slots: Slots, gathered: Tensor, device: torch.device) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of queries: the rows, their keys `[n, slots]` as flat token indices (0 if absent), which are present."""
    each = max(1, gathered.shape[0] * slots.count * gathered.shape[-2] * gathered.shape[-1])
    size = max(1, BLOCK_ELEMENTS // each)
    for start in range(0, slots.tokens, size):
        rows = slice(start, min(start + size, slots.tokens))
        yield rows, *neighbors(slots, torch.arange(rows.start, rows.stop, dtype=torch.int64, device=device))


def _bias_index(slots: Slots, rows: slice, device: torch.device) -> Tensor:
    """`[n, slots]`: where in the flattened bias table each slot's bias is (any index for an absent slot)."""
    tokens = torch.arange(rows.start, rows.stop, dtype=torch.int64, device=device)
    index = torch.zeros((len(tokens), 1), dtype=torch.int64, device=device)
    for a, axis in enumerate(slots.neighborhood.axes):
        assert axis.window is not None
        position, keys, _present = _along(slots, a, tokens)
        offset = keys - (position // axis.dilation)[:, None] + axis.window - 1
        size = 2 * axis.window - 1
        index = (index[..., None] * size + offset.clamp(0, size - 1)[:, None]).flatten(-2)
    return index


def _along(slots: Slots, a: int, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: the queries' positions `[n]`; their keys `[n, window]` within the dilation group; which exist."""
    axis, length = slots.neighborhood.axes[a], slots.lengths[a]
    assert axis.window is not None
    position = tokens // prod(slots.lengths[a + 1 :]) % length
    group, place = position % axis.dilation, position // axis.dilation
    n = cast(Any, group_length)(length, axis.dilation, group)
    start, stop = (cast(Any, end)(axis, n, place)[:, None] for end in (window_start, window_stop))
    keys = start + torch.arange(axis.window, dtype=torch.int64, device=tokens.device)
    return position, keys, keys < stop
