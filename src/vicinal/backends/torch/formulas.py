"""Attention over tiles and its gradients, from plain, out-of-place torch operations: differentiable to any order.

They serve as the backend `torch`, as what second derivatives are taken of, and under `torch.func.jvp`, `jacfwd`,
`hessian` and `vmap`; on every device and dtype. Without autograd around them they need O(n) memory.

Half precision is computed in float32 and rounded once, at the end. A query whose scores are all -inf has output 0,
log-sum-exp -inf and zero gradients, of any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import e, inf, log2

import torch
from torch import Tensor
from torch.nn.functional import pad

from vicinal.autocast import without_autocast
from vicinal.backends.torch.tiles import Chunk, Walk, indices
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Upstream, Wanted, lse_dtype


def attend(
    inputs: Inputs, neighborhoods: Sequence[Neighborhood], scale: float, tile: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Neighborhood attention, differentiable to any order in every input.

    Args:
        inputs: tensors shaped as in `vicinal.problem`, already checked; any float dtype, any device, any strides.
        neighborhoods: resolved; one for all heads, or one per query head.
        scale: factor of the scores.
        tile: queries per tile along each axis; None for the cheapest.

    Returns:
        output `[B, *X, H, Dv]` in the dtype of the inputs, log-sum-exp `[B, *X, H]` in its `lse_dtype`; contiguous.
    """
    with without_autocast(inputs.query.device):
        tables = _Tables(inputs, scale, neighborhoods[0].is_part)
        walks = _walks(inputs, neighborhoods, tile)
        results = [_attend(walk, tables) for walk in walks]
        output = _heads([output for output, _ in results], walks)
        lse = _heads([lse for _, lse in results], walks).squeeze(-1)
        return output.to(inputs.query.dtype), lse


def attend_backward(
    inputs: Inputs,
    neighborhoods: Sequence[Neighborhood],
    scale: float,
    upstream: Upstream,
    wanted: Wanted,
    tile: Sequence[int] | None = None,
) -> Inputs:
    """The gradients of `attend`'s inputs that are wanted, None elsewhere; differentiable to any order in every tensor.

    They are derivatives of a function of the inputs; as a function of its own arguments this one takes the
    output and the log-sum-exp as they are given.
    """
    with without_autocast(inputs.query.device):
        tables, sums = _Tables(inputs, scale, neighborhoods[0].is_part), _Sums(inputs, wanted)
        dtype = tables.query.dtype
        above, lse = upstream.grad_output.to(dtype), upstream.lse
        delta = (above * upstream.output.to(dtype)).sum(-1)
        if upstream.grad_lse is not None:
            delta = delta - upstream.grad_lse
        if inputs.key_mask is not None:  # what comes from above to a query without keys may be no number
            above, delta = above.masked_fill((lse == -inf)[..., None], 0.0), delta.masked_fill(lse == -inf, 0.0)
        # Of a query without a finite score every weight is to be zero: exp(-inf - inf).
        rows = (_table(above), lse.masked_fill(lse == -inf, inf).flatten(), delta.flatten())
        walks = _walks(inputs, neighborhoods, tile)
        queries = [_attend_backward(walk, tables, rows, sums) for walk in walks]
        d_query = _heads(queries, walks) if wanted.query else None  # type: ignore[arg-type]
        return sums.gradients(d_query)


