"""Heads whose dilations differ: a descriptor has one dilation, so runs of heads with one are problems of their own.

Inputs are read in place; results are copied together. Where query heads of one key head are in several runs, that
head's gradients are summed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vicinal.problem import Inputs, Problem, Upstream

Span = tuple[int, int]


class Run(NamedTuple):
    """Adjacent query heads of one dilation, of whole groups or of one group, and their key heads."""

    problem: Problem
    heads: Span
    kv_heads: Span

    def inputs(self, inputs: Inputs) -> Inputs:
        """Views of the tensors of its heads."""
        if self.heads == (0, inputs.query.shape[-2]):
            return inputs
        query, *others = inputs[:5]
        views = (None if t is None else _of(t, self.kv_heads) for t in others)
        return Inputs(_of(query, self.heads), *views)  # type: ignore[arg-type]

    def upstream(self, upstream: Upstream) -> Upstream:
        """Likewise of what the backward is given."""
        output, lse, grad_output, grad_lse = upstream
        first, stop = self.heads
        rows = (None if t is None else t[..., first:stop] for t in (lse, grad_lse))
        return Upstream(_of(output, self.heads), next(rows), _of(grad_output, self.heads), next(rows))  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def runs_of(problem: Problem) -> tuple[Run, ...]:
    """Those that together are `problem`; one, the problem itself, where all heads have the same dilation."""
    if len({n.dilation for n in problem.neighborhoods}) == 1:
        return (Run(problem, (0, problem.heads), (0, problem.kv_heads)),)
    spans = [span for same in _alike(problem) for span in _by_groups(same, problem.group_size)]
    return tuple(_run(problem, span) for span in spans)


def likeness(problem: Problem) -> Problem:
    """The problem to choose a tiling for: the run with the most work, without heads that share keys."""
    most = max((run.problem for run in runs_of(problem)), key=lambda p: p.useful_scores)
    return replace(most, heads=most.kv_heads, neighborhoods=most.neighborhoods[:1])


def forward(
    problem: Problem, inputs: Inputs, of: Callable[[Problem, Inputs], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, from those `of` each run."""
    outputs, lses = zip(*(of(run.problem, run.inputs(inputs)) for run in runs_of(problem)))
    return torch.cat(outputs, -2), torch.cat(lses, -1)


def backward(
    problem: Problem, inputs: Inputs, upstream: Upstream, of: Callable[[Problem, Inputs, Upstream], Inputs]
) -> Inputs:
    """Gradients, from those `of` each run."""
    runs = runs_of(problem)
    each = [of(run.problem, run.inputs(inputs), run.upstream(upstream)) for run in runs]
    query, *others = zip(*(gradients[:5] for gradients in each))
    spans = [run.kv_heads for run in runs]
    return Inputs(_joined(query, None), *(_joined(pieces, spans) for pieces in others))  # type: ignore[arg-type]


def _alike(problem: Problem) -> Iterable[Span]:
    """Spans of heads with the same dilation."""
    for _, heads in groupby(range(problem.heads), key=lambda h: problem.neighborhoods[h].dilation):
        first, *rest = heads
        yield first, first + len(rest) + 1


def _by_groups(span: Span, size: int) -> Iterable[Span]:
    """A span of query heads as the end of a group that began before, whole groups, and the beginning of one more."""
    first, stop = span
    cuts = sorted({first, min(stop, -(-first // size) * size), max(first, stop // size * size), stop})
    return pairwise(cuts)


def _run(problem: Problem, span: Span) -> Run:
    first, stop = span
    size = problem.group_size
    kv_heads = first // size, -(-stop // size)
    own = problem.neighborhoods[first:stop]
    own = own[:1] if len(set(own)) == 1 else own
    part = replace(problem, heads=stop - first, kv_heads=kv_heads[1] - kv_heads[0], neighborhoods=own)
    return Run(part, span, kv_heads)


def _of(tensor: Tensor, heads: Span) -> Tensor:
    return tensor[..., heads[0] : heads[1], :]


def _joined(pieces: Sequence[Tensor | None], spans: list[Span] | None) -> Tensor | None:
    """Gradients of all heads; `spans`: of the heads of each piece, which may be in several."""
    found = [piece for piece in pieces if piece is not None]
    if not found:
        return None
    if spans is None or all(before[1] == after[0] for before, after in pairwise(spans)):
        return torch.cat(found, -2)
    first = found[0]
    total = first.new_zeros((*first.shape[:-2], spans[-1][1], first.shape[-1]), dtype=torch.float32)
    for piece, heads in zip(found, spans):
        _of(total, heads).add_(piece)
    return total.to(first.dtype)
