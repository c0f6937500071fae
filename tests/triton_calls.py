"""Problems of the Triton backend's tests, and how their gradients are launched."""

from __future__ import annotations

from dataclasses import replace

import torch

import strategies
from vicinal.backends.triton.config import GradientTilings
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span
from vicinal.geometry.tiles import reach

of = Neighborhood.of
device = "cuda" if torch.cuda.is_available() else "cpu"


def call(
    lengths,
    neighborhoods,
    heads=1,
    kv_heads=1,
    head_dim=8,
    value_dim=8,
    additional=0,
    has_rpb=False,
    batch=1,
    seed=0,
    queries=None,
    spare=1,
    masked=0.0,
    sized=False,
):
    """`queries`: intervals of them along the axes, with their keys and up to `spare` more at each end."""
    neighborhoods = neighborhoods if isinstance(neighborhoods, tuple) else (neighborhoods,)
    if queries is not None:
        spans = []
        for i, (n, own) in enumerate(zip(lengths, queries)):
            needed = [reach(each.resolve(lengths).axes[i], n, own) for each in neighborhoods]
            keys = max(min(low for low, _ in needed) - spare, 0), min(max(high for _, high in needed) + spare, n)
            spans.append(Span(n, own, keys))
        neighborhoods = tuple(each.over(spans) for each in neighborhoods)
        lengths = tuple(span.query_length for span in spans)
    resolved = tuple(n.resolve(lengths) for n in neighborhoods)
    sizes = (batch, heads, kv_heads, head_dim, value_dim, additional)
    return strategies.Call(resolved, lengths, *sizes, has_rpb, seed, masked, sized)


def in_launches(config, together):
    """The same tiles in one launch or in two."""
    key_value = replace(config.key_value, warps=config.query.warps, stages=config.query.stages)
    return GradientTilings(config.query, key_value, together)