class _Tables:
    """The inputs as tables of rows, as `Walk` numbers them, in the dtype that is computed in."""

    def __init__(self, inputs: Inputs, scale: float, is_part: bool) -> None:
        """`is_part`: queries and keys may be other tokens."""
        query, key, value, extra_keys, extra_values, rpb = (
            None if t is None else t.to(lse_dtype(t.dtype)) for t in inputs.numbers
        )
        assert query is not None
        assert key is not None
        assert value is not None
        self.scale = scale
        self.key_limit: Tensor | None = None  # of scores: inf, or -inf where a key is masked
        self.query_limit: Tensor | None = None  # the same where a query is
        if inputs.key_mask is not None:
            gone = ~inputs.key_mask[..., None, None]
            silent = (False if is_part else gone) & ~query.isfinite().all(-1, keepdim=True)
            self.key_limit = pad(
                _limit(gone.expand_as(key[..., :1]), query.dtype), (0, _row_count(extra_keys)), value=inf
            )
            self.query_limit = _limit(silent, query.dtype)
            query, key, value = query.masked_fill(silent, 0.0), key.masked_fill(gone, 0.0), value.masked_fill(gone, 0.0)
        self.query, self.key, self.value = _table(query), _table(key), _table(value)
        if extra_keys is not None and extra_values is not None:
            self.key = torch.cat([self.key, _table(extra_keys)])
            self.value = torch.cat([self.value, _table(extra_values)])
        self.bias = None if rpb is None else rpb.flatten()

    def queries(self, chunk: Chunk) -> Tensor:
        """`[pairs, tiles, rows, D]`, times the scale."""
        return _take(self.query, chunk.queries) * self.scale

    def scores(self, chunk: Chunk, queries: Tensor, keys: Tensor) -> Tensor:
        """`[pairs, tiles, rows, columns]`, -inf where not attended."""
        scores = queries @ keys.transpose(-1, -2)
        if self.bias is not None and chunk.bias_index is not None:
            bias = pad(_take(self.bias, chunk.bias_index), (0, scores.shape[-1] - chunk.bias_index.shape[-1]))
            scores = scores + bias.index_select(0, chunk.head)
        scores = scores.minimum(chunk.mask)
        if chunk.own_mask is not None:
            scores = scores.minimum(chunk.own_mask)
        if self.key_limit is not None and self.query_limit is not None:
            limit = _take(self.query_limit, chunk.queries)[..., None]
            scores = scores.minimum(_take(self.key_limit, chunk.keys)[..., None, :]).minimum(limit)
        return scores


class _Sums:
    """The gradients that tiles add to, as tables: of keys, of values, of the bias."""

    def __init__(self, inputs: Inputs, wanted: Wanted) -> None:
        self.inputs, self.wanted = inputs, wanted
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.bias: Tensor | None = None

    @property
    def only_values(self) -> bool:
        """Whether the gradients of the scores are not needed."""
        return not (self.wanted.query or self.wanted.key or self.wanted.additional_keys or self.wanted.rpb)

    def add_values(self, chunk: Chunk, weights: Tensor, above: Tensor) -> None:
        if self.wanted.value or self.wanted.additional_values:
            columns = chunk.columns(self.wanted.value, self.wanted.additional_values)
            rows = _row_count(self.inputs.value, self.inputs.additional_values)
            terms = weights[..., columns].transpose(-1, -2) @ above
            self.value = _add(self.value, rows, chunk.keys[..., columns], terms)

    def add_scores(self, chunk: Chunk, d_scores: Tensor, queries: Tensor) -> None:
        if self.wanted.key or self.wanted.additional_keys:
            columns = chunk.columns(self.wanted.key, self.wanted.additional_keys)
            rows = _row_count(self.inputs.key, self.inputs.additional_keys)
            terms = d_scores[..., columns].transpose(-1, -2) @ queries
            self.key = _add(self.key, rows, chunk.keys[..., columns], terms)
        if self.wanted.rpb and self.inputs.rpb is not None and chunk.bias_index is not None:
            terms = _add(None, len(chunk.bias_index), chunk.head, d_scores[..., : chunk.box])
            self.bias = _add(self.bias, self.inputs.rpb.numel(), chunk.bias_index, terms)

    def gradients(self, d_query: Tensor | None) -> Inputs:
        """In the inputs' shapes and dtypes."""
        keys, more_keys = _split(self.key, self.inputs.key)
        values, more_values = _split(self.value, self.inputs.value)
        found = (d_query, keys, values, more_keys, more_values, self.bias)
        return Inputs(
            *(
                grad.to(like.dtype).reshape(like.shape) if is_wanted and like is not None and grad is not None else None
                for grad, like, is_wanted in zip(found, self.inputs, self.wanted)
            )  # type: ignore[arg-type]
        )


