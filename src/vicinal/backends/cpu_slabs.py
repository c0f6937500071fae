"""Attention over slabs: whole rows of the first axis at a time, straight from the tokens, without any copy.

For problems whose inner axes are short (or none): a slab of queries and the slab of its keys are contiguous tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from vicinal.backends.cpu_plan import StripPlan
from vicinal.backends.cpu_strips import MASKS, Results, Tokens, attention, attention_backward
from vicinal.backends.numba.team import each

Slab = tuple[slice, slice, Tensor | None]  # tokens of the queries, of the keys, mask


def forward(plan: StripPlan, tokens: Tokens, apart: bool) -> tuple[Tensor, Tensor]:
    """Output `[B, *X, H, width]` and log-sum-exp `[B, *X, H]`; where `apart`, heads on threads of their own."""
    if is_single(plan) and not apart:
        return forward_single(plan, tokens.query, tokens.key, tokens.value, tokens.scale)
    output, lse = torch.empty_like(tokens.query), tokens.query.new_empty(tokens.query.shape[:-1])
    flat = _flat(tokens.query), _flat(tokens.key), _flat(tokens.value), _flat(output), _flat(lse.unsqueeze(-1))

    def attend(heads: slice) -> None:
        query, key, value, into, into_lse = (t[:, heads] for t in flat)
        for queries, keys, mask in _slabs(plan, query.dtype):
            out, sums = attention(
                query[:, :, queries], key[:, :, keys], value[:, :, keys], 0.0, False, attn_mask=mask, scale=tokens.scale
            )  # fmt: skip
            into[:, :, queries].copy_(out)
            into_lse[:, :, queries, 0].copy_(sums)

    each(attend, _head_ranges(tokens, apart), apart)
    return output, lse


def forward_single(plan: StripPlan, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same where one slab is all."""
    shape = query.shape
    size, stride = plan.heads_first
    out, lse = attention(
        query.contiguous().as_strided(size, stride),
        key.contiguous().as_strided(size, stride),
        value.contiguous().as_strided(size, stride),
        attn_mask=_single_mask(plan, query.dtype),
        scale=scale,
    )
    return out.transpose(1, 2).view(shape), lse.transpose(1, 2).view(shape[:-1])


def backward(plan: StripPlan, tokens: Tokens, results: Results, apart: bool) -> Tokens:
    """Gradients of `tokens`; where `apart`, heads on threads of their own."""
    if is_single(plan) and not apart:
        return backward_single(plan, tokens, results)
    query, key, value = _flat(tokens.query), _flat(tokens.key), _flat(tokens.value)
    output, above, lse = _flat(results.output), _flat(results.grad_output), _flat(results.lse.unsqueeze(-1))[..., 0]
    grad_query, grad_key, grad_value = (torch.empty_like(t) for t in (tokens.query, tokens.key, tokens.value))
    flat = query, key, value, output, above, lse, _flat(grad_query), _flat(grad_key), _flat(grad_value)

    def attend(heads: slice) -> None:
        q, k, v, o, do, sums, into_query, into_key, into_value = (t[:, heads] for t in flat)
        # Added up heads first: rows of one head are then next to each other.
        sum_key, sum_value = (torch.zeros(t.shape, dtype=t.dtype) for t in (k, v))
        for queries, keys, mask in _slabs(plan, query.dtype):
            dq, dk, dv = attention_backward(
                do[:, :, queries], q[:, :, queries], k[:, :, keys], v[:, :, keys],
                o[:, :, queries], sums[:, :, queries], 0.0, False, attn_mask=mask, scale=tokens.scale,
            )  # fmt: skip
            into_query[:, :, queries].copy_(dq)
            sum_key[:, :, keys].add_(dk)
            sum_value[:, :, keys].add_(dv)
        into_key.copy_(sum_key)
        into_value.copy_(sum_value)

    each(attend, _head_ranges(tokens, apart), apart)
    return Tokens(grad_query, grad_key, grad_value, None, tokens.scale)


def backward_single(plan: StripPlan, tokens: Tokens, results: Results) -> Tokens:
    """The same where one slab is all."""
    shape = tokens.query.shape
    size, stride = plan.heads_first
    grads = attention_backward(
        results.grad_output.as_strided(size, stride),
        tokens.query.as_strided(size, stride),
        tokens.key.as_strided(size, stride),
        tokens.value.as_strided(size, stride),
        results.output.as_strided(size, stride),
        results.lse.as_strided(size[:-1], (size[1] * size[2], 1, size[1])),
        0.0,
        False,
        attn_mask=_single_mask(plan, tokens.query.dtype),
        scale=tokens.scale,
    )
    dq, dk, dv = (g.transpose(1, 2).reshape(shape) for g in grads)
    return Tokens(dq, dk, dv, None, tokens.scale)


def is_single(plan: StripPlan) -> bool:
    """Whether one slab is all."""
    works = plan.parts[0].groups[0].works
    return len(works) == 1 and works[0].run.tiles == 1


def _single_mask(plan: StripPlan, dtype: torch.dtype) -> Tensor | None:
    if plan.full:
        return None
    part = plan.parts[0]
    return MASKS.get(plan.key, part, part.groups[0], part.groups[0].works[0], dtype)


def _slabs(plan: StripPlan, dtype: torch.dtype) -> Iterator[Slab]:
    (part,) = plan.parts
    (group,) = part.groups
    row = group.box
    for work in group.works:
        run = work.run
        mask = MASKS.get(plan.key, part, group, work, dtype)
        for i in range(run.tiles):
            query, key = run.first_query + i * run.rows, run.first_key + i * run.rows
            yield slice(query * row, (query + run.rows) * row), slice(key * row, (key + run.keys) * row), mask


def _head_ranges(tokens: Tokens, apart: bool) -> list[slice]:
    """The heads in as many even ranges as there are threads."""
    heads = tokens.query.shape[-2]
    count = min(torch.get_num_threads(), heads) if apart else 1
    cuts = [heads * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(cuts)]


def _flat(tokens: Tensor) -> Tensor:
    """`[B, *X, H, width]` as `[B, H, N, width]`."""
    return tokens.flatten(1, -3).transpose(1, 2)
