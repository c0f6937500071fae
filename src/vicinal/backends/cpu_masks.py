"""Additive masks and biases of the CPU backend's tiles."""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from threading import Lock

import torch
from torch import Tensor

from vicinal.backends.cpu_plan import InnerGroup, Part, StripKey, Windows, Work

CACHED_BYTES = 128 << 20


class MaskCache:
    """Masks by the work they are for; the least recently used go when there are more than `CACHED_BYTES` of them."""

    def __init__(self) -> None:
        self._masks: OrderedDict[tuple[Work, torch.dtype], Tensor | None] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: StripKey, part: Part, group: InnerGroup, work: Work, dtype: torch.dtype) -> Tensor | None:
        """`[batch or 1, 1, queries, keys]` of 0 and minus infinity; None where every pair is attended."""
        with self._lock:
            if (work, dtype) in self._masks:
                self._masks.move_to_end((work, dtype))
                return self._masks[work, dtype]
        with torch.inference_mode(False):  # a later call may be outside of it
            mask = _additive(key, part, group, work, dtype)
        with self._lock:
            if (work, dtype) not in self._masks:
                self._masks[work, dtype] = mask
                self._bytes += _bytes(mask)
            while self._bytes > CACHED_BYTES:
                self._bytes -= _bytes(self._masks.popitem(last=False)[1])
        return mask


def _bytes(mask: Tensor | None) -> int:
    return 0 if mask is None else mask.numel() * mask.element_size()


def _additive(key: StripKey, part: Part, group: InnerGroup, work: Work, dtype: torch.dtype) -> Tensor | None:
    allowed = allowed_pairs(group, work)
    if allowed.all():
        return None
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))
    mask = _per_head(mask, key.group)
    if mask.shape[0] > 1:  # differs from tile to tile: repeated for heads and batch, so that one stride does
        mask = mask.expand(part.batch, *mask.shape).flatten(0, 1)
    return mask.unsqueeze(1).contiguous()


def allowed_pairs(group: InnerGroup, work: Work) -> Tensor:
    """`[tiles or 1, queries, keys]`, one head, True where the pair is attended."""
    per_axis = [_allowed(work.run.windows, work.run.keys)[None]]
    for axis, looks in zip(group.axes, group.looks):
        per_axis.append(torch.stack([_allowed(windows, axis.box) for _, windows in looks]))
    return _combine(per_axis, group)


def bias_index(part: Part, group: InnerGroup, work: Work, window: tuple[int, ...]) -> Tensor:
    """`[tiles or 1, queries, keys]`: where each pair's bias is in a flattened table; clamped where masked.

    `window` is in the order of the spatial axes, as the table `[2*K0-1, ...]` is.
    """
    rows = torch.arange(work.run.rows)
    shifts = [_offsets(work.run.shift, rows, work.run.keys)[None]]
    for axis, looks in zip(group.axes, group.looks):
        queries = torch.arange(axis.size)
        shifts.append(torch.stack([_offsets(shift, queries, axis.box) for shift, _ in looks]))
    sizes = [2 * k - 1 for k in window]
    index = None
    for position, which in enumerate(part.order):
        own = (shifts[position] + window[which] - 1).clamp_(0, sizes[which] - 1) * prod(sizes[which + 1 :])
        spread = _spread(own, position, len(part.order))
        index = spread if index is None else index + spread
    assert index is not None
    return _flatten(index, group)


def biased(key: StripKey, part: Part, group: InnerGroup, work: Work, table: Tensor, index: Tensor) -> Tensor:
    """`[batch, 1, queries, keys]`: bias `table[index]`, minus infinity where masked. `table` `[group, entries]`."""
    bias = table[:, index.flatten()].unflatten(1, index.shape)  # [group, tiles or 1, queries, keys]
    bias = bias.masked_fill_(~allowed_pairs(group, work), float("-inf")).transpose(0, 1).flatten(1, 2)
    if bias.shape[0] > 1:
        bias = bias.expand(part.batch, *bias.shape).flatten(0, 1)
    return bias.unsqueeze(1).contiguous()


def _per_head(mask: Tensor, group: int) -> Tensor:
    """`[tiles, queries, keys]` repeated for the heads of a group: `[tiles, group * queries, keys]`."""
    return mask if group == 1 else mask[:, None].expand(-1, group, -1, -1).flatten(1, 2)


def _allowed(windows: Windows, keys: int) -> Tensor:
    window = torch.tensor(windows)
    key = torch.arange(keys)
    return (key >= window[:, :1]) & (key < window[:, 1:])


def _offsets(shift: int, queries: Tensor, keys: int) -> Tensor:
    return shift + torch.arange(keys) - queries[:, None]


def _spread(pairs: Tensor, position: int, rank: int) -> Tensor:
    """`[tiles, size, box]` of one axis with 1 on the others; dimensions (inner tiles, sizes, boxes)."""
    shape = [1] * (3 * rank - 1)
    if position:
        shape[position - 1] = pairs.shape[0]
    shape[rank - 1 + position], shape[2 * rank - 1 + position] = pairs.shape[1:]
    return pairs.reshape(shape)


def _combine(per_axis: list[Tensor], group: InnerGroup) -> Tensor:
    out = _spread(per_axis[0], 0, len(per_axis))
    for position, pairs in enumerate(per_axis[1:], 1):
        out = out & _spread(pairs, position, len(per_axis))
    return _flatten(out, group)


def _flatten(pairs: Tensor, group: InnerGroup) -> Tensor:
    """To `[tiles or 1, queries, keys]`."""
    rank = 1 + len(group.axes)
    tiles = pairs.shape[: rank - 1]
    if any(n > 1 for n in tiles):
        tiles = tuple(len(a.tiles) for a in group.axes)  # type: ignore[assignment]
    pairs = pairs.expand(*tiles, *pairs.shape[rank - 1 :])
    queries, keys = pairs.shape[rank - 1 : 2 * rank - 1], pairs.shape[2 * rank - 1 :]
    return pairs.reshape(prod(tiles), prod(queries), prod(keys))
