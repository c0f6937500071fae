"""One module for any rank: projections around neighborhood attention."""

from __future__ import annotations

from torch import Tensor, nn

from vicinal.functional import na1d, na2d, na3d
from vicinal.geometry.neighborhood import Boundary, Neighborhood, PerAxis

_NA = {1: na1d, 2: na2d, 3: na3d}


class NeighborhoodAttention(nn.Module):
    """Multi-head neighborhood self attention with its input and output projections; a subclass sets `rank`.

    Args:
        embed_dim: channels of the input and output, a multiple of `num_heads`.
        num_heads: attention heads.
        kernel_size, stride, dilation, is_causal: as in `vicinal.na1d`: one value for all axes or one per axis.
        qkv_bias: whether the input projection has a bias.
        qk_scale: factor of the scores; None means `head_dim ** -0.5`.
        proj_drop: dropout after the output projection.
        boundary: "shift" or "clip", per axis.

    Attributes:
        na_dim: the number of spatial axes.
        kernel_size, stride, dilation, is_causal, boundary: tuples, one value per axis. Setting one (also to one value
            for all axes) acts from the next call, which raises where it does not fit.

    Raises:
        ValueError: `embed_dim` is no multiple of `num_heads`, or a neighborhood parameter is out of range.

    Source: arXiv 2204.07143, section 3.2.
    """

    rank: int
    boundary: PerAxis[Boundary] = "shift"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: PerAxis[int | None],
        stride: PerAxis[int] = 1,
        dilation: PerAxis[int] = 1,
        is_causal: PerAxis[bool] = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        boundary: PerAxis[Boundary] = "shift",
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads != 0:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        neighborhood = Neighborhood.of(self.rank, kernel_size, stride, dilation, is_causal, boundary)
        self.na_dim = self.rank
        self.kernel_size: PerAxis[int | None] = neighborhood.window
        self.stride: PerAxis[int] = neighborhood.stride
        self.dilation: PerAxis[int] = neighborhood.dilation
        self.is_causal: PerAxis[bool] = neighborhood.causal
        self.boundary = tuple(axis.boundary for axis in neighborhood.axes)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.scale = self.head_dim**-0.5 if qk_scale is None else qk_scale
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *X, embed_dim]` to the same shape.

        Raises:
            ValueError: the input has another rank or another number of channels.
        """
        rank = self.na_dim
        if x.ndim != rank + 2 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"x must have {rank + 2} dimensions [batch, {rank} spatial lengths, {self.embed_dim}], "
                f"got shape {list(x.shape)}"
            )
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.unbind(-3)
        output = _NA[rank](
            query,
            key,
            value,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.is_causal,
            self.scale,
            boundary=self.boundary,
        )
        assert isinstance(output, Tensor)
        return self.proj_drop(self.proj(output.flatten(-2)))

    def extra_repr(self) -> str:
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, is_causal={self.is_causal}"
        )


class NeighborhoodAttention1D(NeighborhoodAttention):
    """`NeighborhoodAttention` over one axis: `[B, X0, embed_dim]`."""

    rank = 1


class NeighborhoodAttention2D(NeighborhoodAttention):
    """`NeighborhoodAttention` over two axes: `[B, X0, X1, embed_dim]`."""

    rank = 2


class NeighborhoodAttention3D(NeighborhoodAttention):
    """`NeighborhoodAttention` over three axes: `[B, X0, X1, X2, embed_dim]`."""

    rank = 3
