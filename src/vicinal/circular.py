"""Circular axes: every backend meets a part of a line (`vicinal.geometry.unroll`).

Either keys and values are copied once with what is needed from the other side at both ends, and the gradients of these
copies go home by autograd; or, where that is estimated to take longer, kernels read them where they are, around the
circle (backend `triton`). Where there are no gradients, a long axis is computed as one with ends, and the queries near
its seam once more, with copies of the few keys there. Nothing else knows of circles but the rule of windows.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from vicinal.backends.gpu.hardware import gpu_of
from vicinal.dispatch import Plan, plan, unsupported
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span
from vicinal.geometry.unroll import Seam, seam, unrolled
from vicinal.geometry.unroll import around as read_around
from vicinal.problem import Inputs, Problem
from vicinal.torch_internals import shape_of

Neighborhoods = tuple[Neighborhood, ...]
COPIED = 0.5  # of the memory's bandwidth, that copies of keys reach
READS_AROUND = "triton"  # the backend whose kernels do
SECOND_CALL = 1e-4  # seconds, of the host


def spanned(problem: Problem, neighborhoods: Neighborhoods, backend: str | None) -> Neighborhoods:
    """The neighborhoods with spans: of copies, or of kernels that read keys where they are, where that is best.

    `problem`: with copies; `neighborhoods`: its circular ones, resolved.
    """
    copied, there = problem.neighborhoods, read_around(neighborhoods, problem.lengths)
    if there is None or backend not in (None, READS_AROUND):
        return copied
    without = replace(problem, neighborhoods=there)
    if unsupported(READS_AROUND, without) is not None:
        return copied
    chosen = plan(problem, backend)
    if {chosen.backend.name, chosen.gradients.name} == {READS_AROUND}:
        return there
    is_best = _seconds(plan(without, READS_AROUND)) < _seconds(chosen) + _copy_seconds(problem)
    return there if is_best else copied


def seam_of(problem: Problem, neighborhoods: Neighborhoods, backend: str | None) -> Seam | None:
    """The seam, where queries near it are best computed once more; arguments as of `spanned`."""
    found = seam(neighborhoods, problem.lengths)
    if found is None or problem.has_key_mask or problem.has_window_sizes:
        return None
    chosen = plan(problem, backend)
    seconds = chosen.backend.seconds(problem, "forward", chosen.forward)
    if seconds is None:
        return None
    again = sum(found.queries) / problem.lengths[found.axis] * seconds + SECOND_CALL
    return found if again < _copy_seconds(problem) / 2 else None


def near_seam(inputs: Inputs, own: Seam) -> Inputs:
    """The queries near a seam, and the keys that they need."""
    query = _across(inputs.query, own.axis + 1, own.queries)
    key, value = (_across(t, own.axis + 1, own.keys) for t in (inputs.key, inputs.value))
    return inputs._replace(query=query, key=key, value=value)


def _across(tokens: Tensor, dim: int, counts: tuple[int, int]) -> Tensor:
    """The last tokens along `dim`, and then the first ones: so many of each."""
    last, first = counts
    return torch.cat([tokens.narrow(dim, tokens.shape[dim] - last, last), tokens.narrow(dim, 0, first)], dim)


def put_near_seam(whole: Tensor, near: Tensor, own: Seam) -> None:
    """Write what queries near a seam have."""
    (last, first), dim = own.queries, own.axis + 1
    whole.narrow(dim, whole.shape[dim] - last, last).copy_(near.narrow(dim, 0, last))
    whole.narrow(dim, 0, first).copy_(near.narrow(dim, last, first))


def _seconds(chosen: Plan) -> float:
    """An estimate of both passes; without end of a backend that has none."""
    passes = (
        chosen.backend.seconds(chosen.problem, "forward", chosen.forward),
        chosen.gradients.seconds(chosen.problem, "backward", chosen.backward),
    )
    return sum(inf if seconds is None else seconds for seconds in passes)


def _copy_seconds(problem: Problem) -> float:
    """Of keys and values read and written, and of their gradients."""
    token = problem.batch * problem.kv_heads * (problem.head_dim + problem.value_dim) * problem.dtype.itemsize
    moved = 2 * token * (prod(problem.lengths) + prod(problem.key_lengths))
    return moved / (COPIED * gpu_of(problem.device).architecture.bandwidth)


def unroll(
    inputs: Inputs, neighborhoods: Neighborhoods, spanned: Neighborhoods | None = None
) -> tuple[Inputs, Neighborhoods]:
    """Checked inputs with keys and values that go on around circular axes, and spans that say how far.

    `spanned`: the neighborhoods with these spans, of calls that nothing watches; where they say so nothing is copied.
    """
    query, key, value, mask = inputs.query, inputs.key, inputs.value, inputs.key_mask
    extend = around if spanned is None else _Around.apply
    if spanned is None:
        lengths = tuple(shape_of(query)[1:-2])
        spanned = unrolled(tuple(n.resolve(lengths) for n in neighborhoods), lengths)
    if (gone := silent(inputs)) is not None:
        query = query.masked_fill(gone[..., None], 0.0)
    for axis, (before, span) in enumerate(zip(neighborhoods[0].spans, spanned[0].spans)):
        if span is not None and before is None and not span.circle:
            key, value = extend(key, axis + 1, span), extend(value, axis + 1, span)
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


def _copied(tokens: Tensor, dim: int, span: Span) -> Tensor:
    """`around`, along another than the last dimension, copied in elements as wide as there are."""
    before, after = -span.keys[0], span.keys[1] - span.length
    shape = list(tokens.shape)
    shape[dim] += before + after
    found = tokens.new_empty(shape)
    whole, own = (t.view(torch.complex128) if _is_wide(tokens) else t for t in (found, tokens))
    pieces = (0, span.length - before, before), (before, 0, span.length), (before + span.length, 0, after)
    for at, first, count in pieces:
        if count:
            whole.narrow(dim, at, count).copy_(own.narrow(dim, first, count))
    return found


def _is_wide(tokens: Tensor) -> bool:
    """Whether rows are of whole elements of 16 bytes, which a GPU copies as fast as its memory is."""
    *strides, last = tokens.stride()
    size = 16 // tokens.itemsize
    numbers = (tokens.shape[-1], tokens.storage_offset(), tokens.data_ptr() // tokens.itemsize, *strides)
    return last == 1 and not tokens.is_neg() and not any(n % size for n in numbers)


class _Around(torch.autograd.Function):
    """`around`, whose gradient is added up where it is: autograd's own would copy all of it three times."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, dim: int, span: Span) -> Tensor:
        ctx.dim, ctx.span = dim, span
        return _copied(tokens, dim, span)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        dim, length = ctx.dim, ctx.span.length
        before, after = -ctx.span.keys[0], ctx.span.keys[1] - length
        if torch.is_grad_enabled() or 0 in grad.stride():
            grad = grad.clone()
        home = grad.narrow(dim, before, length)
        if before:
            home.narrow(dim, length - before, before).add_(grad.narrow(dim, 0, before))
        if after:
            home.narrow(dim, 0, after).add_(grad.narrow(dim, before + length, after))
        return home, None, None
