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
    query, key, value = (_flat(t) for t in (tokens.query, tokens.key, tokens.value))
    outputs, sums = [], []
    for queries, keys, mask in _slabs(plan, query.dtype):
        out, lse = attention(
            query[:, :, queries], key[:, :, keys], value[:, :, keys], 0.0, False, attn_mask=mask, scale=tokens.scale
        )  # fmt: skip
        outputs.append(out.transpose(1, 2))
        sums.append(lse.transpose(1, 2))
    shape = tokens.query.shape
    return _whole(outputs).reshape(shape), _whole(sums).reshape(shape[:-1])


def backward(plan: StripPlan, tokens: Tokens, results: Results) -> Tokens:
    """Gradients of `tokens`."""
    query, key, value = (_flat(t) for t in (tokens.query, tokens.key, tokens.value))
    output, above = _flat(results.output), _flat(results.grad_output)
    lse = results.lse.flatten(1, -2).transpose(1, 2)
    slabs = list(_slabs(plan, query.dtype))
    parts = []
    grad_key = grad_value = None
    if len(slabs) > 1:
        grad_key, grad_value = _flat(torch.zeros_like(tokens.key)), _flat(torch.zeros_like(tokens.value))
    for queries, keys, mask in slabs:
        dq, dk, dv = attention_backward(
            above[:, :, queries], query[:, :, queries], key[:, :, keys], value[:, :, keys], output[:, :, queries],
            lse[:, :, queries], 0.0, False, attn_mask=mask, scale=tokens.scale,
        )  # fmt: skip
        parts.append(dq.transpose(1, 2))
        if grad_key is None or grad_value is None:
            grad_key, grad_value = dk, dv
        else:
            grad_key[:, :, keys].add_(dk)
            grad_value[:, :, keys].add_(dv)
    assert grad_key is not None and grad_value is not None
    back = [t.transpose(1, 2).reshape(tokens.key.shape) for t in (grad_key, grad_value)]
    return Tokens(_whole(parts).reshape(tokens.query.shape), back[0], back[1], None, tokens.scale)


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


def _flat(tokens: Tensor) -> Tensor:
    """`[B, *X, H, width]` as `[B, H, N, width]`."""
    return tokens.flatten(1, -3).transpose(1, 2)


def _whole(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
