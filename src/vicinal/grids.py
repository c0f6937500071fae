"""Queries on another grid than the keys: turned into more heads of queries on the keys' grid, and back.

All queries that sit at a key (`vicinal.geometry.grid`) see its window. They are as many more query heads of that token,
which share its key heads: what backends compute anyway. Where not every key has equally many queries, its places are
filled up with some that nobody looks at; a coarser grid fills most of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vicinal.geometry.grid import first_query_at, key_at, most_queries
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs


@dataclass(frozen=True)
class Grid:
    """Queries of `queries` tokens along each axis, over keys of `keys`."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]

    @classmethod
    def of(cls, inputs: Inputs, neighborhoods: Sequence[Neighborhood]) -> Grid | None:
        """The grids of a call; None where it has one grid, or is not right otherwise, which is found out later.

        Raises:
            ValueError: there is a bias table.
        """
        query, key = inputs.query, inputs.key
        if not isinstance(query, Tensor) or not isinstance(key, Tensor) or query.is_nested or key.is_nested:
            return None
        if query.ndim != key.ndim or query.ndim < 4:
            return None
        own, others = tuple(query.shape[1:-2]), tuple(key.shape[1:-2])
        if own == others or 0 in (*own, *others, query.shape[-2], key.shape[-2]) or query.shape[-2] % key.shape[-2]:
            return None
        if any(not isinstance(n, Neighborhood) or n.rank != len(own) or n.is_part for n in neighborhoods):
            return None
        if inputs.rpb is not None:
            raise ValueError(
                f"rpb must be None where queries are on another grid than keys, {list(own)} and {list(others)}: their "
                "distances are no multiples of a token's"
            )
        return cls(own, others)

    @property
    def places(self) -> tuple[int, ...]:
        """Of queries at each key, along each axis."""
        return tuple(map(most_queries, self.queries, self.keys))

    def spread(self, inputs: Inputs) -> Inputs:
        """With the queries, and their window sizes, as more heads on the keys' grid."""
        query, sizes, kv_heads = inputs.query, inputs.window_sizes, inputs.key.shape[-2]
        if isinstance(sizes, Tensor) and sizes.shape == query.shape[:-1]:
            sizes = self._spread(sizes[..., None], kv_heads).squeeze(-1)
        return inputs._replace(query=self._spread(query, kv_heads), window_sizes=sizes)

    def neighborhoods(self, own: tuple[Neighborhood, ...], kv_heads: int) -> tuple[Neighborhood, ...]:
        """One for all heads, or those of the heads that queries are spread to."""
        if len(own) == 1 or len(own) % kv_heads:
            return own
        group = len(own) // kv_heads
        copies = 1
        for places in self.places:
            copies *= places
        return tuple(n for first in range(0, len(own), group) for n in own[first : first + group] * copies)

    def gather(self, tokens: Tensor, kv_heads: int) -> Tensor:
        """`[B, *keys, heads, width]` of the spread queries as `[B, *queries, H, width]`."""
        rank, places = len(self.keys), self.places
        tokens = tokens.unflatten(-2, (kv_heads, *places, -1))
        order = [0, *(axis for i in range(rank) for axis in (1 + i, 2 + rank + i)), 1 + rank]
        tokens = tokens.permute(*order, 2 + 2 * rank, 3 + 2 * rank)
        for axis in range(rank):
            tokens = tokens.flatten(1 + axis, 2 + axis)
            if places[axis] * self.keys[axis] != self.queries[axis]:
                tokens = tokens.index_select(1 + axis, self._places_of(axis, tokens.device))
        return tokens.flatten(-3, -2)

    def _spread(self, tokens: Tensor, kv_heads: int) -> Tensor:
        """The inverse of `gather`: `[B, *queries, H, width]` as `[B, *keys, heads, width]`."""
        rank, places = len(self.keys), self.places
        tokens = tokens.unflatten(-2, (kv_heads, -1))
        for axis in reversed(range(rank)):
            if places[axis] * self.keys[axis] != self.queries[axis]:
                tokens = tokens.index_select(1 + axis, self._queries_at(axis, tokens.device))
            tokens = tokens.unflatten(1 + axis, (self.keys[axis], places[axis]))
        order = [0, *(1 + 2 * i for i in range(rank)), 1 + 2 * rank, *(2 + 2 * i for i in range(rank))]
        return tokens.permute(*order, 2 + 2 * rank, 3 + 2 * rank).flatten(1 + rank, 2 + 2 * rank)

    def _queries_at(self, axis: int, device: torch.device) -> Tensor:
        """`[keys * places]`: the queries at each key along an axis; some other ones in the places left."""
        queries, keys = self.queries[axis], self.keys[axis]
        key, place = _arange(keys, device), _arange(self.places[axis], device)
        first: Any = first_query_at(key, queries, keys)  # type: ignore[arg-type]
        return (first[:, None] + place).clamp(max=queries - 1).flatten()

    def _places_of(self, axis: int, device: torch.device) -> Tensor:
        """`[queries]`: the place of each query along an axis."""
        queries, keys = self.queries[axis], self.keys[axis]
        query = _arange(queries, device)
        key: Any = key_at(query, queries, keys)  # type: ignore[arg-type]
        return key * self.places[axis] + query - first_query_at(key, queries, keys)


def _arange(stop: int, device: torch.device) -> Tensor:
    return torch.arange(stop, dtype=torch.int64, device=device)
