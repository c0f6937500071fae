"""`NumbaConfig`: the tiles of a pass, and which ones there are to choose from."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from math import prod

from vicinal.backends.protocol import DERIVED
from vicinal.caching import Cache
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.walks import walks
from vicinal.problem import Problem
from vicinal.words import by

LANES = 16  # queries of a tile, at most
LISTED = 8
TILE_COST = 24  # of a tile, besides its keys, in rows of 16 scores


@dataclass(frozen=True)
class NumbaConfig:
    """Tiles for every set of heads that share a neighborhood, in `head_sets`' order.

    Attributes:
        tiles: queries along each axis, at most 16 together.
        boxes: keys along each axis that a tile's queries attend to, at most.
    """

    tiles: tuple[tuple[int, ...], ...]
    boxes: tuple[tuple[int, ...], ...] = field(metadata=DERIVED)

    @property
    def query_tile(self) -> tuple[int, ...]:
        return self.tiles[0]

    @property
    def key_tile(self) -> tuple[int, ...]:
        return self.boxes[0]

    @property
    def unfolded(self) -> int | None:
        return None

    def __str__(self) -> str:
        pairs = zip(self.tiles, self.boxes)
        return "; ".join(f"{by(tile)} queries by {by(box)} keys" for tile, box in dict.fromkeys(pairs))


def configs(problem: Problem) -> list[NumbaConfig]:
    """By the keys that tiles meet, fewest first; where heads differ, one with the best tiles for each set of them."""
    found = [shapes(own.axes, problem.lengths) for own in head_sets(problem)]
    if len(found) > 1:
        found = [own[:1] for own in found]
    return [NumbaConfig(*zip(*choice)) for choice in list(product(*found))[:LISTED]]


LARGEST_OWN = 2**16 - 1  # keys along an axis of windows per token: differences to them are kept in 16 bits


def head_sets(problem: Problem) -> dict[Neighborhood, tuple[int, ...]]:
    """The heads of each neighborhood."""
    sets: dict[Neighborhood, tuple[int, ...]] = {}
    if not problem.per_head:
        return {problem.neighborhood: tuple(range(problem.heads))}
    for head, neighborhood in enumerate(problem.neighborhoods):
        sets[neighborhood] = (*sets.get(neighborhood, ()), head)
    return sets


Shape = tuple[tuple[int, ...], tuple[int, ...]]
SHAPES: Cache[tuple[Shape, ...]] = Cache(entries=1024)


@SHAPES.memoize
def shapes(axes: tuple[Axis, ...], lengths: tuple[int, ...]) -> tuple[Shape, ...]:
    """Tiles of at most 16 queries that could not be longer along any axis, with their boxes; cheapest first."""
    own = [walks(axis, length) for axis, length in zip(axes, lengths)]
    found = []
    for tile in _full_tiles(tuple(min(LANES, axis.length) for axis in own)):
        keys = tiles = 1.0
        box = []
        for axis, n in zip(own, tile):
            walk = axis.walk[n, 1]
            keys, tiles = keys * walk.tiles * walk.steps, tiles * walk.tiles
            box.append(walk.longest)
        found.append((keys + TILE_COST * tiles, tile, tuple(box)))
    return tuple([(tile, box) for _, tile, box in sorted(found)])


FULL_TILES: Cache[tuple[tuple[int, ...], ...]] = Cache(entries=1024)


@FULL_TILES.memoize
def _full_tiles(longest: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    found = []
    for others in product(*(range(1, n + 1) for n in longest[:-1])):
        rows = prod(others)
        if rows <= LANES:
            tile = (*others, min(longest[-1], LANES // rows))
            size = prod(tile)
            if all(n == most or size + size // n > LANES for n, most in zip(tile, longest)):
                found.append(tile)
    return tuple(found)