def _attend(walk: Walk, tables: _Tables) -> tuple[Tensor, Tensor]:
    """Output `[B, *X, h, Dv]` and log-sum-exp `[B, *X, h, 1]` of the walk's heads."""
    outputs, sums = [], []
    for chunk in walk.chunks():
        keys, values = _take(tables.key, chunk.keys), _take(tables.value, chunk.keys)
        scores = tables.scores(chunk, tables.queries(chunk), keys)
        top = scores.detach().amax(-1, keepdim=True)  # any constant gives the same derivatives
        top = top.masked_fill(top == -inf, 0.0)
        weights = _exp(scores - top)
        total = weights.sum(-1, keepdim=True)
        is_empty = total == 0
        total = total.masked_fill(is_empty, 1.0)
        outputs.append(weights @ values / total)
        sums.append((top + total.log()).masked_fill(is_empty, -inf))
    return walk.tokens(outputs), walk.tokens(sums)


def _attend_backward(walk: Walk, tables: _Tables, rows: tuple[Tensor, Tensor, Tensor], sums: _Sums) -> Tensor | None:
    """Gradient of the query `[B, *X, h, D]` of the walk's heads, if wanted; adds the other gradients to `sums`."""
    d_output, lse, delta = rows
    d_queries = []
    for chunk in walk.chunks():
        queries, keys, above = tables.queries(chunk), _take(tables.key, chunk.keys), _take(d_output, chunk.queries)
        row_lse = _take(lse, chunk.queries).masked_fill(chunk.is_padding, inf)
        weights = _exp(tables.scores(chunk, queries, keys) - row_lse[..., None])
        sums.add_values(chunk, weights, above)
        if sums.only_values:
            continue
        products = above @ _take(tables.value, chunk.keys).transpose(-1, -2)
        d_scores = weights * (products - _take(delta, chunk.queries)[..., None])
        sums.add_scores(chunk, d_scores, queries)
        if sums.wanted.query:
            d_queries.append(d_scores @ keys * tables.scale)
    return walk.tokens(d_queries) if d_queries else None


def _walks(inputs: Inputs, neighborhoods: Sequence[Neighborhood], tile: Sequence[int] | None) -> list[Walk]:
    """One for every set of heads that share a neighborhood."""
    heads = range(int(inputs.query.shape[-2]))
    if len(set(neighborhoods)) == 1:
        return [Walk(inputs, heads, neighborhoods[0], tile)]
    return [
        Walk(inputs, [h for h in heads if neighborhoods[h] == own], own, tile) for own in dict.fromkeys(neighborhoods)
    ]


def _heads(parts: list[Tensor], walks: list[Walk]) -> Tensor:
    """`[B, *X, H, width]` from those of every walk's heads."""
    if len(parts) == 1:
        return parts[0]
    order = [h for walk in walks for h in walk.heads]
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat(parts, -2).index_select(-2, indices(back, parts[0].device))


def _limit(gone: Tensor, dtype: torch.dtype) -> Tensor:
    """A row of numbers: -inf where gone, inf elsewhere."""
    return torch.full(gone.shape, inf, dtype=dtype, device=gone.device).masked_fill(gone, -inf).flatten()


def _table(tokens: Tensor) -> Tensor:
    """`[B, *X, H, width]` as rows: a view, or contiguous copies."""
    return tokens.reshape(-1, tokens.shape[-1])


def _split(table: Tensor | None, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The rows of the tokens, and those behind them: in memory of their own, as two gradients must be."""
    if table is None:
        return None, None
    rows = _row_count(tokens)
    return table[:rows], table[rows:].clone()


def _row_count(*tokens: Tensor | None) -> int:
    return sum(t.shape[:-1].numel() for t in tokens if t is not None)


def _take(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.flatten()).unflatten(0, index.shape)


def _add(total: Tensor | None, rows: int, index: Tensor, terms: Tensor) -> Tensor:
    """`total`, a table of `rows` rows, zero at first, with `terms` added at `index`."""
    terms = terms.flatten(0, index.ndim - 1)
    if total is None:
        total = terms.new_zeros((rows, *terms.shape[1:]))  # from the terms: under vmap it has a batch where they have
    return total.index_add_(0, index.flatten(), terms)


def _exp(x: Tensor) -> Tensor:
    return (x * log2(e)).exp2()  # torch's exp on CPUs takes ten times as long where it meets -inf
