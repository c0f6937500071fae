"""What a result must be: rows of output and gradients by the definition in float64, all of them or a sample.

A block is the queries of one key head's group of heads against all keys of theirs. Around a sampled key it is every
query that attends to it: output and dQ of these queries and dK and dV of that key are then complete.

The tolerance is not a constant: it is twice the error that torch's SDPA makes on the same blocks, under the same mask
and in the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.span import Interval
from vicinal.geometry.tiles import key_interval, query_interval
from vicinal.geometry.window import group_length, window_start, window_stop
from vicinal.problem import Inputs, Problem
from vicinal.reference import neighbors

SLACK = 2.0
STORING = 4  # of the dtype's epsilon: scores, weights and their gradients are each rounded once
NAMES = ("output", "dq", "dk", "dv")


@dataclass(frozen=True)
class Sampling:
    """How much of a result is compared.

    Attributes:
        everything: scores (of all heads, every query with every key) up to which all rows are.
        keys: keys to sample of larger problems; at least one, then while their blocks' scores are within `scores`.
            Of self attention, whose block is a head's whole problem, none where that is larger.
        queries: rows of self attention that are compared then.
    """

    everything: int = 1 << 25
    keys: int = 16
    scores: int = 1 << 33
    queries: int = 64
    chunk: int = 1 << 25


THOROUGH = Sampling()
QUICK = Sampling(everything=0, keys=3, scores=1 << 25)


@dataclass(frozen=True)
class Truth:
    """Expected values of some rows of the output and the gradients.

    Attributes:
        rows: by name; for "output" and "dq" rows of `[B * N * H]`, for "dk" and "dv" rows of `[B * N * Hkv]`.
        values: float64 `[rows, D]` by name.
        tolerances: largest relative error allowed by name.
        sampled: whether rows are a sample; else they are all.
    """

    rows: dict[str, Tensor]
    values: dict[str, Tensor]
    tolerances: dict[str, float]
    sampled: bool

    def errors(self, results: Mapping[str, Tensor]) -> dict[str, float]:
        """The relative error (root mean square) of heads-last results; NaN where any element is not finite."""
        return {
            name: _error(t.flatten(0, -2)[self.rows[name]], self.values[name]) if t.isfinite().all() else float("nan")
            for name, t in results.items()
            if name in self.rows
        }

    def faults(self, errors: Mapping[str, float], stored: torch.dtype | None = None) -> list[str]:
        """What is wrong, in words; empty when every error is within its tolerance.

        Args:
            errors: as `errors` gives them.
            stored: the dtype in which a system stores its attention weights, whose rounding it is allowed on top.
        """
        extra = 0.0 if stored is None else STORING * torch.finfo(stored).eps
        return [
            f"{name} is off by {error:.2g} (allowed {self.tolerances[name] + extra:.2g})"
            for name, error in errors.items()
            if not error <= self.tolerances[name] + extra
        ]


def truth(
    problem: Problem,
    inputs: Inputs,
    grad_output: Tensor,
    gradients: bool = True,
    sampling: Sampling = THOROUGH,
    seed: int = 0,
) -> Truth:
    """The expected output and gradients of `problem` (one neighborhood, no extras) for these heads-last tensors.

    Without `gradients` there is only the output. "dk" and "dv" are left out where no key is sampled.
    """
    generator = torch.Generator().manual_seed(seed)
    names = NAMES if gradients else NAMES[:1]
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    yards: dict[str, list[Tensor]] = {name: [] for name in names}
    everything = problem.batch * problem.heads * prod(problem.lengths) ** 2 <= sampling.everything
    for block in _whole_blocks(problem) if everything else _sampled_blocks(problem, sampling, generator):
        tensors = _gathered(problem, inputs, grad_output, block)
        exact = _solve(block, tuple(t.double() for t in tensors), problem.scale, _attend, sampling.chunk)
        rough = _solve(block, tensors, problem.scale, _sdpa, sampling.chunk)
        index = _result_rows(problem, block)
        for i, name in enumerate(names):
            if index[i // 2].numel():
                rows[name].append(index[i // 2])
                values[name].append(exact[i])
                yards[name].append(rough[i])
    found = [name for name in names if rows[name]]
    expected = {name: torch.cat(values[name]) for name in found}
    floor = 8 * torch.finfo(torch.float32).eps
    tolerances = {name: max(SLACK * _error(torch.cat(yards[name]), expected[name]), floor) for name in found}
    return Truth({name: torch.cat(rows[name]) for name in found}, expected, tolerances, not everything)


def _error(got: Tensor, expected: Tensor) -> float:
    # Gradients can be zero throughout (a window of one key): then compare absolutely.
    difference, size = torch.stack([(got.double() - expected).norm(), expected.norm()]).tolist()
    return difference / (size if size > 1e-12 else 1.0)


# Blocks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """Tokens `rows` as queries of a key head's heads, tokens `columns` as its keys.

    `mask` is `[rows, columns]`, None where every query sees every key; `complete` are places among `columns` of keys
    that no other query attends to.
    """

    batch: int
    kv_head: int
    rows: Tensor
    columns: Tensor
    mask: Tensor | None
    complete: Tensor


def _whole_blocks(problem: Problem) -> Iterator[_Block]:
    """Every head's whole problem."""
    tokens = torch.arange(prod(problem.lengths), dtype=torch.int64, device=problem.device)
    mask = None
    if not problem.neighborhood.is_whole(problem.lengths):
        mask = torch.ones(1, 1, dtype=torch.bool, device=problem.device)
        for axis, n in zip(problem.neighborhood.axes, problem.lengths):
            own = torch.zeros(n, n, dtype=torch.bool, device="cpu")
            for i in range(n):
                own[i, neighbors(axis, n, i)] = True
            mask = _both_axes(mask, own.to(problem.device))
    for batch, kv_head in product(range(problem.batch), range(problem.kv_heads)):
        yield _Block(batch, kv_head, tokens, tokens, mask, tokens)


