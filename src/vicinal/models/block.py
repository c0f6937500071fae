"""The block of every model here, and the attention that its published checkpoints have in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from vicinal.nn import Fit, NeighborhoodAttention2D


class Block(nn.Module):
    """Attention, then a perceptron, each on normalised tokens and added to them: `[B, H, W, dim]` to the same shape.

    Args:
        dim: channels.
        attention: a module of tokens `[B, H, W, dim]`.
        mlp_ratio: hidden channels of the perceptron, in units of `dim`.
        norm: makes a normalisation of `dim` channels; what `forward` is given beside tokens goes to it.
        layer_scale: initial factor of both branches, learned per channel; None for none.
        drop_path: probability of leaving out a branch, per sample.
        drop: dropout in the perceptron.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        mlp_ratio: float,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = attention
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        scale = None if layer_scale is None else torch.full((dim,), layer_scale, device=None, dtype=torch.float32)
        self.gamma1 = None if scale is None else nn.Parameter(scale)
        self.gamma2 = None if scale is None else nn.Parameter(scale.clone())

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """Tokens, and what the normalisations are conditioned on."""
        x = x + self.drop_path(_scaled(self.attn(self.norm1(x, *condition)), self.gamma1))
        return x + self.drop_path(_scaled(self.mlp(self.norm2(x, *condition)), self.gamma2))


class GlobalAttention(NeighborhoodAttention2D):
    """Self attention with a relative positional bias, as the window that is the map it was made for.

    On a larger map the window is a neighborhood.

    Args:
        dim, num_heads: as in `NeighborhoodAttention2D`.
        length: the side of the map.
        fit, attn_drop, proj_drop: as in `NeighborhoodAttention2D`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        length: int,
        fit: Fit = "clamp",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, length, rpb=True, fit=fit, attn_drop=attn_drop, proj_drop=proj_drop)
        # Where in the flattened bias each query finds each key. Nothing reads it: published checkpoints have it.
        at = torch.arange(length, device=None, dtype=torch.int64)
        row, column = at.repeat_interleave(length), at.repeat(length)
        offsets = [place[None, :] - place[:, None] + length - 1 for place in (row, column)]
        self.register_buffer("relative_position_index", offsets[0] * (2 * length - 1) + offsets[1])


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else gamma * x
