"""Where the queries and the keys of tiles lie, computed on the device by a few operations, whatever the length.

Tokens of all batch elements and heads are rows of tables: queries `[B*N*H, D]`, keys `[B*N*Hkv + B*M*Hkv, D]` with the
additional ones behind. A `Walk` cuts the tiles of all batch elements and heads into chunks; a `Chunk` says which rows
its tiles read and which pairs of them count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf, prod
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from vicinal.geometry import window as rule
from vicinal.geometry.count import count
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.span import Span
from vicinal.problem import Inputs, lse_dtype

SCORES_PER_CHUNK = {"cpu": 1 << 18}  # what the nearest caches hold
SCORES_ELSEWHERE = 1 << 23
ROW_COST = 12  # of gathering a key for a tile, in scores
MOST_ROWS = 128  # queries of a tile


def tile_of(neighborhood: Neighborhood, lengths: Sequence[int]) -> tuple[int, ...]:
    """Queries per tile along each axis, where scores beyond the windows and gathered keys cost least together.

    A larger tile gathers each key fewer times and computes more scores in vain.
    """
    longest = [rule.group_length(n, axis.dilation, 0) for axis, n in zip(neighborhood.axes, lengths)]

    def cost(tile: Sequence[int]) -> float:
        counts = [count(*x, 1) for x in zip(neighborhood.axes, lengths, tile)]
        return prod(c.tiles * c.widest for c in counts) * (prod(tile) + ROW_COST)

    tile, best = (1,) * len(lengths), inf
    while prod(tile) < MOST_ROWS:
        larger = [
            tuple(min(2 * size, n) if i == j else size for j, size in enumerate(tile)) for i, n in enumerate(longest)
        ]
        found = min(larger, key=cost)
        if cost(found) >= best:
            break
        tile, best = found, cost(found)
    return tile


class AxisTiles:
    """The tiles of one axis, of all its dilation groups one after the other.

    Every group has as many tiles as the longest, and every tile `size` queries and `box` keys. Queries beyond a
    group's end repeat its last one; keys beyond it are outside every window. Positions are those within a group, tokens
    are counted from the first that is given.
    """

    def __init__(self, axis: Axis, length: int, size: int, device: torch.device) -> None:
        self.axis, self.device = axis, device
        self.span = span = axis.span or Span.whole(length)
        longest = rule.group_length(length, axis.dilation, 0)
        self.size = min(size, longest)
        self.box = count(axis, length, self.size, 1).widest
        self.per_group = ceil(longest / self.size)
        self.count = min(axis.dilation, length) * self.per_group

        tile = self._arange(self.count)[:, None]
        token = span.queries[0] + tile // self.per_group  # the first of the tile's group
        self.group, first = token % axis.dilation, token // axis.dilation
        of_group = cast(Any, rule.group_length)
        self.total = total = of_group(span.length, axis.dilation, self.group)
        beyond = of_group(span.queries[1], axis.dilation, self.group)
        places = first + tile % self.per_group * self.size + self._arange(self.size)
        self.is_padding = places >= beyond
        self.queries = places.minimum(beyond - 1)
        self.start: Tensor = cast(Any, rule.window_start)(axis, total, self.queries)
        self.stop: Tensor = cast(Any, rule.window_stop)(axis, total, self.queries)
        low, self.last_key = (of_group(end, axis.dilation, self.group) for end in span.keys)
        self.last_key -= 1
        self.first_key = self.start[:, :1].minimum(self.last_key + 1 - self.box).maximum(low)

        token = self._arange(length)
        within = token // axis.dilation
        self.tile_of_token = token % axis.dilation * self.per_group + within // self.size
        self.slot_of_token = within % self.size

    def _arange(self, stop: int) -> Tensor:
        return torch.arange(stop, dtype=torch.int64, device=self.device)

    def query_tokens(self, tile: Tensor) -> Tensor:
        """`[tiles, size]`, along this axis."""
        return self.queries[tile] * self.axis.dilation + self.group[tile] - self.span.queries[0]

    def key_tokens(self, tile: Tensor) -> Tensor:
        """`[tiles, box]`, along this axis; the group's last where a box goes beyond it."""
        keys = (self.first_key[tile] + self._arange(self.box)).minimum(self.last_key[tile])
        tokens = keys * self.axis.dilation + self.group[tile]
        return tokens % self.span.length if self.span.circle else tokens - self.span.keys[0]

    def mask(self, tile: Tensor, dtype: torch.dtype) -> Tensor:
        """`[tiles, size, box]`: inf where the pair is attended, -inf elsewhere."""
        key = torch.arange(self.box, dtype=dtype, device=self.device)
        # Half a step away from the ends, so that nothing is zero. By arithmetic: selecting takes ten times as long.
        start = (self.start - self.first_key)[tile].to(dtype)[..., None] - 0.5
        stop = (self.stop - self.first_key)[tile].to(dtype)[..., None] - 0.5
        return (key - start).minimum(stop - key) * inf

    def sized_mask(self, tile: Tensor, slot: Tensor, sizes: Tensor, column: Tensor) -> Tensor:
        """`[pairs, tiles, rows, columns]`: whether a pair is attended, of queries with `sizes` of their own.

        `slot` and `column`: the places along this axis of the rows of a tile, and of the columns of its box.
        """
        assert self.axis.window is not None
        own: Any = SimpleNamespace(**{**vars(self.axis), "window": sizes.clamp(1, self.axis.window)})
        queries, length = self.queries[tile][:, slot], cast(Any, self.total[tile])
        start = cast(Any, rule.window_start)(own, length, queries) - self.first_key[tile]
        stop = cast(Any, rule.window_stop)(own, length, queries) - self.first_key[tile]
        return (column >= start[..., None]) & (column < stop[..., None])

    def bias_index(self, tile: Tensor) -> Tensor:
        """`[tiles, size, box]`: index into this axis of the bias; some index where the pair is not attended."""
        assert self.axis.window is not None
        first = (self.first_key - self.queries + self.axis.window - 1)[tile]
        return (first[..., None] + self._arange(self.box)).clamp(0, 2 * self.axis.window - 2)


