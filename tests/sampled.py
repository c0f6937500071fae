"""Results of problems too large for an oracle, at sampled tokens against a direct computation in float64."""

from __future__ import annotations

import random
from itertools import product

import torch
from torch import Tensor

from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.problem import Inputs, Problem, Upstream
from vicinal.reference import neighbors

Token = tuple[int, ...]


def sampled_errors(
    problem: Problem, inputs: Inputs, upstream: Upstream, gradients: Inputs | None, samples: int = 6
) -> dict[str, float]:
    """The largest relative error of each result, over the heads of sampled tokens and of the last one.

    `gradients`: of query, key and value, without one of the log-sum-exp; None to check the forward alone.
    """
    rng = random.Random(0)
    neighborhood, lengths = problem.neighborhood, problem.lengths
    tokens = [(problem.batch - 1, *(n - 1 for n in lengths))]
    tokens += [(rng.randrange(problem.batch), *map(rng.randrange, lengths)) for _ in range(samples)]
    worst: dict[str, float] = {}
    for batch, *place in tokens:
        found = _of_query(problem, inputs, upstream, batch, _keys(neighborhood, lengths, place), tuple(place))
        if gradients is not None:
            found |= _of_key(problem, inputs, upstream, batch, _queries(neighborhood, lengths, place), tuple(place))
        ours = {"output": upstream.output, "log-sum-exp": upstream.lse}
        if gradients is not None:
            ours |= {"query": gradients.query, "key": gradients.key, "value": gradients.value}
        for name, tensor in ours.items():
            got, want = tensor[(batch, *place)].double(), found[name]
            worst[name] = max(worst.get(name, 0.0), float((got - want).norm() / want.norm()))
    return worst


def _of_query(
    problem: Problem, inputs: Inputs, upstream: Upstream, batch: int, keys: tuple[Tensor, ...], place: Token
) -> dict[str, Tensor]:
    """The results of one query that attends to `keys`; heads come first."""
    at = (batch, *place)
    q, k, v = (
        inputs.query[at].double(),
        _heads(problem, inputs.key, batch, keys),
        _heads(problem, inputs.value, batch, keys),
    )
    scores = problem.scale * torch.einsum("hd,nhd->hn", q, k)
    p = scores.softmax(-1)
    output, do = torch.einsum("hn,nhd->hd", p, v), upstream.grad_output[at].double()
    ds = p * (torch.einsum("hd,nhd->hn", do, v) - (output * do).sum(-1, keepdim=True))
    query = problem.scale * torch.einsum("hn,nhd->hd", ds, k)
    return {"output": output, "log-sum-exp": scores.logsumexp(-1), "query": query}


def _of_key(
    problem: Problem, inputs: Inputs, upstream: Upstream, batch: int, queries: tuple[Tensor, ...], place: Token
) -> dict[str, Tensor]:
    """The gradients of one key to which `queries` attend, from their outputs and log-sum-exps."""
    at = (batch, *place)
    k, v = (t[at].double().repeat_interleave(problem.group_size, 0) for t in (inputs.key, inputs.value))
    q, o, do = (t[(batch, *queries)].double() for t in (inputs.query, upstream.output, upstream.grad_output))
    p = (problem.scale * torch.einsum("nhd,hd->nh", q, k) - upstream.lse[(batch, *queries)].double()).exp()
    ds = p * (torch.einsum("nhd,hd->nh", do, v) - (o * do).sum(-1))
    key, value = problem.scale * torch.einsum("nh,nhd->hd", ds, q), torch.einsum("nh,nhd->hd", p, do)
    each = {"key": key, "value": value}
    return {name: t.unflatten(0, (problem.kv_heads, problem.group_size)).sum(1) for name, t in each.items()}


def _heads(problem: Problem, tensor: Tensor, batch: int, tokens: tuple[Tensor, ...]) -> Tensor:
    """Keys or values of every query head: `[tokens, H, ...]`."""
    return tensor[(batch, *tokens)].double().repeat_interleave(problem.group_size, 1)


def _keys(neighborhood: Neighborhood, lengths: Token, place: list[int]) -> tuple[Tensor, ...]:
    return _index([neighbors(axis, n, x) for axis, n, x in zip(neighborhood.axes, lengths, place)])


def _queries(neighborhood: Neighborhood, lengths: Token, place: list[int]) -> tuple[Tensor, ...]:
    return _index([_attending(axis, n, x) for axis, n, x in zip(neighborhood.axes, lengths, place)])


def _attending(axis: Axis, length: int, key: int) -> list[int]:
    return [
        query for query in range(key % axis.dilation, length, axis.dilation) if key in neighbors(axis, length, query)
    ]


def _index(each: list[list[int]]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(x) for x in zip(*product(*each)))
