"""How the Hopper kernels see a tensor: five-dimensional TMA descriptors, and which launches cover the dilation groups.

Every tensor `[B, *X, heads, columns]` is described as `[outer, X0, X1, X2, columns]`, with leading axes of length 1 for
fewer than three. A dilation group of an axis is every `d`-th token: lengths divided by `d`, strides times `d`.
- The groups of the last axis need no dimension: token `g` of a group starts `g * stride` columns further on.
- One more dimension is free for the groups of another axis where the batch does not take it.
- Whatever is left (groups of an axis that its dilation does not divide, or more dilated axes than dimensions) is one
  launch per group, on strided views in place. Nothing is ever copied for dilation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from torch import Tensor

from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import groups
from vicinal.problem import Problem

ALIGNMENT = 8  # elements of 2 bytes: descriptors take strides and addresses of 16 bytes
RANK = 3


@dataclass(frozen=True)
class Launch:
    """The part of a problem that one launch computes.

    Attributes:
        lengths: tokens per group along each of three axes.
        outer: size of the outer dimension; outer_axis: -1 for the batch, otherwise the axis whose groups it holds.
        groups: groups of the last axis that this launch holds.
        batch: first batch element (a launch of one when the outer dimension is an axis).
        first: first token along each axis.
    """

    lengths: tuple[int, int, int]
    outer: int
    outer_axis: int
    groups: int
    batch: int
    first: tuple[int, int, int]


def three(values: tuple[int, ...], fill: int) -> tuple[int, int, int]:
    """One value per axis of three: the leading axes get `fill`."""
    padded = (fill,) * (RANK - len(values)) + tuple(values)
    return padded[0], padded[1], padded[2]


def launches(problem: Problem) -> list[Launch]:
    """The launches that together cover `problem`; the first is the largest."""
    lengths = three(problem.lengths, 1)
    dilation = three(problem.neighborhoods[0].dilation, 1)
    folds = [n % d == 0 for n, d in zip(lengths, dilation)]
    outer_axis = -1
    choices = [(dilation[a], a) for a in (0, 1) if folds[a] and dilation[a] > problem.batch]
    if choices:
        outer_axis = max(choices)[1]
    folded = {2} if folds[2] else set()
    folded |= {outer_axis} - {-1}
    per_axis = [
        [(0, lengths[a] // dilation[a])]
        if a in folded
        else [(g.offset, g.length) for g in groups(_axis(problem, a), lengths[a])]
        for a in range(RANK)
    ]
    batches = range(1 if outer_axis == -1 else problem.batch)
    outer = problem.batch if outer_axis == -1 else dilation[outer_axis]
    return [
        Launch((x0[1], x1[1], x2[1]), outer, outer_axis, dilation[2] if folds[2] else 1, b, (x0[0], x1[0], x2[0]))
        for b in batches
        for x0, x1, x2 in product(*per_axis)
    ]


def describable(tensor: Tensor) -> Tensor:
    """`tensor`, or a contiguous copy where its strides or its address do not suit a descriptor."""
    if _suits(tensor.shape, tensor.stride()) and tensor.data_ptr() % 16 == 0:
        return tensor
    return packed(tensor)


def packed(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy where it is not contiguous or does not start at a multiple of 16 bytes."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


@lru_cache(maxsize=1024)
def _suits(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    packed = strides[-1] == 1 and (strides[-2] == shape[-1] or shape[-2] == 1)
    return packed and all(s % ALIGNMENT == 0 and s > 0 for s, n in zip(strides[:-2], shape) if n > 1)


@dataclass(frozen=True)
class Descriptor:
    """Shape and strides of one tensor of one launch, in elements; `offset` of its first element.

    `group_columns` is the distance in columns between groups of the last axis.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    group_columns: int


def token_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Strides of the batch and of three axes of `[B, *X, ...]`: any that TMA takes where the size is 1."""
    rank = len(shape) - 3
    x = three(strides[1 : 1 + rank], ALIGNMENT)
    n = three(shape[1 : 1 + rank], 1)
    clean = [s if size > 1 else ALIGNMENT for s, size in zip((strides[0], *x), (shape[0], *n))]
    return clean[0], clean[1], clean[2], clean[3]


def describe(problem: Problem, launch: Launch, shape: tuple[int, ...], strides: tuple[int, ...]) -> Descriptor:
    """The descriptor of `[B, *X, heads, columns]` with these strides, for one launch."""
    dilation = three(problem.neighborhoods[0].dilation, 1)
    batch, *x = token_strides(shape, strides)
    steps = [s * d if n > 1 else ALIGNMENT for s, d, n in zip(x, dilation, launch.lengths)]
    columns = (launch.groups - 1) * x[2] + shape[-2] * shape[-1]
    outer = batch if launch.outer_axis == -1 else x[launch.outer_axis]
    return Descriptor(
        shape=(launch.outer, *launch.lengths, columns),
        strides=(outer, *steps, 1),
        offset=launch.batch * batch + sum(f * s for f, s in zip(launch.first, x)),
        group_columns=x[2] if launch.groups > 1 else 0,
    )


def _axis(problem: Problem, a: int) -> Axis:
    missing = RANK - problem.rank
    return Axis(1) if a < missing else problem.neighborhoods[0].axes[a - missing]
