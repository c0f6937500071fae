"""The module that NATTEN had until 0.17: projections, relative positional bias, attention dropout."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from vicinal.compat import context
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Neighborhood, PerAxis
from vicinal.unfused import neighborhood_av, neighborhood_qk


class HeadsFirstAttention(nn.Module):
    """Multi-head neighborhood self attention over `[B, *X, dim]`; a subclass sets `rank`.

    Parameters have NATTEN's names and shapes, so that its checkpoints load: `qkv`, `proj`, `rpb`
    `[num_heads, 2*K0-1, ...]`. Queries are scaled before the scores, as NATTEN does.

    Args:
        dim: channels, a multiple of `num_heads`.
        num_heads: attention heads.
        kernel_size, dilation, is_causal: one value or one per axis.
        rel_pos_bias: whether there is a relative positional bias.
        qkv_bias: whether the input projection has a bias.
        qk_scale: factor of the queries; None means `head_dim ** -0.5`.
        attn_drop: dropout of attention weights; where it acts, attention is unfused.
        proj_drop: dropout after the output projection.

    Attributes:
        pads: whether input smaller than `kernel_size * dilation` is zero-padded at its end before the projection, and
            the output cropped (0.14); otherwise it is an error.
    """

    rank: ClassVar[int]
    pads: ClassVar[bool] = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: PerAxis[int],
        dilation: PerAxis[int] = 1,
        is_causal: PerAxis[bool] = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        self.neighborhood = Neighborhood.of(self.rank, kernel_size, 1, dilation, is_causal)
        if rel_pos_bias and any(self.neighborhood.causal):
            raise NotImplementedError("rel_pos_bias is not defined for causal attention in NATTEN; disable one of them")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5 if qk_scale is None or qk_scale == 0 else qk_scale
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.is_causal = is_causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        if rel_pos_bias:
            table = (2 * k - 1 for k in self.neighborhood.window if k is not None)
            self.rpb = nn.Parameter(torch.zeros(num_heads, *table))
            nn.init.trunc_normal_(self.rpb, std=0.02, mean=0.0, a=-2.0, b=2.0)
        else:
            self.register_parameter("rpb", None)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *X, dim]` to the same shape."""
        if x.ndim != self.rank + 2:
            raise ValueError(f"x must have {self.rank + 2} dimensions [batch, lengths, dim], got {list(x.shape)}")
        lengths = x.shape[1:-1]
        if self.pads:
            x = self._padded(x)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        drops = self.training and self.attn_drop.p > 0
        if context.is_fused_na_enabled() and not drops:
            output = neighborhood_attention(query, key, value, self.neighborhood, scale=self.scale, rpb=self.rpb)
            assert isinstance(output, Tensor)
        else:
            output = self._unfused(query * self.scale, key, value)
        output = output.flatten(-2)
        for axis, n in enumerate(lengths, 1):
            output = output.narrow(axis, 0, n)
        return self.proj_drop(self.proj(output))

    def extra_repr(self) -> str:
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"dilation={self.dilation}, is_causal={self.is_causal}, has_bias={self.rpb is not None}"
        )

    def _unfused(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        n, variant = self.neighborhood, context.unfused_variant(query)
        window = [k for k in n.window if k is not None]
        scores = neighborhood_qk(query, key, window, n.dilation, None, n.causal, self.rpb, variant=variant)
        weights = self.attn_drop(scores.softmax(-1))
        return neighborhood_av(weights, value, window, n.dilation, None, n.causal, variant=variant)

    def _padded(self, x: Tensor) -> Tensor:
        padding: list[int] = [0, 0]
        for axis, length in reversed(list(zip(self.neighborhood.axes, x.shape[1:-1]))):
            assert axis.window is not None
            padding += [0, max(0, axis.window * axis.dilation - length)]
        return nn.functional.pad(x, padding) if any(padding) else x
