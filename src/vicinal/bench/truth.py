"""What a result must be: the float64 oracle on small problems, a sample of rows by the definition on large ones.

The tolerance is not a constant: it is twice the error that torch's SDPA makes on the same rows, under the same mask
and in the same dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vicinal.bench.masks import dense_mask
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import Interval, key_interval, query_interval
from vicinal.geometry.window import group_length, window_start, window_stop
from vicinal.problem import Inputs, Problem
from vicinal.reference import neighbors, reference

ORACLE_SCORES = 1 << 25  # dense scores up to which everything is compared, not a sample
SAMPLED_QUERIES = 48
SAMPLED_SCORES = 1 << 29  # scores to spend on sampled keys (of at least 2, at most 16)
CHUNK_SCORES = 1 << 25
SLACK = 2.0


@dataclass(frozen=True)
class Truth:
    """Expected values of some rows of the output and the gradients.

    Attributes:
        rows: for "output" and "dq" rows of `[B * N * H]`, for "dk" and "dv" rows of `[B * N * Hkv]`.
        values: float64 `[rows, D]` by name.
        tolerances: largest relative error allowed by name.
        sampled: whether rows are a sample; else they are all.
    """

    rows: dict[str, Tensor]
    values: dict[str, Tensor]
    tolerances: dict[str, float]
    sampled: bool

    def errors(self, results: Mapping[str, Tensor]) -> dict[str, float]:
        """The relative error (root mean square) of each heads-last result; NaN where any element is not finite."""
        return {
            name: _error(t.flatten(0, -2)[self.rows[name]], self.values[name]) if t.isfinite().all() else float("nan")
            for name, t in results.items()
        }

    def faults(self, errors: Mapping[str, float]) -> list[str]:
        """What is wrong, in words; empty when every error is within its tolerance."""
        return [
            f"{name} is off by {error:.2g} (allowed {self.tolerances[name]:.2g})"
            for name, error in errors.items()
            if not error <= self.tolerances[name]
        ]


def truth(problem: Problem, inputs: Inputs, grad_output: Tensor, gradients: bool = True, seed: int = 0) -> Truth:
    """The expected output and gradients of `problem` (one neighborhood, no extras) for these heads-last tensors.

    Without `gradients`, the sample leaves out keys, which take the most time.
    """
    scores = problem.batch * problem.heads * prod(problem.lengths) ** 2
    if scores <= ORACLE_SCORES:
        return _whole(problem, inputs, grad_output)
    return _sample(problem, inputs, grad_output, gradients, seed)


NAMES = ("output", "dq", "dk", "dv")


def _error(got: Tensor, expected: Tensor) -> float:
    # Gradients can be zero throughout (a window of one key): then compare absolutely.
    size = expected.norm().item()
    return ((got.double() - expected).norm() / (size if size > 1e-12 else 1.0)).item()


def _tolerance(yardstick: Tensor, expected: Tensor) -> float:
    return max(SLACK * _error(yardstick, expected), 8 * torch.finfo(torch.float32).eps)


def _whole(problem: Problem, inputs: Inputs, grad_output: Tensor) -> Truth:
    leaves = [t.detach().double().requires_grad_() for t in inputs[:3]]
    output, _ = reference(Inputs(*leaves), problem.neighborhoods, problem.scale)
    grads = torch.autograd.grad(output, leaves, grad_output.double())
    values = {name: t.detach().flatten(0, -2) for name, t in zip(NAMES, (output, *grads))}

    own = [t.detach().requires_grad_() for t in inputs[:3]]
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in own)
    k, v = (t.repeat_interleave(problem.group_size, 1) for t in (k, v))
    yard = _masked_sdpa(q, k, v, dense_mask(problem), problem.scale)
    yard = yard.transpose(1, 2).reshape(grad_output.shape)
    yards = (yard.detach(), *torch.autograd.grad(yard, own, grad_output))
    tolerances = {name: _tolerance(t.flatten(0, -2), values[name]) for name, t in zip(NAMES, yards)}
    rows = {name: torch.arange(t.shape[0], device=t.device) for name, t in values.items()}
    return Truth(rows, values, tolerances, sampled=False)


def _sample(problem: Problem, inputs: Inputs, grad_output: Tensor, gradients: bool, seed: int) -> Truth:
    generator = torch.Generator().manual_seed(seed)

    def somewhere() -> tuple[int, ...]:
        return tuple(int(torch.randint(n, (), generator=generator)) for n in problem.lengths)

    def pick(heads: int) -> tuple[int, int]:
        batch = int(torch.randint(problem.batch, (), generator=generator))
        return batch, int(torch.randint(heads, (), generator=generator))

    corners = list(product(*((0, n - 1) for n in problem.lengths)))
    queries = corners + [somewhere() for _ in range(SAMPLED_QUERIES)]
    keys = [corners[-1]] + [somewhere() for _ in range(15)] if gradients else []
    names = NAMES if gradients else NAMES[:2]
    found: dict[str, list[tuple[int, Tensor, Tensor]]] = {name: [] for name in names}
    for at in queries:
        batch, head = pick(problem.heads)
        row = (batch * prod(problem.lengths) + _flat(at, problem.lengths)) * problem.heads + head
        for name, result in _query_row(problem, inputs, grad_output, batch, head, at).items():
            found[name].append((row, *result))
    spent = 0
    for i, at in enumerate(keys):
        batch, head = pick(problem.kv_heads)
        cost = problem.group_size * prod(len(a.queries) * len(a.keys) for a in _lines_to(problem, at))
        spent += cost
        if i >= 2 and spent > SAMPLED_SCORES:
            break
        row = (batch * prod(problem.lengths) + _flat(at, problem.lengths)) * problem.kv_heads + head
        for name, result in _key_row(problem, inputs, grad_output, batch, head, at).items():
            found[name].append((row, *result))
    device = inputs.query.device
    rows = {name: torch.tensor([r for r, _, _ in found[name]], device=device) for name in names}
    values = {name: torch.stack([t for _, t, _ in found[name]]) for name in names}
    yards = {name: torch.stack([t for _, _, t in found[name]]) for name in names}
    tolerances = {name: _tolerance(yards[name], values[name]) for name in names}
    return Truth(rows, values, tolerances, sampled=True)


@dataclass(frozen=True)
class _Line:
    """One axis of a block of queries and the keys they need: token positions and who attends to whom."""

    queries: list[int]
    keys: list[int]
    mask: Tensor  # [queries, keys]


def _line(axis: Axis, length: int, offset: int, queries: Interval) -> _Line:
    """The line of the queries at `[start, stop)` of the dilation group at `offset`."""
    group = group_length(length, axis.dilation, offset)
    low, high = key_interval(axis, group, queries)

    def tokens(start: int, stop: int) -> list[int]:
        return [offset + axis.dilation * i for i in range(start, stop)]

    span = range(*queries)
    for i in {queries[0], queries[1] - 1}:  # the geometry, held against the definition
        window = tokens(window_start(axis, group, i), window_stop(axis, group, i))
        assert window == neighbors(axis, length, offset + axis.dilation * i)
    start = torch.tensor([window_start(axis, group, i) for i in span])[:, None]
    stop = torch.tensor([window_stop(axis, group, i) for i in span])[:, None]
    place = torch.arange(low, high)
    return _Line(tokens(*queries), tokens(low, high), (place >= start) & (place < stop))


def _lines_from(problem: Problem, at: tuple[int, ...]) -> list[_Line]:
    """Per axis: the query at `at` alone, and its keys."""
    return [
        _line(axis, n, x % axis.dilation, (x // axis.dilation, x // axis.dilation + 1))
        for axis, n, x in zip(problem.neighborhood.axes, problem.lengths, at)
    ]


def _lines_to(problem: Problem, at: tuple[int, ...]) -> list[_Line]:
    """Per axis: all queries that attend to the key at `at`, and all their keys."""
    lines = []
    for axis, n, x in zip(problem.neighborhood.axes, problem.lengths, at):
        offset, place = x % axis.dilation, x // axis.dilation
        group = group_length(n, axis.dilation, offset)
        start, stop = query_interval(axis, group, (place, place + 1))
        for i in (start - 1, stop):
            if 0 <= i < group:
                assert x not in neighbors(axis, n, offset + axis.dilation * i)
        lines.append(_line(axis, n, offset, (start, stop)))
    return lines


def _flat(at: tuple[int, ...], lengths: tuple[int, ...]) -> int:
    index = 0
    for x, n in zip(at, lengths):
        index = index * n + x
    return index


def _tokens(positions: list[list[int]], lengths: tuple[int, ...], device: torch.device) -> Tensor:
    index = torch.zeros(1, dtype=torch.long, device=device)
    for line, n in zip(positions, lengths):
        index = (index[:, None] * n + torch.tensor(line, device=device)[None, :]).flatten()
    return index


def _block_mask(lines: list[_Line], device: torch.device) -> Tensor:
    mask = torch.ones(1, 1, dtype=torch.bool, device=device)
    for line in lines:
        own = line.mask.to(device)
        mask = (mask[:, None, :, None] & own[None, :, None, :]).flatten(2).flatten(0, 1)
    return mask


def _query_row(
    problem: Problem, inputs: Inputs, grad_output: Tensor, batch: int, head: int, at: tuple[int, ...]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Expected value and yardstick of one row of the output and of dQ."""
    lines = _lines_from(problem, at)
    device = inputs.query.device
    row, cols = (_tokens([getattr(a, side) for a in lines], problem.lengths, device) for side in ("queries", "keys"))
    q, k, v, go = _heads(problem, inputs, grad_output, batch, head)
    mask = _block_mask(lines, device)
    exact = _attend(q[row].double(), k[cols].double(), v[cols].double(), go[row].double(), mask, problem.scale)
    rough = _sdpa(q[row], k[cols], v[cols], go[row], mask, problem.scale)
    return {name: (exact[i][0], rough[i][0]) for i, name in enumerate(("output", "dq"))}


