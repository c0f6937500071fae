"""One module for any rank: projections around neighborhood attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor, nn

from vicinal.calls import check_input, clamped
from vicinal.checks import check_count, check_device, check_fraction, check_scale, check_switch
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Boundary, Neighborhood, PerAxis
from vicinal.problem import DTYPES, Inputs
from vicinal.unfused import neighborhood_av, neighborhood_qk

T = TypeVar("T")
Fit: TypeAlias = Literal["exact", "clamp", "pad"]


class _PerAxis(Generic[T]):
    """An attribute that is part of a module's neighborhood: read as one value per axis, set also by one for all."""

    def __init__(self, field: str) -> None:
        self.field = field  # of `Axis`

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: NeighborhoodAttention, owner: type | None = None) -> tuple[T, ...]:
        if module is None:
            raise AttributeError(f"{self.name} belongs to modules, not to their class")
        values = {tuple(getattr(axis, self.field) for axis in n.axes) for n in module.neighborhoods}
        if len(values) > 1:
            raise ValueError(f"{self.name} differs between heads: see the attribute neighborhoods")
        return values.pop()

    def __set__(self, module: NeighborhoodAttention, value: PerAxis[T]) -> None:
        module.neighborhoods = tuple(self._changed(n, module.rank, value) for n in module.neighborhoods)

    def _changed(self, neighborhood: Neighborhood, rank: int, value: PerAxis[T]) -> Neighborhood:
        values: dict[str, Any] = {
            name: tuple(getattr(axis, field) for axis in neighborhood.axes) for name, field in _GEOMETRY.items()
        }
        return Neighborhood.of(rank, **{**values, self.name: value})


_GEOMETRY = {  # argument -> field of `Axis`
    "kernel_size": "window",
    "stride": "stride",
    "dilation": "dilation",
    "is_causal": "causal",
    "boundary": "boundary",
}


