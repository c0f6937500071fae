"""Three ways to attend to a map that ranks hold together, all with the same kernels.

- halo: `vicinal.distributed`.
- all-gather: every rank has all keys and values, and attends with its own queries.
- Ulysses: tokens are exchanged for heads; every rank attends with its heads over the whole map (arXiv 2309.14509).

Each takes and returns a rank's shard, and its gradients are the shard's.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from vicinal import distributed
from vicinal.circular import around
from vicinal.distributed import Halo, Layout
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def halo(window: Neighborhood, layout: Layout, overlap: bool | None = None) -> Attend:
    """By halo exchange."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return distributed.neighborhood_attention(query, key, value, window, layout=layout, overlap=overlap)

    return attend


def all_gather(window: Neighborhood, layout: Layout) -> Attend:
    """With all keys and values on every rank."""
    plan = Halo((window.resolve(layout.lengths),), layout.lengths, layout.shards)
    ((_, axis),) = layout.dims
    spans, wholes = [], []
    for i, (length, own, needed) in enumerate(zip(layout.lengths, layout.shard, plan.keys(layout.rank) or ())):
        wraps = window.axes[i].boundary == "wrap"
        keys = (min(needed[0], 0), max(needed[1], length)) if wraps else (0, length)
        wholes.append(Span(length, (0, length), keys))
        spans.append(Span(length, own, keys))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = (_Gather.apply(t, layout, axis + 1) for t in (key, value))
        for i, span in enumerate(wholes):
            if span.key_length > span.length:
                keys, values = around(keys, i + 1, span), around(values, i + 1, span)
        return neighborhood_attention(query, keys, values, window, spans=spans)

    return attend


def ulysses(window: Neighborhood, layout: Layout) -> Attend:
    """With some of the heads of the whole map on every rank."""
    ((_, axis),) = layout.dims

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (_Exchanged.apply(t, layout, axis + 1, True) for t in (query, key, value))
        return _Exchanged.apply(neighborhood_attention(q, k, v, window), layout, axis + 1, False)

    return attend


OVERLAPPED = "halo, overlapped"
METHODS: dict[str, Callable[[Neighborhood, Layout], Attend]] = {
    "halo": halo,
    OVERLAPPED: lambda window, layout: halo(window, layout, overlap=True),
    "halo, one after the other": lambda window, layout: halo(window, layout, overlap=False),
    "all-gather": all_gather,
    "Ulysses": ulysses,
}


def elements(method: str, window: Neighborhood, layout: Layout, heads: int, head_dim: int, rank: int) -> int:
    """Elements that a rank sends in the forward pass, of one batch element; the backward pass sends them back."""
    own, per_token = layout.shards[rank], heads * head_dim
    tokens, ranks = prod(stop - start for start, stop in own), len(layout.shards)
    if method == "all-gather":
        return 2 * tokens * per_token * (ranks - 1)
    if method == "Ulysses":  # query, key and value, and the output back
        return (3 * tokens * (ranks - 1) + prod(layout.lengths) - tokens) * per_token // ranks
    plan = Halo((window.resolve(layout.lengths),), layout.lengths, layout.shards)
    return 2 * plan.tokens_sent(rank) * per_token


def _sizes(layout: Layout, dim: int) -> list[int]:
    """Of the shards along a dimension of tensors."""
    return [box[dim - 1][1] - box[dim - 1][0] for box in layout.shards]


class _Gather(torch.autograd.Function):
    """All shards, one after the other along a dimension; gradients are summed over ranks."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, layout: Layout, dim: int) -> Tensor:
        sizes = _sizes(layout, dim)
        ctx.layout, ctx.dim = layout, dim
        rows = shard.movedim(dim, 0)
        own = pad(rows.contiguous(), [0, 0] * (rows.ndim - 1) + [0, max(sizes) - len(rows)])
        found = own.new_empty((len(sizes) * max(sizes), *own.shape[1:]))
        dist.all_gather_into_tensor(found, own, group=layout.group)
        parts = [part[:size].movedim(0, dim) for part, size in zip(found.chunk(len(sizes)), sizes)]
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        sizes, dim = _sizes(ctx.layout, ctx.dim), ctx.dim
        parts = [part.movedim(dim, 0) for part in gradient.split(sizes, dim)]
        padded = [pad(part, [0, 0] * (part.ndim - 1) + [0, max(sizes) - len(part)]) for part in parts]
        own = torch.empty_like(padded[0], memory_format=torch.contiguous_format)
        dist.reduce_scatter_tensor(own, torch.cat(padded), group=ctx.layout.group)
        return own[: sizes[ctx.layout.rank]].movedim(0, dim).contiguous(), None, None


class _Exchanged(torch.autograd.Function):
    """A shard of all heads -> some heads of the whole map, or back."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layout: Layout, dim: int, to_heads: bool) -> Tensor:
        ctx.settings = layout, dim, to_heads
        return _exchanged(tokens, layout, dim, to_heads)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        layout, dim, to_heads = ctx.settings
        return _exchanged(gradient, layout, dim, not to_heads), None, None, None


def _exchanged(tokens: Tensor, layout: Layout, dim: int, to_heads: bool) -> Tensor:
    sizes = _sizes(layout, dim)
    ranks = len(sizes)
    sent = list(tokens.chunk(ranks, -2) if to_heads else tokens.split(sizes, dim))
    shape = list(sent[layout.rank].shape)
    coming = [[*shape[:dim], size, *shape[dim + 1 :]] if to_heads else shape for size in sizes]
    buffer = tokens.new_empty(sum(map(prod, coming)))
    packed = torch.cat([t.reshape(-1) for t in sent])
    dist.all_to_all_single(buffer, packed, [prod(s) for s in coming], [t.numel() for t in sent], group=layout.group)
    parts = [part.view(own) for part, own in zip(buffer.split([prod(s) for s in coming]), coming)]
    return torch.cat(parts, dim if to_heads else -2)
