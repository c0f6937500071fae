"""Problems of the tests of Triton's tiles of classes."""

from __future__ import annotations

from dataclasses import replace

import strategies
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.unroll import around

of = Neighborhood.of


def call(lengths, neighborhood, heads=1, kv_heads=1, additional=0, batch=1, bias=True):
    return strategies.Call((neighborhood.resolve(lengths),), lengths, batch, heads, kv_heads, 8, 8, additional, bias, 0)


def circle(lengths, neighborhood, **more):
    """Of circles, read where they are."""
    drawn = call(lengths, neighborhood, bias=False, **more)
    return replace(drawn, neighborhoods=around(drawn.neighborhoods, lengths))
