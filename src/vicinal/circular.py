"""Circular axes: keys and values unrolled, so that every backend meets a part of a line (`vicinal.geometry.unroll`).

They are copied once with what is needed from the other side at both ends; the gradients of these copies go home by
autograd. Nothing else knows of circles but the rule of windows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span
from vicinal.geometry.unroll import unrolled
from vicinal.problem import Inputs

Neighborhoods = tuple[Neighborhood, ...]


def unroll(inputs: Inputs, neighborhoods: Neighborhoods) -> tuple[Inputs, Neighborhoods]:
    """Checked inputs with keys and values that go on around circular axes, and spans that say how far."""
    lengths = tuple(inputs.query.shape[1:-2])
    spanned = unrolled(tuple(n.resolve(lengths) for n in neighborhoods), lengths)
    query, key, value, mask = inputs.query, inputs.key, inputs.value, inputs.key_mask
    if (gone := silent(inputs)) is not None:
        query = query.masked_fill(gone[..., None], 0.0)
    for axis, (before, span) in enumerate(zip(neighborhoods[0].spans, spanned[0].spans)):
        if span is not None and before is None:
            key, value = around(key, axis + 1, span), around(value, axis + 1, span)
            mask = None if mask is None else around(mask, axis + 1, span)
    return inputs._replace(query=query, key=key, value=value, key_mask=mask), spanned


def silent(inputs: Inputs) -> Tensor | None:
    """Of whole axes the queries `[B, *X, H]` of masked tokens that are no numbers; None without a mask.

    They have output 0 and log-sum-exp minus infinity; a part's queries are other tokens than its keys, to backends.
    """
    if inputs.key_mask is None:
        return None
    return ~inputs.key_mask[..., None] & ~inputs.query.isfinite().all(-1)


def around(tokens: Tensor, dim: int, span: Span) -> Tensor:
    """The tokens of a circle along `dim`, all of them, as `span` needs them: gone on at both ends."""
    before, after = -span.keys[0], span.keys[1] - span.length
    parts = [tokens.narrow(dim, span.length - before, before)] if before else []
    parts.append(tokens)
    if after:
        parts.append(tokens.narrow(dim, 0, after))
    return torch.cat(parts, dim) if len(parts) > 1 else tokens
