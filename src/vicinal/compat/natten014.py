"""NATTEN 0.14: `natten{1,2}dqkrpb`, `natten{1,2}dav`, modules with `dim=`. Heads-first tensors `[B, H, *X, D]`.

Signatures are 0.14.6's. Its predecessors had no `kernel_size` in the functions (it follows from the bias table or the
weights): calls of that form are recognised by their count of arguments.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vicinal.compat import heads_first
from vicinal.compat.modules import HeadsFirstAttention

FUNCTIONS = [
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
]
MODULES = ["NeighborhoodAttention", "NeighborhoodAttention1D", "NeighborhoodAttention2D"]


def natten1dqkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
    """Scores `[B, H, X, K]`; then `kernel_size, dilation` (until 0.14.4: `dilation`)."""
    return _qkrpb(1, query, key, rpb, *args, **kwargs)


def natten2dqkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
    """Scores `[B, H, X0, X1, K * K]`; then `kernel_size, dilation` (until 0.14.4: `dilation`)."""
    return _qkrpb(2, query, key, rpb, *args, **kwargs)


def natten1dqk(query: Tensor, key: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Scores `[B, H, X, K]` without a bias."""
    return heads_first.qk(1, query, key, kernel_size, dilation)


def natten2dqk(query: Tensor, key: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Scores `[B, H, X0, X1, K * K]` without a bias."""
    return heads_first.qk(2, query, key, kernel_size, dilation)


def natten1dav(attn: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Output `[B, H, X, D]`; then `kernel_size, dilation` (until 0.14.5: `dilation`)."""
    return _av(1, attn, value, *args, **kwargs)


def natten2dav(attn: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Output `[B, H, X0, X1, D]`; then `kernel_size, dilation` (until 0.14.5: `dilation`)."""
    return _av(2, attn, value, *args, **kwargs)


class NeighborhoodAttention1D(HeadsFirstAttention):
    """0.14's module over `[B, X, dim]`; arguments as `HeadsFirstAttention`, whose `rel_pos_bias` is `bias` here."""

    rank = 1
    pads = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        dilation: int | None = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        dilation = 1 if dilation is None else dilation
        super().__init__(dim, num_heads, kernel_size, dilation, False, bias, qkv_bias, qk_scale, attn_drop, proj_drop)


class NeighborhoodAttention2D(NeighborhoodAttention1D):
    """0.14's module over `[B, X0, X1, dim]`; arguments as `NeighborhoodAttention1D`."""

    rank = 2


NeighborhoodAttention = NeighborhoodAttention2D  # the name until 0.13


def _qkrpb(
    rank: int, query: Tensor, key: Tensor, rpb: Tensor | None, *sizes: int, kernel_size: int | None = None,
    dilation: int | None = None,
) -> Tensor:  # fmt: skip
    if kernel_size is None and len(sizes) + (dilation is not None) == 1 and rpb is not None:
        kernel_size = (rpb.shape[-1] + 1) // 2
    kernel_size, dilation = _both(sizes, kernel_size, dilation)
    return heads_first.qk(rank, query, key, kernel_size, dilation, rpb=rpb)


def _av(
    rank: int, attn: Tensor, value: Tensor, *sizes: int, kernel_size: int | None = None, dilation: int | None = None
) -> Tensor:
    if kernel_size is None and len(sizes) + (dilation is not None) == 1:
        kernel_size = round(attn.shape[-1] ** (1 / rank))
    kernel_size, dilation = _both(sizes, kernel_size, dilation)
    return heads_first.av(rank, attn, value, kernel_size, dilation)


def _both(sizes: tuple[int, ...], kernel_size: int | None, dilation: int | None) -> tuple[int, int]:
    rest = list(sizes)
    if kernel_size is None and rest:
        kernel_size = rest.pop(0)
    if dilation is None and rest:
        dilation = rest.pop(0)
    if kernel_size is None or dilation is None or rest:
        raise TypeError("kernel_size and dilation must be given, and nothing after them")
    return kernel_size, dilation
