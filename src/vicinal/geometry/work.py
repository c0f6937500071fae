"""Counting: useful scores, FLOPs, bytes, and the waste of a tiling. All exact, per head and per batch element.

FLOPs follow the usual convention: a multiply-add is 2, softmax is not counted. Forward does 2 matrix products per
score (QK and PV), backward 5 (QK again, dP, dV, dQ, dK; FlashAttention-2, arXiv 2307.08691, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from vicinal.geometry.count import count
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.unfold import parts

Lengths = tuple[int, ...]


def useful_scores(neighborhood: Neighborhood, lengths: Lengths) -> int:
    """The number of (query, neighbor) pairs: what an ideal kernel computes."""
    return prod(count(axis, length, 1, 1).covered for axis, length in zip(neighborhood.axes, lengths))


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
    axes = zip(neighborhood.axes, lengths, query_tile, key_tile)
    return prod(query_tile) * prod(key_tile) * prod(count(*axis).steps for axis in axes)


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
