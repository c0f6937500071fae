"""Arguments that portable Triton kernels (`vicinal.backends.gpu.kernels`) take alike: axes, strides, precision."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

import torch

from vicinal.backends.gpu.kernels.memory import Strides
from vicinal.backends.gpu.kernels.window import Axes, Parts
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span
from vicinal.geometry.unfold import beside
from vicinal.geometry.window import SHIFT, mode

MAX_WINDOW = 2**30  # that covers any axis; kernels add it to positions, in 32 bits


def axes_of(
    neighborhood: Neighborhood,
    lengths: tuple[int, ...],
    unfolded: int | None = None,
    heads: tuple[Neighborhood, ...] = (),
) -> Axes:
    """A neighborhood as kernels take it, for queries of `lengths`: in 32 bits, as are lengths.

    `heads`: all heads' neighborhoods, where these differ.
    """
    axes = neighborhood.axes
    parts = None
    if neighborhood.is_part:
        assert unfolded is None, "parts of axes are not seen as two"
        spans = placed(heads or (neighborhood,), lengths)
        # Around a circle queries are walked too, beyond the axis.
        lengths = tuple(s.keys[1] if s.circle else s.length for s in spans)
        given = [s.queries if s.circle else s.keys for s in spans]
        parts = Parts(
            tuple(s.queries[0] for s in spans),
            tuple(s.query_length for s in spans),
            tuple(start for start, _ in given),
            tuple(stop - start for start, stop in given),
            tuple(s.queries[0] - s.keys[0] if s.circle else 0 for s in spans),
        )
    windows = [min(a.window or n, MAX_WINDOW) for a, n in zip(axes, lengths)]
    dilations = [min(a.dilation, n) for a, n in zip(axes, lengths)]  # beyond, each token is a group all the same
    return Axes(
        seen(lengths, unfolded, 1),
        seen(tuple(windows), unfolded, 1),
        seen(neighborhood.stride, unfolded, 1),
        seen(tuple(dilations), unfolded, 1),
        seen(tuple([mode(a) for a in axes]), unfolded, SHIFT),
        parts,
    )


def placed(neighborhoods: Sequence[Neighborhood], lengths: tuple[int, ...]) -> list[Span]:
    """The axes' spans, moved on where keys begin before 0 (around a circle): kernels divide no negative positions.

    By whole blocks of a stride in every dilation group, so that the rule of windows stays what it is.
    """
    found = []
    for i, length in enumerate(lengths):
        span = neighborhoods[0].axes[i].span or Span.whole(length)
        block = lcm(*(n.axes[i].stride * n.axes[i].dilation for n in neighborhoods))
        by = -(min(span.keys[0], 0) // block) * block
        queries, keys = ((start + by, stop + by) for start, stop in (span.queries, span.keys))
        found.append(Span(span.length + by, queries, keys, span.circle) if by else span)
    return found


def in_vectors(strides: tuple[int, ...], vector: int, unfolded: int | None = None) -> Strides:
    """Strides of `[B, *X, H]` in units of `vector`."""
    batch, *tokens, head = (s // vector for s in strides)
    return Strides(batch, seen(tuple(tokens), unfolded), head)


def seen(values: tuple[Any, ...], unfolded: int | None, of_groups: int | None = None) -> tuple[Any, ...]:
    """One value per axis of the kernel: groups side by side have their own, or that of the axis they are from."""
    if unfolded is None:
        return values
    return beside(values, unfolded, values[unfolded] if of_groups is None else of_groups)


def kernel_axis(unfolded: int | None) -> int:
    """`Flags.unfolded`: the kernels' axis of the dilation groups of axis `unfolded`."""
    return -1 if unfolded is None else unfolded + 1


def precision_of(dtype: torch.dtype) -> str:
    """How matrices of `dtype` are multiplied: float32 in TF32 where torch's own setting allows it, else as itself.

    The latter is three TF32 products on NVIDIA ("tf32x3"), float32 multiply-adds elsewhere.
    """
    if dtype != torch.float32 or torch.version.hip:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