class NeighborhoodAttention(nn.Module):
    """Multi-head neighborhood self attention with its input and output projections; a subclass sets `rank`.

    Args:
        embed_dim: channels of the input and output, a multiple of `num_heads`.
        num_heads: attention heads.
        kernel_size, stride, dilation, is_causal: as in `vicinal.na1d`: one value for all axes or one per axis. A
            `kernel_size` that is a sequence of `num_heads` `Neighborhood`s gives each head its own, in one launch; then
            the others keep their defaults.
        qkv_bias: whether the input projection has a bias.
        qk_scale: factor of the scores, a real number; None means `head_dim ** -0.5`.
        proj_drop: dropout after the output projection.
        attn_drop: dropout of attention weights. In training it takes the unfused operators, which take memory for all
            weights, and know no circular axes.
        rpb: whether a relative positional bias `[num_heads, 2*K0-1, ...]` is learned, the parameter `rpb`.
        fit: what becomes of tokens that are fewer than `kernel_size * dilation` along an axis where windows shift.
            "exact" raises. "clamp" takes the largest window that fits, `min(kernel_size, length // dilation)`; of the
            bias it takes the middle. "pad" appends zeros to the input and crops the output, as NATTEN's module did
            until 0.15: the zeros are attended.
        boundary: "shift", "clip" or "wrap", per axis.
        device, dtype: of the parameters, as in torch's modules.

    Attributes:
        kernel_size, stride, dilation, is_causal, boundary: tuples, one value per axis (a `kernel_size` of None is the
            whole axis). Setting one, also to one value for all axes, acts from the next call, for all heads; what does
            not fit the others raises at once.
        neighborhoods: a tuple, one `Neighborhood` for all heads or one per head.
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
        kernel_size: PerAxis[int | None] | Sequence[Neighborhood],
        stride: PerAxis[int] | None = 1,
        dilation: PerAxis[int] | None = 1,
        is_causal: PerAxis[bool] | None = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        attn_drop: float = 0.0,
        rpb: bool = False,
        fit: Fit = "exact",
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
        if dtype is not None and dtype not in DTYPES.values():
            raise TypeError(f"dtype must be one of {', '.join(map(str, DTYPES.values()))}, got {dtype!r}")
        if fit not in get_args(Fit):
            raise ValueError(f"fit must be one of {get_args(Fit)}, got {fit!r}")
        geometry = (stride, dilation, is_causal, boundary)
        self.neighborhoods = _neighborhoods(self.rank, num_heads, kernel_size, geometry)
        self.fit = fit
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.scale = self.head_dim**-0.5 if qk_scale is None else check_scale("qk_scale", qk_scale)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(check_fraction("attn_drop", attn_drop))
        self.proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(check_fraction("proj_drop", proj_drop))
        self.rpb: nn.Parameter | None
        if check_switch("rpb", rpb):
            table = torch.empty(
                num_heads, *self._table_lengths(), device=device, dtype=dtype or torch.get_default_dtype()
            )
            self.rpb = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        else:
            self.register_parameter("rpb", None)

    @property
    def na_dim(self) -> int:
        return self.rank

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *X, embed_dim]` to the same shape.

        Raises:
            TypeError: the input is no dense tensor, or not of the parameters' dtype (under autocast it may differ).
            ValueError: the input has another rank or another number of channels, a window does not fit it, or attention
                weights are to be dropped around a circle.
        """
        check_input(x, self.rank, self.num_heads * self.head_dim, self.qkv)
        lengths = x.shape[1:-1]
        neighborhoods, rpb = self.neighborhoods, self.bias()
        if self.fit == "pad":
            x = _padded(x, [max(least) for least in zip(*(n.least for n in neighborhoods))])
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        output = self._attend(query, key, value, neighborhoods, rpb).flatten(-2)
        if output.shape[1:-1] != lengths:
            output = output[(slice(None), *(slice(n) for n in lengths))]
        return self.proj_drop(self.proj(output))

    def bias(self) -> Tensor | None:
        """The relative positional bias of all heads, `[num_heads, 2*K0-1, ...]`, or None."""
        return self.rpb

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, neighborhoods: tuple[Neighborhood, ...], rpb: Tensor | None
    ) -> Tensor:
        if not self.training or self.attn_drop.p == 0:
            clamp = self.fit == "clamp"
            return neighborhood_attention(query, key, value, neighborhoods, scale=self.scale, rpb=rpb, clamp=clamp)
        if any(n.is_circular for n in neighborhoods):
            raise ValueError(f"attn_drop must be 0 in training where boundary is 'wrap', got {self.attn_drop.p}")
        if self.fit == "clamp":
            inputs, neighborhoods = clamped(Inputs(query, key, value, rpb=rpb), neighborhoods)
            rpb = inputs.rpb
        return unfused_attention(query, key, value, neighborhoods, scale=self.scale, rpb=rpb, drop=self.attn_drop)

    def _table_lengths(self) -> list[int]:
        """The lengths of the table of relative positions."""
        if len({n.window for n in self.neighborhoods}) > 1:
            raise ValueError(f"rpb needs one kernel_size for all heads, got {[n.window for n in self.neighborhoods]}")
        if None in self.kernel_size:
            raise ValueError(f"rpb needs a kernel_size on every axis, got {self.kernel_size}")
        return [2 * k - 1 for k in self.kernel_size if k is not None]

    if TYPE_CHECKING:  # torch types the calls of modules as anything

        def __call__(self, x: Tensor) -> Tensor: ...

    def extra_repr(self) -> str:
        words = [f"head_dim={self.head_dim}", f"num_heads={self.num_heads}"]
        for n in dict.fromkeys(self.neighborhoods):
            words += [f"kernel_size={n.window}", f"stride={n.stride}", f"dilation={n.dilation}"]
            words.append(f"is_causal={n.causal}")
            boundary = tuple(axis.boundary for axis in n.axes)
            if set(boundary) != {"shift"}:
                words.append(f"boundary={boundary}")
        if self.rpb is not None:
            words.append("rpb=True")
        if self.fit != "exact":
            words.append(f"fit={self.fit!r}")
        return ", ".join(words)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a module that NATTEN pickled, which has no neighborhood but attributes."""
        kept = {name: value for name, value in state.items() if name not in (*_GEOMETRY, "na_dim")}
        super().__setstate__(kept)
        if "neighborhoods" not in kept:
            given = {name: state[name] for name in _GEOMETRY if name in state}
            self.neighborhoods = (Neighborhood.of(self.rank, **given),)
            self.fit, self.attn_drop = "exact", nn.Dropout(0.0)
            self.register_parameter("rpb", None)


class NeighborhoodAttention1D(NeighborhoodAttention):
    """`NeighborhoodAttention` over one axis: `[B, X0, embed_dim]`."""

    rank = 1


class NeighborhoodAttention2D(NeighborhoodAttention):
    """`NeighborhoodAttention` over two axes: `[B, X0, X1, embed_dim]`."""

    rank = 2


class NeighborhoodAttention3D(NeighborhoodAttention):
    """`NeighborhoodAttention` over three axes: `[B, X0, X1, X2, embed_dim]`."""

    rank = 3


def unfused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    neighborhoods: Sequence[Neighborhood],
    *,
    scale: float,
    rpb: Tensor | None,
    drop: Callable[[Tensor], Tensor] | None = None,
    variant: str | None = None,
) -> Tensor:
    """Neighborhood attention by the unfused operators, heads of one neighborhood at once; weights may drop."""
    outputs, first, each = [], 0, query.shape[-2] // len(neighborhoods)
    for at, neighborhood in enumerate(neighborhoods, 1):
        if at < len(neighborhoods) and neighborhoods[at] == neighborhood:
            continue
        heads, first = slice(first, at * each), at * each
        window: Any = neighborhood.resolve(query.shape[1:-2])
        rest: dict[str, Any] = {"dilation": window.dilation, "is_causal": window.causal, "stride": window.stride}
        rest |= {"boundary": tuple(axis.boundary for axis in window.axes), "variant": variant}
        q, k, v = (t[..., heads, :] for t in (query, key, value))
        table = None if rpb is None else rpb[heads]
        weights = neighborhood_qk(q, k, window.window, rpb=table, scale=scale, **rest).softmax(-1)
        outputs.append(neighborhood_av(weights if drop is None else drop(weights), v, window.window, **rest))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -2)


def _neighborhoods(rank: int, heads: int, given: Any, geometry: tuple[Any, ...]) -> tuple[Neighborhood, ...]:
    """One neighborhood for all heads, or one per head where a sequence of them is given as `kernel_size`."""
    if not isinstance(given, (list, tuple)) or not any(isinstance(n, Neighborhood) for n in given):
        return (Neighborhood.of(rank, given, *geometry),)
    if not all(isinstance(n, Neighborhood) and n.rank == rank for n in given) or len(given) != heads:
        raise ValueError(f"kernel_size must be {heads} Neighborhoods of {rank} axes, one per head, got {given!r}")
    if geometry != (1, 1, False, "shift"):
        raise ValueError("kernel_size of Neighborhoods says all: leave stride, dilation, is_causal and boundary out")
    return tuple(given)


def _padded(x: Tensor, least: Sequence[int]) -> Tensor:
    """Tokens `[B, *X, C]` with zeros at the end of each axis that has fewer than `least`."""
    missing = [max(0, k - n) for k, n in zip(least, x.shape[1:-1])]
    if not any(missing):
        return x
    return nn.functional.pad(x, [0, 0, *(n for m in reversed(missing) for n in (0, m))])
