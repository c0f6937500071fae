"""What results must be in the paper's sweep: some rows in float64, fast enough to check every system on every problem.

A block is one head: the queries that attend to a sampled key, against all the keys of those queries. Within it the
output and dQ of these queries and dK and dV of that key are complete. For self attention, whose blocks would be the
whole problem, some queries against all keys: output and dQ.

The tolerance is twice the error that torch's SDPA makes on the same blocks in the same dtype; systems that store their
attention weights in that dtype are allowed the rounding of storing them on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vicinal.backends.slots import Slots
from vicinal.backends.unfused_torch import neighbors
from vicinal.geometry.tiles import query_interval
from vicinal.geometry.window import group_length
from vicinal.problem import Inputs, Problem

SAMPLED_KEYS = 3
SAMPLED_QUERIES = 64
SLACK = 2.0
STORING = 4  # of the dtype's epsilon: scores, weights and their gradients are each rounded once


@dataclass(frozen=True)
class Block:
    """One head's queries `rows` against its keys `columns`; `key`: a place among these, None for self attention."""

    batch: int
    head: int
    rows: Tensor
    columns: Tensor
    mask: Tensor
    key: int | None


@dataclass(frozen=True)
class Expected:
    """Expected values by name, each a list of tensors, one per block; and the tolerances."""

    blocks: tuple[Block, ...]
    values: dict[str, list[Tensor]]
    tolerances: dict[str, float]

    def errors(self, results: Mapping[str, Tensor]) -> dict[str, float]:
        """Relative error (root mean square) of heads-last results `[B, *X, H, D]`; NaN where not all are finite."""
        found = {}
        for name, t in results.items():
            if name not in self.values:
                continue
            rows = t.flatten(1, -3)
            got = [_rows(rows, block, name) for block in self.blocks]
            found[name] = _error(got, self.values[name]) if bool(t.isfinite().all()) else float("nan")
        return found

    def faults(self, errors: Mapping[str, float], stores_weights: bool, dtype: torch.dtype) -> list[str]:
        """What is wrong, in words; empty when every error is within its tolerance."""
        extra = STORING * torch.finfo(dtype).eps if stores_weights else 0.0
        return [
            f"{name} is off by {error:.2g} (allowed {self.tolerances[name] + extra:.2g})"
            for name, error in errors.items()
            if not error <= self.tolerances[name] + extra
        ]


def expected(problem: Problem, inputs: Inputs, grad: Tensor, seed: int = 0) -> Expected:
    """The truth of some blocks of `problem` (one neighborhood, as many key heads as heads, no extras)."""
    assert problem.group_size == 1
    generator = torch.Generator().manual_seed(seed)
    whole = problem.neighborhood.is_whole(problem.lengths)
    blocks = [_queries_block(problem, generator)] if whole else list(_key_blocks(problem, generator))
    values: dict[str, list[Tensor]] = {name: [] for name in ("output", "dq", "dk", "dv")}
    yards: dict[str, list[Tensor]] = {name: [] for name in values}
    for block in blocks:
        tensors = _gathered(inputs, grad, block)
        exact = tuple(t.double() for t in tensors)
        for into, found in (
            (values, _attend(exact, block.mask, problem.scale)),
            (yards, _sdpa(tensors, block.mask, problem.scale)),
        ):
            into["output"].append(found[0])
            into["dq"].append(found[1])
            if block.key is not None:
                into["dk"].append(found[2][block.key])
                into["dv"].append(found[3][block.key])
    values = {name: t for name, t in values.items() if t}
    floor = 8 * torch.finfo(torch.float32).eps
    tolerances = {name: max(SLACK * _error(yards[name], values[name]), floor) for name in values}
    return Expected(tuple(blocks), values, tolerances)


def _queries_block(problem: Problem, generator: torch.Generator) -> Block:
    tokens, device = prod(problem.lengths), problem.device
    rows = torch.randint(tokens, (SAMPLED_QUERIES,), generator=generator).to(device)
    batch, head = _somewhere(problem, generator)
    columns = torch.arange(tokens, device=device)
    return Block(batch, head, rows, columns, torch.ones(len(rows), tokens, dtype=torch.bool, device=device), None)


