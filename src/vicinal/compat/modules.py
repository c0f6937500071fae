"""NATTEN's modules. Those until 0.17 are written here, those from 0.20 on are `vicinal.nn`'s.

Attributes have NATTEN's names and are read in every call: setting them acts, and modules that NATTEN pickled run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vicinal import functional
from vicinal import nn as own
from vicinal.calls import check_input
from vicinal.checks import check_count, check_fraction, check_scale, check_switch
from vicinal.compat import context
from vicinal.compat.operations import default_scale
from vicinal.geometry.neighborhood import Neighborhood, PerAxis, per_axis
from vicinal.unfused import neighborhood_av, neighborhood_qk

_NA = {1: functional.na1d, 2: functional.na2d, 3: functional.na3d}


class HeadsFirstAttention(nn.Module):
    """Multi-head neighborhood self attention over `[B, *X, dim]`, as NATTEN had it until 0.17; a subclass sets `rank`.

    Parameters have NATTEN's names and shapes, so that its checkpoints load: `qkv`, `proj`, `rpb`
    `[num_heads, 2*K0-1, ...]`. Fused after `use_fused_na()`, else queries are scaled before the scores, as NATTEN does.

    Args:
        embed_dim: channels, a multiple of `num_heads`; NATTEN's `dim`.
        num_heads: attention heads.
        kernel_size, dilation, is_causal: one value or one per axis.
        rpb: whether there is a relative positional bias; NATTEN's `bias`, `rel_pos_bias`.
        qkv_bias: whether the input projection has a bias.
        qk_scale: factor of the queries; None (or 0) means `head_dim ** -0.5`.
        attn_drop: dropout of attention weights; where it acts, attention is unfused.
        proj_drop: dropout after the output projection.
    """

    rank: int
    num_heads: int
    head_dim: int
    scale: float
    kernel_size: PerAxis[int]
    dilation: PerAxis[int] | None
    is_causal: PerAxis[bool] = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: PerAxis[int],
        dilation: PerAxis[int] | None = 1,
        is_causal: PerAxis[bool] | None = False,
        rpb: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_count("dim", embed_dim)
        check_count("num_heads", num_heads)
        if embed_dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        neighborhood = Neighborhood.of(self.rank, kernel_size, 1, dilation, is_causal)
        if check_switch("rel_pos_bias", rpb) and any(neighborhood.causal):
            raise NotImplementedError("rel_pos_bias is not defined for causal attention in NATTEN; disable one of them")
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        scale = default_scale(qk_scale)
        self.scale = self.head_dim**-0.5 if scale is None else check_scale("qk_scale", scale)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=check_switch("qkv_bias", qkv_bias))
        if rpb:
            table = (2 * k - 1 for k in neighborhood.window if k is not None)
            self.rpb = nn.Parameter(torch.zeros(num_heads, *table))
            nn.init.trunc_normal_(self.rpb, std=0.02, mean=0.0, a=-2.0, b=2.0)
        else:
            self.register_parameter("rpb", None)
        self.attn_drop = nn.Dropout(check_fraction("attn_drop", attn_drop))
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(check_fraction("proj_drop", proj_drop))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *X, dim]` to the same shape.

        Raises:
            TypeError, ValueError: as `vicinal.nn.NeighborhoodAttention.forward`.
        """
        check_input(x, self.rank, self.num_heads * self.head_dim, self.qkv)
        lengths = x.shape[1:-1]
        x = self.padded(x)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        drops = self.training and self.attn_drop.p > 0
        attend = self._fused if context.is_fused_na_enabled() and not drops else self._unfused
        output = attend(query, key, value, *self.geometry(x.shape[1:-1])).flatten(-2)
        for axis, n in enumerate(lengths, 1):
            output = output.narrow(axis, 0, n)
        return self.proj_drop(self.proj(output))

    def geometry(self, lengths: torch.Size) -> tuple[PerAxis[int], PerAxis[int], PerAxis[bool]]:
        """Window, dilation and causality for tokens of `lengths`, from the attributes."""
        return self.kernel_size, 1 if self.dilation is None else self.dilation, self.is_causal

    def padded(self, x: Tensor) -> Tensor:
        """The input with as many tokens as attention is computed for."""
        return x

    def extra_repr(self) -> str:
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"dilation={self.dilation}, is_causal={self.is_causal}, has_bias={self.rpb is not None}"
        )

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, window: Any, dilation: Any, causal: Any) -> Tensor:
        return _NA[self.rank](q, k, v, window, 1, dilation, causal, self.scale, rpb=self.rpb)

    def _unfused(self, q: Tensor, k: Tensor, v: Tensor, window: Any, dilation: Any, causal: Any) -> Tensor:
        variant = context.unfused_variant(q)
        scores = neighborhood_qk(q * self.scale, k, window, dilation, None, causal, self.rpb, variant=variant)
        weights = self.attn_drop(scores.softmax(-1))
        return neighborhood_av(weights, v, window, dilation, None, causal, variant=variant)