def _key_row(
    problem: Problem, inputs: Inputs, grad_output: Tensor, batch: int, kv_head: int, at: tuple[int, ...]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Expected value and yardstick of one row of dK and of dV: over all queries that attend to the key."""
    lines = _lines_to(problem, at)
    device = inputs.query.device
    zeros = [torch.zeros(n, dtype=torch.float64, device=device) for n in (problem.head_dim, problem.value_dim)]
    exact, rough = list(zeros), list(zeros)
    rows, cols = (_tokens([getattr(a, side) for a in lines], problem.lengths, device) for side in ("queries", "keys"))
    column = int((cols == _flat(at, problem.lengths)).nonzero())
    step = max(1, CHUNK_SCORES // cols.numel())
    first, rest = lines[0], lines[1:]
    inner = prod(len(a.queries) for a in rest)
    lead = max(1, step // inner)  # whole rows of the first axis per chunk
    for start in range(0, len(first.queries), lead):
        part = slice(start, start + lead)
        mask = _block_mask([_Line(first.queries[part], first.keys, first.mask[part]), *rest], device)
        chunk = rows[start * inner : (start + lead) * inner]
        for member in range(problem.group_size):
            head = kv_head * problem.group_size + member
            q, k, v, go = (t for t in _heads(problem, inputs, grad_output, batch, head))
            tensors = (q[chunk], k[cols], v[cols], go[chunk])
            for into, block, cast in ((exact, _attend, torch.float64), (rough, _sdpa, problem.dtype)):
                qs, ks, vs, gs = (t.to(cast) for t in tensors)
                _, _, dk, dv = block(qs, ks, vs, gs, mask, problem.scale)
                into[0] = into[0] + dk[column].double()
                into[1] = into[1] + dv[column].double()
    return {"dk": (exact[0], rough[0]), "dv": (exact[1], rough[1])}


def _heads(problem: Problem, inputs: Inputs, grad_output: Tensor, batch: int, head: int) -> tuple[Tensor, ...]:
    """One head of query, key, value and output gradient, `[N, D]` each."""
    kv = head // problem.group_size
    pairs = ((inputs.query, head), (inputs.key, kv), (inputs.value, kv), (grad_output, head))
    return tuple(t[batch].flatten(0, -3)[:, h] for t, h in pairs)


def _attend(q: Tensor, k: Tensor, v: Tensor, go: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, ...]:
    """Masked attention and its gradients by formula: output, dq, dk, dv."""
    p = (scale * (q @ k.T)).masked_fill_(~mask, float("-inf")).softmax(-1)
    output = p @ v
    delta = (output * go).sum(-1, keepdim=True)
    dv = p.T @ go
    ds = p.mul_((go @ v.T).sub_(delta))
    return output, scale * (ds @ k), scale * (ds.T @ q), dv


def _sdpa(q: Tensor, k: Tensor, v: Tensor, go: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, ...]:
    """The same by torch's SDPA, in the dtype of the tensors."""
    leaves = [t[None, None].detach().requires_grad_() for t in (q, k, v)]
    query, key, value = leaves
    output = _masked_sdpa(query, key, value, mask[None, None], scale)
    grads = torch.autograd.grad(output, leaves, go[None, None])
    return tuple(t.detach()[0, 0] for t in (output, *grads))


def _masked_sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """SDPA by a fused kernel that takes masks of any size, on a GPU too; by plain matrix products where none can."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
