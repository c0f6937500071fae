"""Windows per token: how much each query's own window is shorter than the neighborhood's, at its start and its end."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vicinal.backends.numba.config import head_sets
from vicinal.backends.numba.tables import AXES
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.span import Span
from vicinal.geometry.window import group_length, window_start, window_stop
from vicinal.problem import Problem


def cuts(problem: Problem, sizes: Tensor) -> Tensor:
    """`[B, *X, H, 6]`, 16 bits: at the start and at the end along each of three axes; `sizes`: `[B, *X, H]`."""
    found = torch.zeros((*sizes.shape, 2 * AXES), dtype=torch.int16, device="cpu")
    for neighborhood, heads in head_sets(problem).items():
        own = torch.tensor(heads, dtype=torch.int64, device="cpu")
        distinct, number = sizes[..., own].unique(return_inverse=True)
        for i, (axis, length) in enumerate(zip(neighborhood.axes, problem.lengths)):
            table = _table(axis, length, distinct)
            place = torch.arange(length, dtype=torch.int64, device="cpu")
            at = 2 * (AXES - problem.rank + i)
            found[..., own, at : at + 2] = table[number, place.view(-1, *(1,) * (problem.rank - i))]
    return found


def _table(axis: Axis, length: int, sizes: Tensor) -> Tensor:
    """`[sizes, length, 2]`."""
    assert axis.window is not None
    span = axis.span or Span.whole(length)
    token = span.queries[0] + torch.arange(length, dtype=torch.int64, device="cpu")
    group, query = token % axis.dilation, token // axis.dilation
    whole: Tensor = group_length(span.length, axis.dilation, group)  # type: ignore[arg-type, assignment]

    def ends(window: int) -> tuple[Tensor, Tensor]:
        own = replace(axis, window=window)
        return window_start(own, whole, query), window_stop(own, whole, query)  # type: ignore[arg-type, return-value]

    start, stop = ends(axis.window)
    rows = []
    for size in sizes.tolist():
        own_start, own_stop = ends(min(size, axis.window))
        rows.append(torch.stack([own_start - start, stop - own_stop], -1))
    return torch.stack(rows).to(torch.int16)