def _key_blocks(problem: Problem, generator: torch.Generator) -> Iterator[Block]:
    slots = Slots(problem.neighborhood, problem.lengths)
    corner = tuple(n - 1 for n in problem.lengths)
    places = [corner] + [
        tuple(int(torch.randint(n, (), generator=generator)) for n in problem.lengths) for _ in range(SAMPLED_KEYS - 1)
    ]
    for place in places:
        along = []
        for axis, n, x in zip(problem.neighborhood.axes, problem.lengths, place):
            offset, at = x % axis.dilation, x // axis.dilation
            start, stop = query_interval(axis, group_length(n, axis.dilation, offset), (at, at + 1))
            along.append(range(offset + axis.dilation * start, offset + axis.dilation * stop, axis.dilation))
        queries = [_flat(at, problem.lengths) for at in product(*along)]
        if not queries:  # a clipped window may leave a key to nobody
            continue
        rows = torch.tensor(queries, device=problem.device)
        index, valid = neighbors(slots, rows)
        columns = torch.unique(index[valid])
        mask = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=problem.device)
        row = torch.arange(len(rows), device=problem.device)[:, None].expand_as(index)
        mask[row[valid], torch.searchsorted(columns, index[valid])] = True
        key = int((columns == _flat(place, problem.lengths)).nonzero())
        yield Block(*_somewhere(problem, generator), rows, columns, mask, key)


def _somewhere(problem: Problem, generator: torch.Generator) -> tuple[int, int]:
    return (
        int(torch.randint(problem.batch, (), generator=generator)),
        int(torch.randint(problem.heads, (), generator=generator)),
    )


def _gathered(inputs: Inputs, grad: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def rows(t: Tensor, index: Tensor) -> Tensor:
        return t[block.batch].flatten(0, -3)[index, block.head]

    return (
        rows(inputs.query, block.rows),
        rows(inputs.key, block.columns),
        rows(inputs.value, block.columns),
        rows(grad, block.rows),
    )


def _rows(t: Tensor, block: Block, name: str) -> Tensor:
    if name in ("output", "dq"):
        return t[block.batch, block.rows, block.head]
    assert block.key is not None
    return t[block.batch, block.columns[block.key], block.head]


def _attend(tensors: tuple[Tensor, ...], mask: Tensor, scale: float) -> tuple[Tensor, ...]:
    """Masked attention and its gradients by formula, from query, key, value, grad: output, dq, dk, dv."""
    q, k, v, grad = tensors
    weights = (scale * (q @ k.T)).masked_fill_(~mask, float("-inf")).softmax(-1)
    output = weights @ v
    d_scores = weights * (grad @ v.T - (output * grad).sum(-1, keepdim=True))
    return output, scale * (d_scores @ k), scale * (d_scores.T @ q), weights.T @ grad


def _sdpa(tensors: tuple[Tensor, ...], mask: Tensor, scale: float) -> tuple[Tensor, ...]:
    """The same by torch's SDPA, in the dtype of the tensors."""
    q, k, v = (t[None, None].detach().requires_grad_() for t in tensors[:3])
    output = scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None], scale=scale)
    grads = torch.autograd.grad(output, (q, k, v), tensors[3][None, None])
    return tuple(t.detach()[0, 0] for t in (output, *grads))


def _error(got: list[Tensor], want: list[Tensor]) -> float:
    difference = sum((g.double() - w.double()).square().sum() for g, w in zip(got, want))
    size = sum(w.double().square().sum() for w in want)
    assert isinstance(difference, Tensor)
    assert isinstance(size, Tensor)
    # Gradients can be zero throughout: then compare absolutely.
    return (difference / size.clamp_min(1e-24)).sqrt().item()


def _flat(at: tuple[int, ...], lengths: tuple[int, ...]) -> int:
    index = 0
    for x, n in zip(at, lengths):
        index = index * n + x
    return index
