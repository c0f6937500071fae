"""How the Hopper kernels see a tensor: five-dimensional TMA descriptors, and which launches cover the dilation groups.

Every tensor `[B, *X, heads, columns]` is described as `[B, X0, X1, X2, columns]`, with leading axes of length 1 for
fewer than three. A dilation group of an axis is every `d`-th token: lengths divided by `d`, strides times `d`. Groups
need no dimension of their own: the first token of a group is so many tokens, and so many columns, after the first.
A descriptor has one length per axis, so where the dilation does not divide an axis, its longer groups and its shorter
ones are launches of their own: at most two per dilated axis. Nothing is ever copied for dilation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from torch import Tensor

from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import alike
from vicinal.problem import Inputs, Problem

ALIGNMENT = 8  # elements of 2 bytes: descriptors take strides and addresses of 16 bytes
RANK = 3


@dataclass(frozen=True)
class Launch:
    """The part of a problem that one launch computes.

    Attributes:
        lengths: tokens per group along each of three axes.
        groups: groups along each of three axes.
        first: first token of the first group along each axis.
        spread: tokens of the whole problem along each of the last two axes.
    """

    lengths: tuple[int, int, int]
    groups: tuple[int, int, int]
    first: tuple[int, int, int]
    spread: tuple[int, int]

    def tokens(self, group: tuple[int, int, int]) -> int:
        """Tokens from the first group's first to this group's."""
        return (group[0] * self.spread[0] + group[1]) * self.spread[1] + group[2]


def three(values: tuple[int, ...], fill: int) -> tuple[int, int, int]:
    """One value per axis of three: the leading axes get `fill`."""
    padded = (fill,) * (RANK - len(values)) + tuple(values)
    return padded[0], padded[1], padded[2]


def launches(problem: Problem) -> list[Launch]:
    """The launches that together cover `problem`; the first is the largest."""
    lengths = three(problem.lengths, 1)
    kinds = [alike(_axis(problem, a), lengths[a]) for a in range(RANK)]
    per_axis = [[(kind.length, kind.count, kind.first) for kind in each] for each in kinds]
    parts = [tuple(zip(*axes)) for axes in product(*per_axis)]
    parts.sort(key=lambda part: -prod(part[0]) * prod(part[1]))
    return [Launch(x, g, first, (lengths[1], lengths[2])) for x, g, first in parts]


def described(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each `describable`."""
    query, key, value = inputs.query, inputs.key, inputs.value
    packed = query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
    if packed and (query.data_ptr() | key.data_ptr() | value.data_ptr()) % 16 == 0:  # the common case, quickly
        return query, key, value
    return describable(query), describable(key), describable(value)


def describable(tensor: Tensor) -> Tensor:
    """`tensor`, or a contiguous copy where its strides or its address do not suit a descriptor."""
    if suits(tensor.shape, tensor.stride()) and tensor.data_ptr() % 16 == 0:
        return tensor
    return packed(tensor)


def packed(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy where it is not contiguous or does not start at a multiple of 16 bytes."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


@lru_cache(maxsize=1024)
def suits(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether descriptors can say these strides: heads packed, tokens evenly apart, multiples of 16 bytes."""
    packed = strides[-1] == 1 and (strides[-2] == shape[-1] or shape[-2] == 1)
    spatial = list(zip(strides, shape))[1:-2]
    even = all(
        s == _token_stride(shape, strides) * prod(shape[a + 2 : -2]) for a, (s, n) in enumerate(spatial) if n > 1
    )
    return packed and even and all(s % ALIGNMENT == 0 and s > 0 for s, n in zip(strides[:-2], shape) if n > 1)


@dataclass(frozen=True)
class Descriptor:
    """Shape and strides of one tensor of one launch, in elements; `offset` of its first element.

    `token_columns` is the distance in columns between neighboring tokens of the whole problem.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    token_columns: int


def describe(problem: Problem, launch: Launch, shape: tuple[int, ...], strides: tuple[int, ...]) -> Descriptor:
    """The descriptor of `[B, *X, heads, columns]` with these strides, for one launch."""
    dilation = three(problem.neighborhoods[0].dilation, 1)
    lengths = three(shape[1:-2], 1)
    token = _token_stride(shape, strides)
    x = (token * lengths[1] * lengths[2], token * lengths[2], token)
    steps = [s * d if n > 1 else ALIGNMENT for s, d, n in zip(x, dilation, launch.lengths)]
    last = launch.tokens((launch.groups[0] - 1, launch.groups[1] - 1, launch.groups[2] - 1))
    return Descriptor(
        shape=(shape[0], *launch.lengths, last * token + shape[-2] * shape[-1]),
        strides=(strides[0] if shape[0] > 1 else ALIGNMENT, *steps, 1),
        offset=sum(f * s for f, s in zip(launch.first, x)),
        token_columns=token,
    )


def with_heads(description: Descriptor, shape: tuple[int, ...], strides: tuple[int, ...]) -> Descriptor:
    """The same part of the same tensor as `[X0, X1, X2, heads, columns]`: the batch is in the columns."""
    batch, heads, columns = shape[0], shape[-2], shape[-1]
    groups = description.shape[4] - heads * columns
    return Descriptor(
        shape=(*description.shape[1:4], heads, groups + (batch - 1) * strides[0] + columns),
        strides=(*description.strides[1:4], max(columns, ALIGNMENT), 1),
        offset=description.offset,
        token_columns=description.token_columns,
    )


def _token_stride(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Of the last axis that has more than one token (the strides of others say nothing)."""
    return next((s for s, n in zip(strides[-3:0:-1], shape[-3:0:-1]) if n > 1), ALIGNMENT)


def _axis(problem: Problem, a: int) -> Axis:
    missing = RANK - problem.rank
    return Axis(1) if a < missing else problem.neighborhoods[0].axes[a - missing]