def _sampled_blocks(problem: Problem, sampling: Sampling, generator: torch.Generator) -> Iterator[_Block]:
    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator, dtype=torch.int64, device="cpu"))

    device, tokens = problem.device, prod(problem.lengths)
    corners = [tuple(n - 1 for n in problem.lengths), (0,) * problem.rank]
    others = [tuple(below(n) for n in problem.lengths) for _ in range(sampling.keys)]
    keys = (corners + others)[: sampling.keys]
    if problem.neighborhood.is_whole(problem.lengths):
        columns = torch.arange(tokens, dtype=torch.int64, device=device)
        complete = torch.tensor([_flat(at, problem.lengths) for at in keys], dtype=torch.int64, device=device)
        rows = columns
        if problem.group_size * tokens**2 > sampling.scores:
            rows, complete = (
                torch.randint(tokens, (sampling.queries,), generator=generator, dtype=torch.int64, device="cpu").to(
                    device
                ),
                complete[:0],
            )
        yield _Block(below(problem.batch), below(problem.kv_heads), rows, columns, None, complete)
        return
    spent = 0
    for at in keys:
        lines = [_line(*each) for each in zip(problem.neighborhood.axes, problem.lengths, at)]
        if any(not line.queries for line in lines):  # a clipped window may leave a key to nobody
            continue
        cost = problem.group_size * prod(len(line.queries) * len(line.keys) for line in lines)
        if spent and spent + cost > sampling.scores:
            return
        spent += cost
        rows, columns = (
            _tokens([getattr(line, side) for line in lines], problem.lengths, device) for side in ("queries", "keys")
        )
        mask = torch.ones(1, 1, dtype=torch.bool, device=device)
        for line in lines:
            mask = _both_axes(mask, line.mask.to(device))
        place = [line.keys.index(x) for line, x in zip(lines, at)]
        complete = torch.tensor([_flat(place, [len(line.keys) for line in lines])], dtype=torch.int64, device=device)
        yield _Block(below(problem.batch), below(problem.kv_heads), rows, columns, mask, complete)


@dataclass(frozen=True)
class _Line:
    """One axis of a block: the positions of its queries and of their keys, and who attends to whom."""

    queries: list[int]
    keys: list[int]
    mask: Tensor  # [queries, keys]


def _line(axis: Axis, length: int, x: int) -> _Line:
    """All queries that attend to the key at `x`, and all their keys; held against the definition at its ends."""
    offset, place = x % axis.dilation, x // axis.dilation
    group = group_length(length, axis.dilation, offset)
    queries: Interval = query_interval(axis, group, (place, place + 1))

    def positions(start: int, stop: int) -> list[int]:
        return [offset + axis.dilation * i for i in range(start, stop)]

    for i in {queries[0] - 1, *queries, queries[1] - 1} & set(range(group)):
        window = positions(window_start(axis, group, i), window_stop(axis, group, i))
        assert window == neighbors(axis, length, offset + axis.dilation * i)
        assert (x in window) == (queries[0] <= i < queries[1])
    if queries[0] >= queries[1]:
        return _Line([], [], torch.zeros(0, 0, dtype=torch.bool, device="cpu"))
    low, high = key_interval(axis, group, queries)
    numbers = ([end(axis, group, i) for i in range(*queries)] for end in (window_start, window_stop))
    start, stop = (torch.tensor(ends, dtype=torch.int64, device="cpu") for ends in numbers)
    at = torch.arange(low, high, dtype=torch.int64, device="cpu")
    return _Line(positions(*queries), positions(low, high), (at >= start[:, None]) & (at < stop[:, None]))


