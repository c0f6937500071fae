"""The problems of the paper's sweep, as far as it describes them, and samples of them.

"Faster Neighborhood Attention" (arXiv 2403.04690, section 4) times 6150 1-D, 5676 2-D and 2448 3-D problems that vary
in batch, spatial size, heads, head dim, window and dilation, each in float16 and float32. The list is not published.
Ours: the grid of `GRIDS` in its nested order, without problems whose tensors or windows are larger than the limits
below, and of that grid as many problems as the paper has, evenly spaced. So it is the same list everywhere, and every
spatial size is in it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import isqrt, prod

import torch

from vicinal.bench.cases import Case
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.words import by

COUNTS = {1: 6150, 2: 5676, 3: 2448}
LEAST_ELEMENTS, MOST_ELEMENTS = 1 << 16, 1 << 25  # of the query: 128 KiB to 64 MiB in float16
MOST_WEIGHTS = 1 << 28  # attention weights of an unfused system: 512 MiB in float16
MOST_PAIRS = 1 << 34  # of self attention

HEADS = (1, 2, 4, 8, 16)
HEAD_DIMS = (32, 64, 128)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Grid:
    """Spatial sizes, from small maps to large, and windows; batches, heads and head dims are the same for all ranks."""

    lengths: tuple[tuple[int, ...], ...]
    windows: tuple[tuple[int, ...], ...]


GRIDS = {
    1: Grid(
        tuple((n,) for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)),
        tuple((k,) for k in (3, 5, 7, 13, 31, 63, 127, 255, 511, 1023, 2047)),
    ),
    2: Grid(
        tuple((n, n) for n in (7, 8, 14, 16, 28, 32, 56, 64, 96, 128, 256)),
        tuple((k, k) for k in (3, 5, 7, 9, 11, 13, 21, 31, 45, 63)),
    ),
    3: Grid(
        (
            (4, 8, 8),
            (8, 8, 8),
            (8, 14, 14),
            (8, 16, 16),
            (16, 16, 16),
            (8, 28, 28),
            (16, 28, 28),
            (8, 32, 32),
            (16, 32, 32),
            (8, 56, 56),
            (16, 56, 56),
            (32, 32, 32),
        ),
        ((3, 3, 3), (3, 5, 5), (5, 5, 5), (3, 7, 7), (5, 7, 7), (7, 7, 7), (5, 9, 9), (7, 13, 13)),
    ),
}


@cache
def grid(rank: int) -> tuple[Case, ...]:
    """Every problem of the grid within the limits, in float16."""
    found = []
    shape = GRIDS[rank]
    for lengths, batch, heads, dim, window in product(shape.lengths, BATCHES, HEADS, HEAD_DIMS, shape.windows):
        tokens = batch * heads * prod(lengths)
        if any(k >= n for k, n in zip(window, lengths)):
            continue
        if not LEAST_ELEMENTS <= tokens * dim <= MOST_ELEMENTS or tokens * prod(lengths) > MOST_PAIRS:
            continue
        if tokens * prod(window) > MOST_WEIGHTS:
            continue
        found += [_case(lengths, batch, heads, dim, window, d) for d in _dilations(lengths, window)]
    return tuple(found)


@cache
def problems(rank: int, dtype: torch.dtype = torch.float16) -> tuple[Case, ...]:
    """The sweep's problems of one rank: exactly `COUNTS[rank]`, in a fixed order, with the passes the paper timed.

    float16: forward and forward+backward; float32: forward.
    """
    every, count = grid(rank), COUNTS[rank]
    passes = ("forward", "forward+backward") if dtype == torch.float16 else ("forward",)
    chosen = (every[i * len(every) // count] for i in range(count))
    return tuple(
        Case(c.name, c.lengths, c.neighborhood, c.heads, c.head_dim, c.batch, dtype=dtype, passes=passes)  # type: ignore[arg-type]
        for c in chosen
    )


def sample(cases: tuple[Case, ...], count: int, seed: int = 0) -> list[Case]:
    """`count` of the problems, stratified: every spatial size has its share, members in random order.

    A larger sample of the same seed begins with the smaller one, so that a sweep can be extended.
    """
    strata: dict[tuple[int, ...], list[Case]] = {}
    for case in cases:
        strata.setdefault(case.lengths, []).append(case)
    placed = []
    for lengths, members in strata.items():
        random.Random(f"{seed} {lengths}").shuffle(members)
        placed += [((i + 0.5) / len(members), lengths, i) for i in range(len(members))]
    return [strata[lengths][i] for _, lengths, i in sorted(placed)[:count]]


def on_shared_tensors(cases: tuple[Case, ...], first: Sequence[Case], count: int) -> list[list[Case]]:
    """`count` of the problems, in groups on tensors of the same shapes: all with those of `first[0]`, and so on.

    Of a group only the windows and dilations differ; its first member is one of `first`.
    """
    groups: list[list[Case]] = []
    for case in first:
        if count <= 0 or any(case in group for group in groups):
            continue
        members = [case, *(other for other in cases if other != case and _tensors(other) == _tensors(case))]
        groups.append(members[:count])
        count -= len(members)
    return groups


def _tensors(case: Case) -> tuple[object, ...]:
    return case.lengths, case.batch, case.heads, case.head_dim, case.dtype


def pairs_of_self_attention(case: Case) -> int:
    """Query-key pairs of self attention on the problem's tensors: the largest work of any system."""
    return case.batch * case.heads * case.tokens**2


def _dilations(lengths: tuple[int, ...], window: tuple[int, ...]) -> list[tuple[int, ...]]:
    """None, the largest that fits, and one between."""
    most = tuple(n // k for n, k in zip(lengths, window))
    middle = tuple(max(1, isqrt(d)) for d in most)
    return list(dict.fromkeys([(1,) * len(lengths), middle, most]))


def _case(
    lengths: tuple[int, ...],
    batch: int,
    heads: int,
    dim: int,
    window: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Case:
    neighborhood = Neighborhood.of(len(lengths), window, 1, dilation)
    parts = [f"{len(lengths)}-D {by(lengths)} B{batch} H{heads} D{dim} window {by(window)}"]
    if max(dilation) > 1:
        parts.append(f"dilation {by(dilation)}")
    return Case(" ".join(parts), lengths, neighborhood, heads, dim, batch, dtype=torch.float16)
