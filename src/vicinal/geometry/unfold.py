"""A dilated axis seen as two: positions within a dilation group, then the groups side by side.

Attention along an axis of dilation d is d independent problems, each on every d-th token. Side by side they are one
problem with one more axis, `[positions, groups]`, along which every window is one group wide. A tile over both axes
holds tokens of several groups: where groups are short, a tile of one group would be mostly empty. No token moves:
token `position * d + group` is where it was.

Where d does not divide the length, the first groups are one token longer than the others: two `Part`s.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import NamedTuple, TypeVar

from vicinal.geometry.neighborhood import MAX_RANK, Axis, Neighborhood
from vicinal.geometry.tiles import alike

T = TypeVar("T")


class Part(NamedTuple):
    """Groups of one length, side by side.

    Attributes:
        neighborhood, lengths: of the part, with one axis more.
        first: the group that its groups begin with.
    """

    neighborhood: Neighborhood
    lengths: tuple[int, ...]
    first: int


def parts(neighborhood: Neighborhood, lengths: tuple[int, ...], unfolded: int | None) -> list[Part]:
    """The whole problem as one part, or with axis `unfolded` seen as two (`unfold`)."""
    if unfolded is None:
        return [Part(neighborhood, lengths, 0)]
    return unfold(neighborhood, lengths, unfolded)


def can_unfold(neighborhood: Neighborhood, axis: int) -> bool:
    """Whether `axis` has dilation groups, there is room for another axis, and no axis is given in part."""
    return neighborhood.rank < MAX_RANK and neighborhood.axes[axis].dilation > 1 and not any(neighborhood.spans)


def unfold(neighborhood: Neighborhood, lengths: tuple[int, ...], axis: int) -> list[Part]:
    """The parts of a problem (resolved) with `axis` seen as two; the longer groups first."""
    undilated = replace(neighborhood.axes[axis], dilation=1)
    seen = Neighborhood(beside(replace_at(neighborhood.axes, axis, undilated), axis, Axis(1)))
    return [
        Part(seen, beside(replace_at(lengths, axis, kind.length), axis, kind.count), kind.first)
        for kind in alike(neighborhood.axes[axis], lengths[axis])
    ]


def tile_count(
    neighborhood: Neighborhood, lengths: tuple[int, ...], tile: tuple[int, ...], unfolded: int | None = None
) -> int:
    """How many tiles there are, as kernels count them: of every dilation group those of the longest one."""
    sizes = tile if unfolded is None else (*tile[: unfolded + 1], *tile[unfolded + 2 :])
    count = 1
    for i, (axis, length, size) in enumerate(zip(neighborhood.axes, lengths, sizes)):
        abreast = min(axis.dilation, axis.whole_length(length))
        if i == unfolded:
            abreast = sum(ceil(kind.count / tile[i + 1]) for kind in alike(axis, length))
        count *= abreast * ceil(ceil(length / axis.dilation) / size)
    return count


def beside(values: tuple[T, ...], axis: int, value: T) -> tuple[T, ...]:
    """One value per axis, with another for the groups of `axis`, which follow it."""
    return (*values[: axis + 1], value, *values[axis + 1 :])


def replace_at(values: tuple[T, ...], axis: int, value: T) -> tuple[T, ...]:
    """The values, with another one at `axis`."""
    return (*values[:axis], value, *values[axis + 1 :])
