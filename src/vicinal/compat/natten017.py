"""NATTEN 0.15 to 0.17: `na{1,2,3}d_qk`, `_qkrpb`, `_av` heads-first, fused `na{1,2,3}d` heads-last, modules.

The fused functions have dilation as fifth argument (0.20 has stride there). Signatures are 0.17.5's, those of the
`natten*` functions (deprecated then) 0.15's and 0.17.1's.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from vicinal.compat import heads_first, natten014
from vicinal.compat.modules import HeadsFirstAttention
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Neighborhood, PerAxis

natten1dqk, natten1dqkrpb, natten1dav = natten014.natten1dqk, natten014.natten1dqkrpb, natten014.natten1dav
natten2dqk, natten2dqkrpb, natten2dav = natten014.natten2dqk, natten014.natten2dqkrpb, natten014.natten2dav

FUNCTIONS = [
    *(f"na{rank}d{kind}" for rank in (1, 2, 3) for kind in ("", "_qk", "_qkrpb", "_qk_with_bias", "_av")),
    *(f"natten{rank}d{kind}" for rank in (1, 2, 3) for kind in ("qk", "qkrpb", "av")),
]
MODULES = ["NeighborhoodAttention1D", "NeighborhoodAttention2D", "NeighborhoodAttention3D"]
__all__ = [*FUNCTIONS, *MODULES]


def _fused(rank: int) -> Callable[..., Tensor]:
    def na(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: PerAxis[int],
        dilation: PerAxis[int] = 1,
        is_causal: PerAxis[bool] | None = False,
        rpb: Tensor | None = None,
        scale: float | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        xformers_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        if query.is_nested or key.is_nested or value.is_nested:
            raise NotImplementedError("fused neighborhood attention takes no nested tensors")
        if xformers_kwargs:
            warnings.warn("vicinal ignores xformers_kwargs: it does not use xFormers", stacklevel=2)
        output = neighborhood_attention(
            query,
            key,
            value,
            Neighborhood.of(rank, kernel_size, 1, dilation, is_causal),
            scale=None if scale == 0 else scale,  # 0 meant the default
            additional_keys=additional_keys,
            additional_values=additional_values,
            rpb=rpb,
        )
        assert isinstance(output, Tensor)
        return output

    return _named(na, f"na{rank}d", "Fused attention of `[B, *X, H, D]` tensors; scaled by `D ** -0.5` unless given.")


def _qkrpb(
    rank: int,
    query: Tensor,
    key: Tensor,
    rpb: Tensor | None,
    kernel_size: PerAxis[int],
    dilation: PerAxis[int] = 1,
    additional_keys: Tensor | None = None,
    is_causal: PerAxis[bool] | None = False,
) -> Tensor:
    return heads_first.qk(rank, query, key, kernel_size, dilation, additional_keys, is_causal, rpb)


def _of_rank(function: Callable[..., Tensor], rank: int, kind: str, doc: str) -> Callable[..., Tensor]:
    """`na{rank}d_{kind}`: the function with its first argument, the rank, given."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        return function(rank, *args, **kwargs)

    own = inspect.signature(function)
    call.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])  # type: ignore[attr-defined]
    return _named(call, f"na{rank}d_{kind}", doc)


def _named(function: Callable[..., Tensor], name: str, doc: str) -> Callable[..., Tensor]:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


na1d, na2d, na3d = _fused(1), _fused(2), _fused(3)
_QK = "Scores of `[B, H, *X, D]` tensors, not scaled; see `compat.heads_first.qk`."
_QKRPB = "Scores with the bias third; see `compat.heads_first.qk`."
_AV = "Weighted sums of `[B, H, *X, D]` values; see `compat.heads_first.av`."
na1d_qk, na2d_qk, na3d_qk = (_of_rank(heads_first.qk, rank, "qk", _QK) for rank in (1, 2, 3))
na1d_qkrpb, na2d_qkrpb, na3d_qkrpb = (_of_rank(_qkrpb, rank, "qkrpb", _QKRPB) for rank in (1, 2, 3))
na1d_qk_with_bias, na2d_qk_with_bias, na3d_qk_with_bias = (
    _of_rank(_qkrpb, rank, "qk_with_bias", _QKRPB) for rank in (1, 2, 3)
)
na1d_av, na2d_av, na3d_av = (_of_rank(heads_first.av, rank, "av", _AV) for rank in (1, 2, 3))


def natten3dqkrpb(
    query: Tensor,
    key: Tensor,
    rpb: Tensor | None,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
) -> Tensor:
    """Scores with sizes of depth apart from those of the plane."""
    sizes, dilations = (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation)
    return heads_first.qk(3, query, key, sizes, dilations, rpb=rpb)


def natten3dqk(
    query: Tensor, key: Tensor, kernel_size_d: int, kernel_size: int, dilation_d: int, dilation: int
) -> Tensor:
    """Scores without a bias, with sizes of depth apart from those of the plane."""
    return natten3dqkrpb(query, key, None, kernel_size_d, kernel_size, dilation_d, dilation)


def natten3dav(
    attn: Tensor, value: Tensor, kernel_size_d: int, kernel_size: int, dilation_d: int, dilation: int
) -> Tensor:
    """Weighted sums with sizes of depth apart from those of the plane."""
    sizes, dilations = (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation)
    return heads_first.av(3, attn, value, sizes, dilations)


class NeighborhoodAttention1D(HeadsFirstAttention):
    """0.17's module over `[B, X, dim]`; arguments as `HeadsFirstAttention`. Fused after `use_fused_na()`."""

    rank = 1


class NeighborhoodAttention2D(HeadsFirstAttention):
    """0.17's module over `[B, X0, X1, dim]`; arguments as `HeadsFirstAttention`. Fused after `use_fused_na()`."""

    rank = 2


class NeighborhoodAttention3D(HeadsFirstAttention):
    """0.17's module over `[B, X0, X1, X2, dim]`; arguments as `HeadsFirstAttention`. Fused after `use_fused_na()`."""

    rank = 3