@dataclass(frozen=True)
class Chunk:
    """Some tiles of some batch elements and heads, `pairs` of these.

    Attributes:
        queries: `[pairs, tiles, rows]` rows of the table of queries.
        keys: `[pairs, tiles, columns]` rows of the table of keys; the last columns are the additional ones.
        mask: `[tiles, rows, columns]`, inf where attended, -inf elsewhere.
        own_mask: `[pairs, tiles, rows, columns]`, the same for windows per token; None where there are none.
        is_padding: `[tiles, rows]`, where a query only fills the tile.
        head: `[pairs]`, among the walk's heads.
        bias_index: `[heads, tiles, rows, box]` into the flattened table of the bias; None without one.
        box: how many columns are no additional ones.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor
    own_mask: Tensor | None
    is_padding: Tensor
    head: Tensor
    bias_index: Tensor | None
    box: int

    def columns(self, of_window: bool, of_additional: bool) -> slice:
        """Those of the keys in windows, of the additional ones, or of both."""
        return slice(0 if of_window else self.box, None if of_additional else self.box)


class Walk:
    """All tiles of the heads that share a neighborhood.

    Args:
        inputs: of the call.
        heads: indices of these heads.
        neighborhood: theirs, resolved.
        tile: queries per tile along each axis; None for the cheapest.
    """

    def __init__(
        self, inputs: Inputs, heads: Sequence[int], neighborhood: Neighborhood, tile: Sequence[int] | None = None
    ) -> None:
        query = inputs.query
        # Tiles are planned from numbers, also when shapes are traced.
        self.batch, *self.lengths, self.all_heads = (int(n) for n in query.shape[:-1])
        *self.key_lengths, self.kv_heads = (int(n) for n in inputs.key.shape[1:-1])
        self.additional = 0 if inputs.additional_keys is None else int(inputs.additional_keys.shape[1])
        self.sizes = None if inputs.window_sizes is None else inputs.window_sizes.reshape(-1).to(torch.int64)
        self.has_bias = inputs.rpb is not None
        self.heads, self.device, self.dtype = heads, query.device, lse_dtype(query.dtype)
        sizes = tile or tile_of(neighborhood, self.lengths)
        self.axes = [AxisTiles(*x, self.device) for x in zip(neighborhood.axes, self.lengths, sizes)]
        self.tiles = prod(axis.count for axis in self.axes)
        self.rows, self.box = prod(axis.size for axis in self.axes), prod(axis.box for axis in self.axes)

        pairs = self.batch * len(heads)
        scores = self.rows * (self.box + self.additional)
        budget = SCORES_PER_CHUNK.get(self.device.type, SCORES_ELSEWHERE)
        self.pair_step = max(1, min(pairs, budget // scores))
        self.tile_step = max(1, budget // (scores * max(1, pairs)))
        pair = self._arange(0, pairs)
        self.element, self.own = pair // len(heads), pair % len(heads)
        self.head = indices(heads, self.device)

    def chunks(self) -> Iterator[Chunk]:
        """Some tiles after the other, of each all pairs: at once, or some after the other where they are too many."""
        for first in range(0, self.tiles, self.tile_step):
            tile = self._arange(first, min(first + self.tile_step, self.tiles))
            tiles = _unravel(tile, [axis.count for axis in self.axes])
            queries = _flat([axis.query_tokens(t) for axis, t in zip(self.axes, tiles)], self.lengths)
            keys = _flat([axis.key_tokens(t) for axis, t in zip(self.axes, tiles)], self.key_lengths)
            mask, is_padding = self._mask(tiles), self._is_padding(tiles)
            bias_index = self._bias_index(tiles) if self.has_bias else None
            for pair in range(0, max(1, len(self.own)), self.pair_step):
                some = slice(pair, pair + self.pair_step)
                rows, columns = self._query_rows(queries, some), self._key_rows(keys, some)
                own_mask = None if self.sizes is None else self._own_mask(tiles, self.sizes[rows])
                yield Chunk(rows, columns, mask, own_mask, is_padding, self.own[some], bias_index, self.box)

    def tokens(self, parts: list[Tensor]) -> Tensor:
        """Results of the chunks, in their order, each `[pairs, tiles, rows, width]`, as `[B, *X, heads, width]`."""
        blocks = max(1, -(-len(self.own) // self.pair_step))
        whole = _cat([_cat(parts[i : i + blocks], 0) for i in range(0, len(parts), blocks)], 1)
        tile, slot = self._arange(0, 1), self._arange(0, 1)
        for axis in self.axes:
            tile = (tile[:, None] * axis.count + axis.tile_of_token).flatten()
            slot = (slot[:, None] * axis.size + axis.slot_of_token).flatten()
        pair = self._arange(0, len(self.own)).view(self.batch, 1, len(self.heads))
        rows = (pair * self.tiles + tile[:, None]) * self.rows + slot[:, None]
        found = whole.flatten(0, 2).index_select(0, rows.flatten())
        return found.unflatten(0, (self.batch, *self.lengths, len(self.heads)))

    def _arange(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, dtype=torch.int64, device=self.device)

    def _query_rows(self, tokens: Tensor, some: slice) -> Tensor:
        first = self.element[some] * (prod(self.lengths) * self.all_heads) + self.head[self.own[some]]
        return first[:, None, None] + tokens * self.all_heads

    def _key_rows(self, tokens: Tensor, some: slice) -> Tensor:
        element, head = self.element[some], self.head[self.own[some]] // (self.all_heads // self.kv_heads)
        rows = (element * (prod(self.key_lengths) * self.kv_heads) + head)[:, None, None] + tokens * self.kv_heads
        if not self.additional:
            return rows
        behind = self.batch * prod(self.key_lengths) * self.kv_heads
        more = (element * (self.additional * self.kv_heads) + head)[:, None] + behind
        more = more + self._arange(0, self.additional) * self.kv_heads
        return torch.cat([rows, more[:, None].expand(-1, len(tokens), -1)], -1)

    def _mask(self, tiles: list[Tensor]) -> Tensor:
        mask, *others = (
            _spread(axis.mask(t, self.dtype), i, len(tiles)) for i, (axis, t) in enumerate(zip(self.axes, tiles))
        )
        for other in others:
            mask = mask.minimum(other)
        return pad(mask.reshape(-1, self.rows, self.box), (0, self.additional), value=inf)

    def _own_mask(self, tiles: list[Tensor], sizes: Tensor) -> Tensor:
        slots = _unravel(self._arange(0, self.rows), [axis.size for axis in self.axes])
        columns = _unravel(self._arange(0, self.box), [axis.box for axis in self.axes])
        attended, *others = (
            axis.sized_mask(tile, slot, sizes, column)
            for axis, tile, slot, column in zip(self.axes, tiles, slots, columns)
        )
        for other in others:
            attended = attended & other
        mask = torch.full(attended.shape, inf, dtype=self.dtype, device=self.device).masked_fill(~attended, -inf)
        return pad(mask, (0, self.additional), value=inf)

    def _is_padding(self, tiles: list[Tensor]) -> Tensor:
        found, *others = (axis.is_padding[t] for axis, t in zip(self.axes, tiles))
        for other in others:
            found = (found[:, :, None] | other[:, None, :]).flatten(1)
        return found

    def _bias_index(self, tiles: list[Tensor]) -> Tensor:
        index = self.head.view(-1, *[1] * (1 + 2 * len(tiles)))
        for i, (axis, tile) in enumerate(zip(self.axes, tiles)):
            window = axis.axis.window
            assert window is not None
            index = index * (2 * window - 1) + _spread(axis.bias_index(tile), i, len(tiles))
        return index.reshape(len(self.heads), -1, self.rows, self.box)


def indices(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Numbers on a device, made there: copies from the host do not go into CUDA graphs."""
    if list(numbers) == list(range(len(numbers))):
        return torch.arange(len(numbers), dtype=torch.int64, device=device)
    return torch.cat([torch.arange(n, n + 1, dtype=torch.int64, device=device) for n in numbers])


def _flat(tokens: list[Tensor], lengths: Sequence[int]) -> Tensor:
    """`[tiles, box]` flat tokens, from those along each axis."""
    flat = tokens[0]
    for more, length in zip(tokens[1:], lengths[1:]):
        flat = (flat[:, :, None] * length + more[:, None, :]).flatten(1)
    return flat


def _unravel(flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Row-major coordinates of flat indices."""
    found = []
    for size in reversed(sizes):
        found.append(flat % size)
        flat = flat // size
    return found[::-1]


def _spread(pairs: Tensor, axis: int, rank: int) -> Tensor:
    """`[tiles, size, box]` of one axis as `[tiles, size0, ..., box0, ...]`, 1 on the other axes."""
    shape = [pairs.shape[0]] + [1] * (2 * rank)
    shape[1 + axis], shape[1 + rank + axis] = pairs.shape[1:]
    return pairs.reshape(shape)


def _cat(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
