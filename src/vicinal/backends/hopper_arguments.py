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


def flags(problem: Problem) -> tuple[bool, bool, bool]:
    """Whether some stride exceeds 1, whether some axis is causal or clipped, whether heads differ."""
    axes = [a for n in problem.neighborhoods for a in n.axes]
    return any(a.stride > 1 for a in axes), any(mode(a) != SHIFT for a in axes), problem.per_head


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
