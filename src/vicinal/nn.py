"""One module for any rank: projections around neighborhood attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from vicinal.calls import check_input
from vicinal.checks import DTYPES, check_count, check_device, check_fraction, check_scale, check_switch
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Boundary, Neighborhood, PerAxis

T = TypeVar("T")


class _PerAxis(Generic[T]):
    """An attribute that is part of a module's neighborhood: read as one value per axis, set also by one for all."""

    def __init__(self, field: str) -> None:
        self.field = field  # of `Axis`

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: NeighborhoodAttention, owner: type | None = None) -> tuple[T, ...]:
        if module is None:
            raise AttributeError(f"{self.name} belongs to modules, not to their class")
        return tuple(getattr(axis, self.field) for axis in module.neighborhood.axes)

    def __set__(self, module: NeighborhoodAttention, value: PerAxis[T]) -> None:
        values: dict[str, Any] = {name: getattr(module, name) for name in _GEOMETRY}
        module.neighborhood = Neighborhood.of(module.rank, **{**values, self.name: value})


_GEOMETRY = ("kernel_size", "stride", "dilation", "is_causal", "boundary")


class NeighborhoodAttention(nn.Module):
    """Multi-head neighborhood self attention with its input and output projections; a subclass sets `rank`.

    Args:
        embed_dim: channels of the input and output, a multiple of `num_heads`.
        num_heads: attention heads.
        kernel_size, stride, dilation, is_causal: as in `vicinal.na1d`: one value for all axes or one per axis.
        qkv_bias: whether the input projection has a bias.
        qk_scale: factor of the scores, a real number; None means `head_dim ** -0.5`.
        proj_drop: dropout after the output projection.
        boundary: "shift" or "clip", per axis.
        device, dtype: of the parameters, as in torch's modules.

    Attributes:
        kernel_size, stride, dilation, is_causal, boundary: tuples, one value per axis (a `kernel_size` of None is the
            whole axis). Setting one, also to one value for all axes, acts from the next call; what does not fit the
            others raises at once.
        na_dim: the number of spatial axes.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `embed_dim` is no multiple of `num_heads`, or a value is out of range.

    Source: arXiv 2204.07143, section 3.2.
    """

    rank: ClassVar[int]
    kernel_size = _PerAxis[int | None]("window")
    stride = _PerAxis[int]("stride")
    dilation = _PerAxis[int]("dilation")
    is_causal = _PerAxis[bool]("causal")
    boundary = _PerAxis[Boundary]("boundary")

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: PerAxis[int | None],
        stride: PerAxis[int] | None = 1,
        dilation: PerAxis[int] | None = 1,
        is_causal: PerAxis[bool] | None = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        boundary: PerAxis[Boundary] = "shift",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(self, "rank"):
            raise TypeError(f"{type(self).__name__} has no rank: use NeighborhoodAttention1D, 2D or 3D")
        check_count("embed_dim", embed_dim)
        check_count("num_heads", num_heads)
        if embed_dim % num_heads != 0:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        check_switch("qkv_bias", qkv_bias)
        check_device("device", device)
        if dtype is not None and dtype not in DTYPES:
            raise TypeError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype!r}")
        self.neighborhood = Neighborhood.of(self.rank, kernel_size, stride, dilation, is_causal, boundary)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.scale = self.head_dim**-0.5 if qk_scale is None else check_scale("qk_scale", qk_scale)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(check_fraction("proj_drop", proj_drop))

    @property
    def na_dim(self) -> int:
        return self.rank

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *X, embed_dim]` to the same shape.

        Raises:
            TypeError: the input is no dense tensor, or not of the parameters' dtype (under autocast it may differ).
            ValueError: the input has another rank or another number of channels.
        """
        check_input(x, self.rank, self.num_heads * self.head_dim, self.qkv)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.unbind(-3)
        output = neighborhood_attention(query, key, value, self.neighborhood, scale=self.scale)
        return self.proj_drop(self.proj(output.flatten(-2)))

    if TYPE_CHECKING:  # torch types the calls of modules as anything

        def __call__(self, x: Tensor) -> Tensor: ...

    def extra_repr(self) -> str:
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, is_causal={self.is_causal}"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a module that NATTEN pickled, which has no neighborhood but attributes."""
        kept = {name: value for name, value in state.items() if name not in (*_GEOMETRY, "na_dim")}
        super().__setstate__(kept)
        if "neighborhood" not in kept:
            given = {name: state[name] for name in _GEOMETRY if name in state}
            self.neighborhood = Neighborhood.of(self.rank, **given)


class NeighborhoodAttention1D(NeighborhoodAttention):
    """`NeighborhoodAttention` over one axis: `[B, X0, embed_dim]`."""

    rank = 1


class NeighborhoodAttention2D(NeighborhoodAttention):
    """`NeighborhoodAttention` over two axes: `[B, X0, X1, embed_dim]`."""

    rank = 2


class NeighborhoodAttention3D(NeighborhoodAttention):
    """`NeighborhoodAttention` over three axes: `[B, X0, X1, X2, embed_dim]`."""

    rank = 3