class TupleAttention(HeadsFirstAttention):
    """NATTEN 0.17's module: attributes are tuples. `use_experimental_ops` is remembered; all operators compile here."""

    def __init__(self, kernel_size: PerAxis[int], use_experimental_ops: bool = False, **arguments: Any) -> None:
        super().__init__(kernel_size=kernel_size, **arguments)
        given = Neighborhood.of(self.rank, kernel_size, 1, arguments["dilation"], arguments["is_causal"])
        self.kernel_size = tuple(k for k in given.window if k is not None)
        self.dilation, self.is_causal = given.dilation, given.causal
        self.attn_drop_rate = arguments["attn_drop"]
        self.use_experimental_ops = use_experimental_ops


class PaddedAttention(HeadsFirstAttention):
    """NATTEN 0.14's and 0.15's module: attributes are integers, of depth apart; small input is padded.

    Input smaller than `kernel_size * dilation` is zero-padded at its end before the projection, and the output is
    cropped. A dilation given as text is, until 0.14.4, the largest that fits the input.
    """

    kernel_size: int
    dilation: int | None
    kernel_size_d: int | None = None
    dilation_d: int | None = None

    def __init__(
        self,
        kernel_size: int,
        dilation: int | str | None,
        kernel_size_d: int | None = None,
        dilation_d: int | None = None,
        rpb: bool = True,
        **arguments: Any,
    ) -> None:
        depth = self.rank == 3
        plain = None if isinstance(dilation, str) else dilation or 1
        window = (kernel_size_d or kernel_size, kernel_size, kernel_size) if depth else kernel_size
        super().__init__(kernel_size=window, dilation=plain, rpb=rpb, **arguments)
        self.kernel_size, self.dilation = kernel_size, plain
        if depth:
            self.kernel_size_d, self.dilation_d = kernel_size_d or kernel_size, dilation_d or plain

    @property
    def window_size(self) -> int | None:
        """The least length of the input that is not padded."""
        return None if self.dilation is None else self.kernel_size * self.dilation

    def geometry(self, lengths: torch.Size) -> tuple[PerAxis[int], PerAxis[int], PerAxis[bool]]:
        """Window, dilation and causality for tokens of `lengths`, from the attributes."""
        dilation = max(min(lengths) // self.kernel_size, 1) if self.dilation is None else self.dilation
        if self.kernel_size_d is None:
            return self.kernel_size, dilation, False
        windows = (self.kernel_size_d, self.kernel_size, self.kernel_size)
        return windows, (self.dilation_d or dilation, dilation, dilation), False

    def padded(self, x: Tensor) -> Tensor:
        """The input with zeros up to the window at its end."""
        kernel_size, dilation, _ = self.geometry(x.shape[1:-1])
        spans = (k * d for k, d in zip(per_axis("", kernel_size, self.rank), per_axis("", dilation, self.rank)))
        missing = [max(0, span - length) for span, length in zip(spans, x.shape[1:-1])]
        if not any(missing):
            return x
        return nn.functional.pad(x, [0, 0, *(n for m in reversed(missing) for n in (0, m))])


class PaddedAttention2D(PaddedAttention):
    """`PaddedAttention` of two dimensions, which was just `NeighborhoodAttention` until 0.14.4."""

    rank = 2


class HeadsLastAttention(own.NeighborhoodAttention):
    """NATTEN's module from 0.20 on, of rank `na_dim`; otherwise as `vicinal.NeighborhoodAttention2D`."""

    def __init__(self, na_dim: int | None = None, qk_scale: float | None = None, **arguments: Any) -> None:
        self._set_rank(na_dim)
        super().__init__(qk_scale=default_scale(qk_scale), **arguments)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_rank(state.get("na_dim"))
        super().__setstate__(state)

    def _set_rank(self, na_dim: int | None) -> None:
        """The rank of a module whose class has none."""
        if na_dim is not None:
            self.__dict__["rank"] = na_dim
