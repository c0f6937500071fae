"""Attention over slabs: whole rows of the first axis at a time, straight from the tokens, without any copy.

For problems whose inner axes are short (or none): a slab of queries and the slab of its keys are contiguous tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vicinal.backends.cpu_plan import StripPlan
from vicinal.backends.cpu_strips import MASKS, Results, Tokens, attention, attention_backward

Slab = tuple[slice, slice, Tensor | None]  # tokens of the queries, of the keys, mask


def forward(plan: StripPlan, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Output `[B, *X, H, width]` and log-sum-exp `[B, *X, H]`."""
    if is_single(plan):
        return forward_single(plan, tokens.query, tokens.key, tokens.value, tokens.scale)
    query, key, value = _flat(tokens.query), _flat(tokens.key), _flat(tokens.value)
    shape = tokens.query.shape
    outputs, sums = [], []
    for queries, keys, mask in _slabs(plan, query.dtype):
        out, lse = attention(
            query[:, :, queries], key[:, :, keys], value[:, :, keys], 0.0, False, attn_mask=mask, scale=tokens.scale
        )  # fmt: skip
        outputs.append(out.transpose(1, 2))
        sums.append(lse.transpose(1, 2))
    return torch.cat(outputs, 1).view(shape), torch.cat(sums, 1).view(shape[:-1])


def forward_single(plan: StripPlan, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same where one slab is all."""
    shape = query.shape
    flat = (shape[0], -1, *shape[-2:])
    mask = _single_mask(plan, query.dtype)
    out, lse = attention(
        query.reshape(flat).transpose(1, 2),
        key.reshape(flat).transpose(1, 2),
        value.reshape(flat).transpose(1, 2),
        attn_mask=mask,
        scale=scale,
    )
    return out.transpose(1, 2).view(shape), lse.transpose(1, 2).view(shape[:-1])


def backward(plan: StripPlan, tokens: Tokens, results: Results) -> Tokens:
    """Gradients of `tokens`."""
    query, key, value = _flat(tokens.query), _flat(tokens.key), _flat(tokens.value)
    output, above = _flat(results.output), _flat(results.grad_output)
    lse = results.lse.flatten(1, -2).transpose(1, 2)
    if is_single(plan):
        mask = _single_mask(plan, query.dtype)
        grads = attention_backward(
            above, query, key, value, output, lse, 0.0, False, attn_mask=mask, scale=tokens.scale
        )
        grad_query, grad_key, grad_value = (g.transpose(1, 2) for g in grads)
    else:
        parts = []
        grad_key, grad_value = torch.zeros_like(tokens.key), torch.zeros_like(tokens.value)
        into_key, into_value = _flat(grad_key), _flat(grad_value)
        for queries, keys, mask in _slabs(plan, query.dtype):
            dq, dk, dv = attention_backward(
                above[:, :, queries], query[:, :, queries], key[:, :, keys], value[:, :, keys],
                output[:, :, queries], lse[:, :, queries], 0.0, False, attn_mask=mask, scale=tokens.scale,
            )  # fmt: skip
            parts.append(dq.transpose(1, 2))
            into_key[:, :, keys].add_(dk)
            into_value[:, :, keys].add_(dv)
        grad_query = torch.cat(parts, 1)
    return Tokens(
        grad_query.reshape(tokens.query.shape),
        grad_key.reshape(tokens.key.shape),
        grad_value.reshape(tokens.key.shape),
        None,
        tokens.scale,
    )


def is_single(plan: StripPlan) -> bool:
    """Whether one slab is all."""
    works = plan.parts[0].groups[0].works
    return len(works) == 1 and works[0].run.tiles == 1


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


def _single_mask(plan: StripPlan, dtype: torch.dtype) -> Tensor | None:
    part = plan.parts[0]
    return MASKS.get(plan.key, part, part.groups[0], part.groups[0].works[0], dtype)


def _flat(tokens: Tensor) -> Tensor:
    """`[B, *X, H, width]` as `[B, H, N, width]`."""
    return tokens.flatten(1, -3).transpose(1, 2)
