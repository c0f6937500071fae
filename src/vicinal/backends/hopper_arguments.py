"""Arguments that every Hopper kernel takes: the axes, their flags, and the table of heads that differ."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from vicinal.backends.hopper_layout import Launch
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.window import SHIFT, mode
from vicinal.problem import Problem


def axis_arguments(problem: Problem, launch: Launch) -> tuple[int, ...]:
    """Lengths, windows, strides and modes of three axes, as the kernels take them (of the first head)."""
    axes = _three_axes(problem.neighborhoods[0])
    return (
        *launch.lengths,
        *(a.window or 1 for a in axes),
        *(a.stride for a in axes),
        *(mode(a) for a in axes),
    )


def flags(problem: Problem) -> tuple[bool, bool, bool, bool]:
    """Whether a stride exceeds 1, an axis is causal or clipped, heads differ, and an axis is dilated."""
    axes = [a for n in problem.neighborhoods for a in n.axes]
    strided, moded = any(a.stride > 1 for a in axes), any(mode(a) != SHIFT for a in axes)
    return strided, moded, problem.per_head, dilated(problem)


def dilated(problem: Problem) -> bool:
    """Whether there are dilation groups."""
    return any(d > 1 for d in problem.neighborhoods[0].dilation)


def group_arguments(launch: Launch) -> tuple[int, ...]:
    """Dilation groups along each axis, and tokens of the whole problem along the last two."""
    return (*launch.groups, *launch.spread)


def _three_axes(neighborhood: Neighborhood) -> tuple[Axis, Axis, Axis]:
    padded = (Axis(1),) * (3 - neighborhood.rank) + neighborhood.axes
    return padded[0], padded[1], padded[2]


@lru_cache(maxsize=256)
def head_table(problem: Problem) -> Tensor | None:
    """`[H, 9]` int32: windows, strides and modes of every head's three axes; None where all heads are alike."""
    if not problem.per_head:
        return None
    rows = []
    for neighborhood in problem.neighborhoods:
        axes = _three_axes(neighborhood)
        rows.append([*(a.window or 1 for a in axes), *(a.stride for a in axes), *(mode(a) for a in axes)])
    repeat = problem.heads // len(rows)
    return torch.tensor(rows * repeat, dtype=torch.int32, device=problem.device)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a contiguous tensor."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
