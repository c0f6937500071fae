"""Counting: useful scores, FLOPs, bytes, and the waste of a tiling. All exact, per head and per batch element.

FLOPs follow the usual convention: a multiply-add is 2, softmax is not counted. Forward does 2 matrix products per
score (QK and PV), backward 5 (QK again, dP, dV, dQ, dK; FlashAttention-2, arXiv 2307.08691, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod

from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import Interval, alike, key_interval, tiles
from vicinal.geometry.unfold import parts
from vicinal.geometry.window import window_start, window_stop

Lengths = tuple[int, ...]


def useful_scores(neighborhood: Neighborhood, lengths: Lengths) -> int:
    """The number of (query, neighbor) pairs: what an ideal kernel computes."""
    return prod(_axis_pairs(axis, length) for axis, length in zip(neighborhood.axes, lengths))


def call_scores(neighborhoods: Sequence[Neighborhood], lengths: Lengths, heads: int, additional: int) -> int:
    """The useful scores of all heads, of one batch element: their neighborhoods' and those of additional keys.

    `neighborhoods` is one for all heads, or one per head.
    """
    window = sum(useful_scores(n, lengths) for n in neighborhoods) * (heads // len(neighborhoods))
    return window + heads * additional * prod(lengths)


def computed_scores(
    neighborhood: Neighborhood, lengths: Lengths, query_tile: tuple[int, ...], key_tile: tuple[int, ...]
) -> int:
    """The scores that a tiling computes: whole query tiles times whole key tiles, laid from each tile's first key."""
    return prod(
        _axis_computed(axis, length, q, k)
        for axis, length, q, k in zip(neighborhood.axes, lengths, query_tile, key_tile)
    )


def waste(
    neighborhood: Neighborhood,
    lengths: Lengths,
    query_tile: tuple[int, ...],
    key_tile: tuple[int, ...],
    unfolded: int | None = None,
) -> float:
    """Computed over useful scores of a tiling (of an axis seen as two, if `unfolded`): 1.0 is perfect."""
    seen = parts(neighborhood, lengths, unfolded)
    computed = sum(computed_scores(part.neighborhood, part.lengths, query_tile, key_tile) for part in seen)
    return computed / useful_scores(neighborhood, lengths)


def forward_flops(scores: int, head_dim: int, value_dim: int) -> int:
    """FLOPs of the forward pass over `scores` query-key pairs."""
    return 2 * scores * (head_dim + value_dim)


def backward_flops(scores: int, head_dim: int, value_dim: int) -> int:
    """FLOPs of the backward pass over `scores` query-key pairs: three products of head_dim, two of value_dim."""
    return 2 * scores * (3 * head_dim + 2 * value_dim)


def sum_over_groups(axis: Axis, length: int, count: Callable[[int], int]) -> int:
    """The sum of `count(group length)` over the dilation groups of an axis, each distinct length counted once."""
    return sum(kind.count * count(kind.length) for kind in alike(axis, length))


@lru_cache(maxsize=4096)
def _axis_pairs(axis: Axis, length: int) -> int:
    def pairs(n: int) -> int:
        return sum(window_stop(axis, n, i) - window_start(axis, n, i) for i in range(n))

    return sum_over_groups(axis, length, pairs)


@lru_cache(maxsize=4096)
def _axis_computed(axis: Axis, length: int, query_tile: int, key_tile: int) -> int:
    def covered(n: int, queries: Interval) -> int:
        start, stop = key_interval(axis, n, queries)
        return query_tile * key_tile * -(-(stop - start) // key_tile)

    return sum_over_groups(axis, length, lambda n: sum(covered(n, q) for q in tiles(n, query_tile)))
