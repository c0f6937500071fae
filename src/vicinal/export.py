"""Export to runtimes that know no operators of vicinal, as ONNX: neighborhood attention from plain operations.

Every query gathers its window's keys, so it takes memory for them all; sizes that are symbols (the batch) stay symbols.

    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.onnx.export(exported.run_decompositions(vicinal.export.decompositions())).save("model.onnx")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, cast

import torch
from torch import Tensor

from vicinal.geometry import window as rule
from vicinal.geometry.neighborhood import Axis, Neighborhood, decode
from vicinal.geometry.span import Span
from vicinal.operators import attend
from vicinal.problem import Inputs, lse_dtype


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What `torch.export.ExportedProgram.run_decompositions` takes: torch's own table, with vicinal's operator."""
    return {**torch.export.default_decompositions(), attend: attend_plainly}


def attend_plainly(*args: Any) -> tuple[Tensor, Tensor]:
    """The operator `vicinal::attend`, of inference: its arguments, its results.

    Raises:
        NotImplementedError: windows are per token.
    """
    count = len(Inputs._fields)
    inputs, code, scale = Inputs(*args[:count]), args[count], args[count + 1]
    if inputs.window_sizes is not None:
        raise NotImplementedError("windows per token are not exported as plain operations")
    query = inputs.query
    lengths, heads = [int(n) for n in query.shape[1:-2]], int(query.shape[-2])
    neighborhoods = [n.resolve(lengths) for n in decode(code, len(lengths))]
    per_head = neighborhoods * (heads // len(neighborhoods))
    outputs, lses, order = [], [], []
    for own in dict.fromkeys(per_head):
        which = [h for h, n in enumerate(per_head) if n == own]
        output, lse = _attend(inputs, own, which, scale)
        outputs.append(output)
        lses.append(lse)
        order += which
    if len(outputs) == 1:
        return outputs[0], lses[0]
    back = sorted(range(heads), key=order.__getitem__)
    return _picked(torch.cat(outputs, -2), -2, back), _picked(torch.cat(lses, -1), -1, back)


def _attend(inputs: Inputs, neighborhood: Neighborhood, heads: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    """Output `[B, *X, h, Dv]` and log-sum-exp `[B, *X, h]` of the heads that have this neighborhood."""
    dtype = lse_dtype(inputs.query.dtype)
    query, key, value, more_keys, more_values, rpb = (None if t is None else t.to(dtype) for t in inputs.numbers)
    assert query is not None
    assert key is not None
    assert value is not None
    lengths, rank = [int(n) for n in query.shape[1:-2]], query.ndim - 3
    group = query.shape[-2] // key.shape[-2]
    whole = len(heads) == query.shape[-2]
    q = query.flatten(1, rank)
    q = q if whole else _picked(q, 2, heads)
    there, silent = inputs.key_mask, None
    if there is not None:
        key, value = (t.masked_fill(~there[..., None, None], 0.0) for t in (key, value))
        if not neighborhood.is_part:
            silent = ~there.flatten(1)[..., None] & ~(q.abs() < inf).all(-1)
            q = q.masked_fill(silent[..., None], 0.0)

    def of_heads(tokens: Tensor) -> Tensor:
        """`[B, M, h, width]`: of key heads, those of the query heads."""
        if group == 1 and whole:
            return tokens
        return _picked(tokens, 2, [h // group for h in heads])

    tables = [_Window(axis, n, query.device) for axis, n in zip(neighborhood.axes, lengths)]
    keys, valid = tables[0].keys, tables[0].valid  # [N, W]
    for table, length in zip(tables[1:], neighborhood.key_lengths(lengths)[1:]):
        keys = _outer(keys, table.keys, lambda a, b, n=length: a * n + b)
        valid = _outer(valid, table.valid, torch.logical_and)
    tokens, slots = valid.shape

    def gathered(x: Tensor) -> Tensor:
        """`[B, N, h, W, width]`: of every query its keys'."""
        picked = of_heads(x.flatten(1, rank)).index_select(1, keys.flatten())
        return picked.unflatten(1, (tokens, slots)).transpose(2, 3)

    scores = scale * (q[..., None, :] @ gathered(key).transpose(-1, -2)).squeeze(-2)  # [B, N, h, W]
    if rpb is not None:
        scores = scores + _biases(_picked(rpb.flatten(1), 0, heads), tables)
    valid = valid[None, :, None, :]
    if there is not None:
        valid = valid & there.flatten(1).index_select(1, keys.flatten()).unflatten(1, (tokens, slots))[:, :, None]
    scores = scores.masked_fill(~valid, -inf)
    values = gathered(value)
    if more_keys is not None and more_values is not None:
        extra = of_heads(more_keys).transpose(1, 2)  # [B, h, M, D]
        scores = torch.cat([scores, scale * (q.transpose(1, 2) @ extra.transpose(-1, -2)).transpose(1, 2)], -1)
    if silent is not None:
        scores = scores.masked_fill(silent[..., None], -inf)
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top.masked_fill(top == -inf, 0.0)).exp()
    total = weights.sum(-1, keepdim=True)
    weights = weights / total.masked_fill(total == 0, 1.0)
    output = (weights[..., None, :slots] @ values).squeeze(-2)
    if more_keys is not None and more_values is not None:
        extra = of_heads(more_values).transpose(1, 2)
        output = output + (weights[..., slots:].transpose(1, 2) @ extra).transpose(1, 2)
    lse = (top + total.log()).squeeze(-1).masked_fill((total == 0).squeeze(-1), -inf)
    return output.to(inputs.query.dtype).unflatten(1, lengths), lse.unflatten(1, lengths)


def _biases(rpb: Tensor, tables: Sequence[_Window]) -> Tensor:
    """`[N, h, W]`: of every query its keys', from a flattened table `[h, ...]`."""
    index = tables[0].bias
    for table in tables[1:]:
        wide = 2 * (table.axis.window or 0) - 1
        index = _outer(index, table.bias, lambda a, b, n=wide: a * n + b)
    return rpb.index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)


def _outer(first: Tensor, second: Tensor, combine: Callable[..., Tensor]) -> Tensor:
    """Of tables `[N, W]` of two axes that of both, in row-major order."""
    return combine(first[:, None, :, None], second[None, :, None, :]).flatten(2).flatten(0, 1)


def _picked(tensor: Tensor, dim: int, places: Sequence[int]) -> Tensor:
    """`index_select` without a tensor of places, which export would keep as a constant."""
    return torch.cat([tensor.narrow(dim, i, 1) for i in places], dim)


class _Window:
    """Along one axis, of every query: its keys' places among those given, which of them there are, and their bias."""

    def __init__(self, axis: Axis, length: int, device: torch.device) -> None:
        assert axis.window is not None
        self.axis, span = axis, axis.span or Span.whole(length)
        query = torch.arange(*span.queries, dtype=torch.int64, device=device)
        group, place = query % axis.dilation, query // axis.dilation
        most = rule.group_length(span.length, axis.dilation, 0)
        total = cast(Any, rule.group_length)(span.length, axis.dilation, group)
        start: Tensor = cast(Any, rule.window_start)(axis, total, place)
        stop: Tensor = cast(Any, rule.window_stop)(axis, total, place)
        keys = start[:, None] + torch.arange(min(axis.window, most), dtype=torch.int64, device=device)
        self.valid = keys < stop[:, None]
        keys = torch.where(self.valid, keys, start[:, None])
        self.keys = keys * axis.dilation + group[:, None] - span.keys[0]
        self.bias = keys - place[:, None] + axis.window - 1
