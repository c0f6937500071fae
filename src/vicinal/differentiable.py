"""Neighborhood attention from plain, out-of-place torch operations: differentiable any number of times.

It serves what the fused backends do not: double backward, `torch.func.jvp`, `jacfwd`, `hessian`, `vmap`; on
every device and dtype. It walks the same tiles as they do (tile of queries, box of keys), some at a time, so
the forward needs O(n) memory besides what autograd saves. Right first: the speed of it matters less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import groups, key_interval, tiles
from vicinal.geometry.window import window_start, window_stop
from vicinal.problem import Inputs, lse_dtype

QUERIES_PER_TILE = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}  # by rank
SCORES_PER_CHUNK = 1 << 22


def attend(inputs: Inputs, neighborhoods: Sequence[Neighborhood], scale: float) -> tuple[Tensor, Tensor]:
    """Neighborhood attention, differentiable to any order in every input.

    Half precision is computed in float32 and rounded once, at the end.

    Args:
        inputs: tensors shaped as in `vicinal.problem`, already checked; any float dtype, any device.
        neighborhoods: one for all heads, or one per query head.
        scale: factor of the scores.

    Returns:
        output `[B, *X, H, Dv]` in the dtype of the inputs, log-sum-exp `[B, *X, H]` in its `lse_dtype`.

    Raises:
        ValueError: a window does not fit its axis.
    """
    dtype = inputs.query.dtype
    lengths = tuple(int(n) for n in inputs.query.shape[1:-2])  # tiles are planned from numbers, also when traced
    heads = int(inputs.query.shape[-2])
    resolved = [n.resolve(lengths) for n in neighborhoods]
    # Autocast would take the float32 products back to half precision.
    with torch.autocast(inputs.query.device.type, enabled=False):
        wide = Inputs(*(None if t is None else t.to(lse_dtype(dtype)) for t in inputs))  # type: ignore[arg-type]
        if len(set(resolved)) == 1:
            output, lse = _attend_heads(wide, list(range(heads)), resolved[0], scale)
        else:
            sets = [[h for h in range(heads) if resolved[h] == n] for n in dict.fromkeys(resolved)]
            parts = [_attend_heads(wide, own, resolved[own[0]], scale) for own in sets]
            order = torch.tensor([h for own in sets for h in own], device=wide.query.device).argsort()
            output = torch.cat([o for o, _ in parts], -2).index_select(-2, order)
            lse = torch.cat([s for _, s in parts], -1).index_select(-1, order)
    return output.to(dtype), lse


@dataclass(frozen=True)
class _Tile:
    """Some queries of one dilation group of an axis; positions are within the group."""

    offset: int  # of the group, in tokens
    last: int  # the group's last position
    first_query: int
    first_key: int
    starts: tuple[int, ...]  # the window of every query
    stops: tuple[int, ...]


@dataclass(frozen=True)
class _AxisPlan:
    """The tiles of one axis, of all its dilation groups one after the other.

    Every tile has `size` queries and `box` keys: short ones are padded, queries by repeating the last
    (dropped in the end), keys by masked ones.
    """

    size: int
    box: int
    tiles: tuple[_Tile, ...]
    first_tiles: tuple[int, ...]  # of every group


@lru_cache(maxsize=256)
def _axis_plan(axis: Axis, length: int, size: int) -> _AxisPlan:
    size = min(size, groups(axis, length)[0].length)
    rows: list[_Tile] = []
    first_tiles, box = [], 0
    for group in groups(axis, length):
        first_tiles.append(len(rows))
        for tile in tiles(group.length, size):
            low, high = key_interval(axis, group.length, tile)
            box = max(box, high - low)
            queries = [min(i, group.length - 1) for i in range(tile[0], tile[0] + size)]
            starts = tuple(window_start(axis, group.length, i) for i in queries)
            stops = tuple(window_stop(axis, group.length, i) for i in queries)
            rows.append(_Tile(group.offset, group.length - 1, tile[0], low, starts, stops))
    return _AxisPlan(size, box, tuple(rows), tuple(first_tiles))


class _Axis:
    """Tensors of one axis: for some of its tiles, where queries and keys are and which pairs count."""

    def __init__(self, axis: Axis, length: int, size: int, device: torch.device) -> None:
        self.plan = plan = _axis_plan(axis, length, size)
        self.window = axis.window
        self.dilation = axis.dilation

        def tensor(values: Sequence[object]) -> Tensor:
            return torch.tensor(values, device=device)

        self.offset = tensor([[t.offset] for t in plan.tiles])
        self.last = tensor([[t.last] for t in plan.tiles])
        self.first_query = tensor([[t.first_query] for t in plan.tiles])
        self.first_key = tensor([[t.first_key] for t in plan.tiles])
        self.start = tensor([t.starts for t in plan.tiles])
        self.stop = tensor([t.stops for t in plan.tiles])
        self.query_steps = torch.arange(plan.size, device=device)
        self.key_steps = torch.arange(plan.box, device=device)
        position = torch.arange(length, device=device)
        within = position // axis.dilation
        self.tile_of = tensor(plan.first_tiles)[position % axis.dilation] + within // plan.size
        self.slot_of = within % plan.size

    def queries(self, tile: Tensor) -> Tensor:
        """`[tiles, size]` positions within the group."""
        return (self.first_query[tile] + self.query_steps).minimum(self.last[tile])

    def keys(self, tile: Tensor) -> Tensor:
        """`[tiles, box]` positions within the group; beyond its end for padding."""
        return self.first_key[tile] + self.key_steps

    def tokens(self, position: Tensor, tile: Tensor) -> Tensor:
        """Token positions along this axis."""
        return position.minimum(self.last[tile]) * self.dilation + self.offset[tile]

    def mask(self, tile: Tensor) -> Tensor:
        """`[tiles, size, box]`, True where the pair is attended."""
        keys = self.keys(tile)[:, None]
        return (keys >= self.start[tile][:, :, None]) & (keys < self.stop[tile][:, :, None])

    def bias_index(self, tile: Tensor) -> Tensor:
        """`[tiles, size, box]`: index into this axis of the bias; clamped where masked."""
        assert self.window is not None
        offset = self.keys(tile)[:, None] - self.queries(tile)[:, :, None] + self.window - 1
        return offset.clamp(0, 2 * self.window - 2)


def _attend_heads(inputs: Inputs, heads: list[int], neighborhood: Neighborhood, scale: float) -> tuple[Tensor, Tensor]:
    """Output `[B, *X, h, Dv]` and log-sum-exp `[B, *X, h]` of `heads`, which share a neighborhood."""
    lengths = tuple(int(n) for n in inputs.query.shape[1:-2])
    query, key, value, extra_keys, extra_values, rpb = _heads_first(inputs, heads)
    batch, device = int(query.shape[0]), query.device
    axes = [
        _Axis(axis, length, size, device)
        for axis, length, size in zip(neighborhood.axes, lengths, QUERIES_PER_TILE[len(lengths)])
    ]
    counts = [len(a.plan.tiles) for a in axes]
    rows, columns = prod(a.plan.size for a in axes), prod(a.plan.box for a in axes)
    step = max(1, SCORES_PER_CHUNK // max(1, batch * len(heads) * rows * columns))
    outputs, sums = [], []
    for first in range(0, prod(counts), step):
        chunk = torch.arange(first, min(first + step, prod(counts)), device=device)
        ids = _unravel(chunk, counts)
        q = _take(query, [a.tokens(a.queries(t), t) for a, t in zip(axes, ids)], lengths)
        boxes = [a.tokens(a.keys(t), t) for a, t in zip(axes, ids)]
        k, v = _take(key, boxes, lengths), _take(value, boxes, lengths)
        scores = scale * (q @ k.transpose(-1, -2))  # [B, h, tiles, rows, columns]
        if rpb is not None:
            index: list[slice | Tensor] = [slice(None)]
            index += [_spread(a.bias_index(t), i, len(axes)) for i, (a, t) in enumerate(zip(axes, ids))]
            scores = scores + rpb[tuple(index)].reshape(len(heads), len(chunk), rows, columns)
        mask = torch.ones((), dtype=torch.bool, device=device)
        for i, (a, t) in enumerate(zip(axes, ids)):
            mask = mask & _spread(a.mask(t), i, len(axes))
        scores = scores.masked_fill(~mask.reshape(len(chunk), rows, columns), float("-inf"))
        if extra_keys is not None:
            scores = torch.cat([scores, scale * (q @ extra_keys.transpose(-1, -2))], -1)
        weights = scores.softmax(-1)
        out = weights[..., :columns] @ v
        if extra_values is not None:
            out = out + weights[..., columns:] @ extra_values
        outputs.append(out)
        sums.append(scores.logsumexp(-1))
    back = _slots(axes, counts, rows)
    output = torch.cat(outputs, 2).flatten(2, 3).index_select(2, back)
    lse = torch.cat(sums, 2).flatten(2, 3).index_select(2, back)
    return output.transpose(1, 2).unflatten(1, lengths), lse.transpose(1, 2).unflatten(1, lengths)


def _heads_first(
    inputs: Inputs, heads: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Query, key, value `[B, h, N, D]`, extra keys and values `[B, h, 1, M, D]`, bias of `heads`."""
    total = int(inputs.query.shape[-2])
    group = total // int(inputs.key.shape[-2])

    def take(t: Tensor, dim: int, index: list[int]) -> Tensor:
        if index == list(range(t.shape[dim])):
            return t
        return t.index_select(dim, torch.tensor(index, device=t.device))

    def first(t: Tensor, index: list[int]) -> Tensor:
        return take(t.flatten(1, -3).transpose(1, 2), 1, index)

    kv = [h // group for h in heads]
    extra = [
        None if t is None else first(t, kv).unsqueeze(2) for t in (inputs.additional_keys, inputs.additional_values)
    ]
    bias = None if inputs.rpb is None else take(inputs.rpb, 0, heads)
    return (
        first(inputs.query, heads),
        first(inputs.key, kv),
        first(inputs.value, kv),
        extra[0],
        extra[1],
        bias,
    )


def _unravel(flat: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Row-major coordinates of flat indices."""
    out = []
    for count in reversed(counts):
        out.append(flat % count)
        flat = flat // count
    return out[::-1]


def _take(tokens: Tensor, positions: list[Tensor], lengths: tuple[int, ...]) -> Tensor:
    """Boxes `[B, h, tiles, prod(box), D]` of `tokens` `[B, h, N, D]`; `positions` `[tiles, box]` per axis."""
    count = positions[0].shape[0]
    flat = torch.zeros((count, 1), dtype=torch.long, device=tokens.device)
    for position, length in zip(positions, lengths):
        flat = (flat[:, :, None] * length + position[:, None, :]).flatten(1)
    return tokens.index_select(2, flat.flatten()).unflatten(2, (count, flat.shape[1]))


def _spread(pairs: Tensor, axis: int, rank: int) -> Tensor:
    """`[tiles, size, box]` of one axis as `[tiles, size0, ..., box0, ...]`, 1 on the other axes."""
    shape = [pairs.shape[0]] + [1] * (2 * rank)
    shape[1 + axis], shape[1 + rank + axis] = pairs.shape[1:]
    return pairs.reshape(shape)


def _slots(axes: list[_Axis], counts: list[int], rows: int) -> Tensor:
    """`[N]`: where each token is among all tiles' queries, flattened."""
    tile = torch.zeros(1, dtype=torch.long, device=axes[0].tile_of.device)
    slot = tile
    for axis, count in zip(axes, counts):
        tile = (tile[:, None] * count + axis.tile_of).flatten()
        slot = (slot[:, None] * axis.plan.size + axis.slot_of).flatten()
    return tile * rows + slot
