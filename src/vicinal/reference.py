"""The oracle: dense attention under an explicit mask, in float64, straight from the definition. Slow, obviously right.

It deliberately does not use `vicinal.geometry.window`: the mask is built query by query from the sentences of the
design, so that a mistake in the geometry cannot hide here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.span import Span
from vicinal.problem import Inputs


def neighbors(axis: Axis, length: int, query: int) -> list[int]:
    """The keys that a query attends to along one axis, in token positions; of a circle before 0 and beyond it, too."""
    window, stride, dilation = axis.window, axis.stride, axis.dilation
    assert window is not None
    group = list(range(query % dilation, length, dilation))
    i, last = group.index(query), len(group) - 1
    block = (i // stride) * stride
    if axis.causal:
        leader = min(block + stride - 1, last)
        return [group[j] for j in range(len(group)) if leader - window < j <= i]
    leader = min(block + stride // 2, last)
    start = leader - window // 2
    if axis.boundary == "wrap":
        return [j * dilation + query % dilation for j in range(start, start + window)]
    if axis.boundary == "shift":
        start = min(max(start, 0), len(group) - window)
    return [group[j] for j in range(start, start + window) if 0 <= j <= last]


def axis_mask(axis: Axis, length: int) -> Tensor:
    """`[length, keys]`, True where a query (row) attends to a key (column); of a span, its queries and keys."""
    return axis_offsets(axis, length) > 0


def axis_offsets(axis: Axis, length: int) -> Tensor:
    """`[length, keys]`: how far the key (column) is from the query (row), in units of the dilation, plus the window.

    From 1 to twice the window less 1; 0 where it does not attend.
    """
    assert axis.window is not None
    span = axis.span or Span.whole(length)
    offsets = torch.zeros(span.query_length, span.key_length, dtype=torch.int64, device="cpu")
    for row, query in enumerate(range(*span.queries)):
        for key in neighbors(axis, span.length, query):
            column = key % span.length if axis.span is None or span.circle else key - span.keys[0]
            offsets[row, column] = key // axis.dilation - query // axis.dilation + axis.window
    return offsets


def neighborhood_mask(neighborhood: Neighborhood, lengths: Sequence[int]) -> Tensor:
    """`[N, M]` over flattened tokens, True where a query (row) attends to a key (column)."""
    mask = torch.ones(1, 1, dtype=torch.bool, device="cpu")
    for axis, length in zip(neighborhood.axes, lengths):
        own = axis_mask(axis, length)
        sizes = mask.shape[0] * own.shape[0], mask.shape[1] * own.shape[1]
        mask = (mask[:, None, :, None] & own[None, :, None, :]).reshape(sizes)
    return mask


def bias_of(rpb: Tensor, neighborhood: Neighborhood, lengths: Sequence[int]) -> Tensor:
    """`[H, N, M]`: the bias of every pair that the window allows (elsewhere its value has no meaning)."""
    index: list[Any] = [slice(None)]  # then one [N, M] index per axis
    each = [axis_offsets(axis, length) for axis, length in zip(neighborhood.axes, lengths)]
    for a in range(len(each)):
        offset = torch.zeros(1, 1, dtype=torch.int64, device="cpu")
        for i, own in enumerate(each):
            along = own if i == a else torch.zeros_like(own)
            sizes = offset.shape[0] * own.shape[0], offset.shape[1] * own.shape[1]
            offset = (offset[:, None, :, None] + along[None, :, None, :]).reshape(sizes)
        index.append((offset - 1).clamp(min=0).to(rpb.device))
    return rpb[tuple(index)]


def _masks(per_head: Sequence[Neighborhood], lengths: Sequence[int]) -> Tensor:
    """`[H, N, N]`: `neighborhood_mask` of every head."""
    masks = {n: neighborhood_mask(n, lengths) for n in set(per_head)}
    return torch.stack([masks[n] for n in per_head])


def masks_of(per_head: Sequence[Neighborhood], lengths: Sequence[int], window_sizes: Tensor | None) -> Tensor:
    """`[H, N, M]`, or `[B, H, N, M]` with windows per token: which keys (columns) queries (rows) attend to."""
    mask = _masks(per_head, lengths)
    if window_sizes is None:
        return mask
    sizes = window_sizes.flatten(1, -2).transpose(1, 2)[..., None].cpu()
    for size in sizes.unique().tolist():
        own = _masks([_at_most(n, size) for n in per_head], lengths)
        mask = torch.where(sizes == size, own, mask)
    return mask


def _at_most(neighborhood: Neighborhood, size: int) -> Neighborhood:
    """With windows of this size, where they are larger."""
    return Neighborhood(tuple(replace(a, window=min(a.window or size, size)) for a in neighborhood.axes))


def reference(inputs: Inputs, neighborhoods: Sequence[Neighborhood], scale: float) -> tuple[Tensor, Tensor]:
    """Neighborhood attention by its definition. Differentiable.

    Args:
        inputs: tensors of any float dtype, shaped as in `vicinal.problem`; computed in float64.
        neighborhoods: resolved; one for all heads or one per head.
        scale: factor of the scores.

    Returns:
        output `[B, *X, H, Dv]` and log-sum-exp `[B, *X, H]`, both float64.
    """
    query, key, value, extra_keys, extra_values, rpb = (
        None if t is None else t.to(torch.float64) for t in inputs.numbers
    )
    assert query is not None
    assert key is not None
    assert value is not None
    masked = inputs.key_mask
    if masked is not None:
        there = masked[..., None, None]  # where it is not, what a token asks may be no number either
        key, value = key.masked_fill(~there, 0.0), value.masked_fill(~there, 0.0)
        silent = ~(query.isfinite().all(-1, keepdim=True) | (True if neighborhoods[0].is_part else there))
        query = query.masked_fill(silent, 0.0)
    batch, *lengths, heads, _ = query.shape
    repeat = heads // key.shape[-2]
    q = query.flatten(1, -3).transpose(1, 2)
    k = key.flatten(1, -3).transpose(1, 2).repeat_interleave(repeat, 1)
    v = value.flatten(1, -3).transpose(1, 2).repeat_interleave(repeat, 1)
    per_head = [n.resolve(lengths) for n in neighborhoods] * (heads // len(neighborhoods))

    scores = scale * (q @ k.transpose(-1, -2))
    if rpb is not None:
        scores = scores + torch.stack([bias_of(rpb[h : h + 1], n, lengths)[0] for h, n in enumerate(per_head)])
    mask = masks_of(per_head, lengths, inputs.window_sizes)
    scores = scores.masked_fill(~mask.to(query.device), float("-inf"))
    if extra_keys is not None and extra_values is not None:
        ek = extra_keys.transpose(1, 2).repeat_interleave(repeat, 1)
        ev = extra_values.transpose(1, 2).repeat_interleave(repeat, 1)
        scores = torch.cat([scores, scale * (q @ ek.transpose(-1, -2))], -1)
        v = torch.cat([v, ev], 2)
    if masked is not None:
        gone = ~masked.flatten(1)[:, None, None] | silent.flatten(1, -3).transpose(1, 2)
        more = silent.flatten(1, -3).transpose(1, 2).expand(-1, -1, -1, scores.shape[-1] - gone.shape[-1])
        scores = scores.masked_fill(torch.cat([gone, more], -1), float("-inf"))
    nothing = (scores == float("-inf")).all(-1, keepdim=True)  # then output and gradients are 0
    scores = scores.masked_fill(nothing, 0.0)
    lse = scores.logsumexp(-1).masked_fill(nothing[..., 0], float("-inf"))
    out = scores.softmax(-1).masked_fill(nothing, 0.0) @ v
    shape = (batch, *lengths, heads)
    return out.transpose(1, 2).reshape(*shape, value.shape[-1]), lse.transpose(1, 2).reshape(shape)