def _both_axes(outer: Tensor, inner: Tensor) -> Tensor:
    """The mask over two axes from the masks of each, the second one's positions next to each other."""
    return (outer[:, None, :, None] & inner[None, :, None, :]).flatten(2).flatten(0, 1)


def _tokens(positions: list[list[int]], lengths: tuple[int, ...], device: torch.device) -> Tensor:
    index = torch.zeros(1, dtype=torch.int64, device="cpu")
    for line, n in zip(positions, lengths):
        index = (index[:, None] * n + torch.tensor(line, dtype=torch.int64, device="cpu")[None, :]).flatten()
    return index.to(device)


def _flat(at: tuple[int, ...] | list[int], lengths: tuple[int, ...] | list[int]) -> int:
    index = 0
    for x, n in zip(at, lengths):
        index = index * n + x
    return index


def _gathered(problem: Problem, inputs: Inputs, grad_output: Tensor, block: _Block) -> tuple[Tensor, ...]:
    """Query and output gradient `[heads, rows, D]`, key and value `[columns, D]`; as query, key, value, gradient."""
    group = slice(block.kv_head * problem.group_size, (block.kv_head + 1) * problem.group_size)

    def tokens(t: Tensor) -> Tensor:
        return t[block.batch].flatten(0, -3)

    return (
        tokens(inputs.query)[block.rows, group].transpose(0, 1),
        tokens(inputs.key)[block.columns, block.kv_head],
        tokens(inputs.value)[block.columns, block.kv_head],
        tokens(grad_output)[block.rows, group].transpose(0, 1),
    )


def _result_rows(problem: Problem, block: _Block) -> tuple[Tensor, Tensor]:
    """Where a block's results are: rows of `[B * N * H]`, and of `[B * N * Hkv]`."""
    first = block.batch * prod(problem.lengths)
    members = torch.arange(problem.group_size, dtype=torch.int64, device=block.rows.device)
    heads = block.kv_head * problem.group_size + members
    queries = (first + block.rows)[:, None] * problem.heads + heads
    return queries.flatten(), (first + block.columns[block.complete]) * problem.kv_heads + block.kv_head


# Attention --------------------------------------------------------------------------------------------------------

Solver = Callable[..., tuple[Tensor, ...]]


def _solve(
    block: _Block, tensors: tuple[Tensor, ...], scale: float, attend: Solver, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output and dq `[rows * heads, D]`, dk and dv of the complete keys, float64; rows by the chunk."""
    q, k, v, grad = tensors
    step = max(1, chunk // (q.shape[0] * k.shape[0]))
    by_row: list[tuple[Tensor, Tensor]] = []
    by_key = [torch.zeros(block.complete.numel(), t.shape[-1], dtype=torch.float64, device=k.device) for t in (k, v)]
    for start in range(0, q.shape[1], step):
        part = slice(start, start + step)
        mask = None if block.mask is None else block.mask[part]
        output, dq, dk, dv = attend(q[:, part], k, v, grad[:, part], mask, scale, block.complete)
        by_row.append((output.double(), dq.double()))
        by_key = [total + t.double() for total, t in zip(by_key, (dk, dv))]
    output, dq = (torch.cat(parts, 1).transpose(0, 1).flatten(0, 1) for parts in zip(*by_row))
    return output, dq, by_key[0], by_key[1]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: Tensor | None, scale: float, complete: Tensor
) -> tuple[Tensor, ...]:
    """Masked attention and its gradients by formula: output, dq, and dk and dv of the keys at `complete`."""
    p = scale * (q @ k.T)
    if mask is not None:
        p.masked_fill_(~mask, float("-inf"))
    p = p.softmax(-1)
    output = p @ v
    delta = (output * grad).sum(-1, keepdim=True)
    dv = (p[..., complete].transpose(1, 2) @ grad).sum(0)
    ds = p.mul_((grad @ v.T).sub_(delta))
    return output, scale * (ds @ k), scale * (ds[..., complete].transpose(1, 2) @ q).sum(0), dv


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: Tensor | None, scale: float, complete: Tensor
) -> tuple[Tensor, ...]:
    """The same by torch's SDPA in the dtype of the tensors: the fused kernel that takes masks, with or without one."""
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    keys, values = (t.expand(q.shape[0], *t.shape)[None] for t in leaves[1:])
    fused = SDPBackend.EFFICIENT_ATTENTION if q.device.type == "cuda" else SDPBackend.FLASH_ATTENTION
    with sdpa_kernel([fused, SDPBackend.MATH]):
        output = scaled_dot_product_attention(leaves[0][None], keys, values, attn_mask=mask, scale=scale)[0]
    dq, dk, dv = torch.autograd.grad(output, leaves, grad)
    return output.detach(), dq, dk[complete], dv[complete]
