"""cuDNN's flex attention (`cudnn.flex_attention` of nvidia-cudnn-frontend), a peer where that is installed.

It takes a mask as the intervals of keys that each query attends to, which its plan turns into lists of tiles. In raster
order a window of several axes is an interval per row of it, and few tiles are full; with tokens permuted into tiles
they are, but then something must permute them. Both are peers, and so is the permutation with what it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from vicinal.bench.masks import mask_mod
from vicinal.problem import Problem

PACKAGE = "nvidia-cudnn-frontend[cutedsl]"
TILE = 128  # tokens of the kernels' tiles of queries, and of keys
TABLE_BYTES = 4 << 30  # of the intervals, at most
SLICE = 1 << 26  # pairs of queries and keys looked at in one go

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def installed() -> bool:
    """Whether it and the compiler that it needs are there."""
    return find_spec("cudnn") is not None and find_spec("cutlass") is not None


def unsupported(problem: Problem) -> str | None:
    """Why it cannot run a problem; None when it can."""
    if problem.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {problem.dtype}"
    dims = (problem.head_dim, problem.value_dim)
    if dims not in ((192, 128), (256, 256)) and not all(d <= 128 and d % 8 == 0 for d in dims):
        return f"it takes head dims that are multiples of 8 up to 128, not {dims[0]} and {dims[1]}"
    major = torch.cuda.get_device_capability(problem.device)[0]
    return None if major in (9, 10) else f"it runs on compute capability 9 and 10, not {major}"


def raster(problem: Problem) -> Attend:
    """Tokens in their own order: `[B, *X, H, D]`."""
    attend = _planned(problem, torch.arange(prod(problem.lengths), device=problem.device, dtype=torch.int64))

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(*(t.flatten(1, -3) for t in (query, key, value))).unflatten(1, problem.lengths)

    return run


def tiled(problem: Problem) -> Attend:
    """Tokens in `tile_order` already: `[B, N, H, D]`."""
    return _planned(problem, tile_order(problem))


def permuting(problem: Problem) -> Attend:
    """Tokens in their own order, brought into `tile_order` and back in every call."""
    order = tile_order(problem)
    attend, back = _planned(problem, order), order.argsort()

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        permuted = (t.flatten(1, -3).index_select(1, order) for t in (query, key, value))
        return attend(*permuted).index_select(1, back).unflatten(1, problem.lengths)

    return run


def tile_order(problem: Problem) -> Tensor:
    """Tokens, as numbers in raster order, tile after tile: dilation groups apart, each in boxes of `tile_shape`."""
    axes = problem.neighborhood.axes
    grouped = [-(-length // axis.dilation) for axis, length in zip(axes, problem.lengths)]
    digits: list[list[Tensor]] = [[], [], []]  # most significant first: dilation groups, tiles, places within
    places = torch.meshgrid(
        *(torch.arange(n, dtype=torch.int64, device=problem.device) for n in problem.lengths), indexing="ij"
    )
    for axis, at, side in zip(axes, places, tile_shape(grouped)):
        inside = at // axis.dilation
        for kind, digit in zip(digits, (at % axis.dilation, inside // side, inside % side)):
            kind.append(digit.flatten())
    rank = torch.zeros_like(digits[0][0])
    for digit in (digit for kind in digits for digit in kind):
        rank = rank * (int(digit.max()) + 1) + digit
    return rank.argsort()


def tile_shape(lengths: list[int]) -> tuple[int, ...]:
    """The box of `TILE` tokens that leaves least of its last tiles empty, and of those the most like a cube."""
    sides = [1 << i for i in range(TILE.bit_length())]
    boxes = (box for box in product(sides, repeat=len(lengths)) if prod(box) == TILE)
    return min(boxes, key=lambda box: (prod(-(-n // t) * t for n, t in zip(lengths, box)), sum(box), box))


def key_intervals(problem: Problem, order: Tensor) -> Tensor:
    """Per query, the intervals of the keys it attends to, both by their places in `order`.

    Returns:
        int32 `[1, 2 * n + 1, N]` for at most `n` intervals a query: of each query 0 (an empty interval, for it must
        begin there), then starts and ends by turns; N and N for intervals that it has not.
    """
    tokens = len(order)
    allowed = mask_mod(problem, tokens)
    parts = []
    for queries in order.split(max(1, SLICE // tokens)):
        pairs = allowed(None, None, queries[:, None], order[None, :]).to(torch.int8)
        edges = torch.nn.functional.pad(pairs, (1, 1)).diff(dim=1)
        (row, start), stop = (edges == 1).nonzero().unbind(1), (edges == -1).nonzero()[:, 1]
        counts = row.bincount(minlength=len(queries))
        which = torch.arange(len(row), device=order.device, dtype=torch.int64) - (counts.cumsum(0) - counts)[row]
        most = int(counts.max())
        if (2 * most + 1) * tokens * 4 > TABLE_BYTES:
            raise ValueError(f"{most} intervals a query take more than {TABLE_BYTES >> 30} GiB")
        table = torch.full((len(queries), 2 * most + 1), tokens, dtype=torch.int32, device=order.device)
        table[:, 0] = 0
        table[row, 2 * which + 1], table[row, 2 * which + 2] = start.int(), stop.int()
        parts.append(table)
    width = max(part.shape[1] for part in parts)
    padded = [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=tokens) for part in parts]
    return torch.cat(padded).T.contiguous()[None]


def _planned(problem: Problem, order: Tensor) -> Attend:
    """Attention of tokens `[B, N, H, D]` in `order`; the plan is made once."""
    from cudnn import flex_attention

    rows = key_intervals(problem, order).repeat(1, 1, problem.batch)
    like = partial(torch.empty, dtype=problem.dtype, device=problem.device)
    tokens, heads = (problem.batch, len(order)), (problem.heads, problem.kv_heads, problem.kv_heads)
    dims = (problem.head_dim, problem.head_dim, problem.value_dim)
    samples = [like((*tokens, h, d)) for h, d in zip(heads, dims)]
    plan: Any = flex_attention.create_mask_plan(rows, *samples, build_backward=True)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return flex_attention.flex_attn_func(query, key, value, mask_plan=plan, softmax_scale=problem.scale)

    return attend
