"""Unfused neighborhood attention: scores and weighted sums as two operators, the attention weights between them.

For attention maps, dropout of attention weights, another normalisation than softmax, or a value dimension of its own:

    scores = na2d_qk(query, key, kernel_size=7, scale=query.shape[-1] ** -0.5)
    output = na2d_av(scores.softmax(-1), value, kernel_size=7)

The operators are the paper's PN, NN and (in gradients) IN ("Faster Neighborhood Attention", arXiv 2403.04690, section
3). Attention weights are `[B, *X, H, slots + M]`, heads last, `slots = K0 * K1 * ...` of the window and `M` of the
additional keys; which key sits in which slot is defined in `vicinal.geometry.slots`. Where a window has fewer keys
than slots (causal, or `boundary="clip"`) the absent ones are minus infinity, and softmax makes them zero.

Argument names and order are those of NATTEN 0.17's unfused operators; the layout is heads-last (its was heads-first:
`vicinal.compat` has that), and `stride`, `scale` and `boundary` are new. Scores are not scaled unless `scale` is given.

On CUDA the Triton kernels run (`variant="gemm"`: tensor cores; `variant="naive"`: one thread group per query), on CPU
plain torch (`variant="torch"`). They work under `torch.compile`, autograd of any order, forward mode, and `torch.func`
(only gradients of the bias's gradient are not there).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from inspect import signature
from typing import Any, ParamSpec

import torch
from torch import Tensor

from vicinal import torch_internals
from vicinal.autocast import autocast
from vicinal.backends.unfused import launch
from vicinal.calls import neighborhood
from vicinal.checks import (
    check_additional,
    check_key,
    check_rank,
    check_rpb,
    check_scale,
    check_spatial,
    check_tensor,
    check_weights,
)
from vicinal.geometry.neighborhood import Boundary, Neighborhood, PerAxis
from vicinal.geometry.slots import Slots
from vicinal.unfused_operators import nn, pn

P = ParamSpec("P")

__all__ = [
    "na1d_av",
    "na1d_qk",
    "na1d_qkrpb",
    "na2d_av",
    "na2d_qk",
    "na2d_qkrpb",
    "na3d_av",
    "na3d_qk",
    "na3d_qkrpb",
    "neighborhood_av",
    "neighborhood_qk",
]


def neighborhood_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: PerAxis[int],
    dilation: PerAxis[int] | None = 1,
    additional_keys: Tensor | None = None,
    is_causal: PerAxis[bool] | None = False,
    rpb: Tensor | None = None,
    *,
    stride: PerAxis[int] | None = 1,
    scale: float = 1.0,
    boundary: PerAxis[Boundary] = "shift",
    variant: str | None = None,
) -> Tensor:
    """The scores of each query against its neighbors, 1-D to 3-D (from the tensors' rank).

    Args:
        query: `[B, *X, H, D]`, floating point.
        key: `[B, *X, Hkv, D]`, query's dtype; `H` a multiple of `Hkv`.
        kernel_size: keys per query, one value or one per axis.
        dilation: distance between neighboring keys.
        additional_keys: `[B, M, Hkv, D]`: keys of every query, in the last `M` slots.
        is_causal: whether a query sees only keys at or before its own position.
        rpb: relative positional bias `[H, 2*K0-1, ...]`, added after scaling; not to additional keys.
        stride: queries that share one window.
        scale: factor of the dot products, a real number.
        boundary: "shift" or "clip" windows at borders.
        variant: "gemm", "naive" or "torch"; None for the best that runs here.

    Returns:
        `[B, *X, H, slots + M]` in query's dtype; minus infinity in absent slots.

    Raises:
        TypeError, ValueError: an argument that does not fit, or a variant that cannot run here, with the reason.
    """
    query, key, additional_keys, rpb = autocast((query, key, additional_keys, rpb))
    check_tensor("query", query)
    rank = check_rank("query", query)
    check_tensor("key", key, query)
    for name, t in (("query", query), ("key", key)):
        check_spatial(name, t, rank)
    check_key(query, key)
    scale = check_scale("scale", scale)
    slots = _slots(query, kernel_size, stride, dilation, is_causal, boundary)
    if rpb is not None:
        check_tensor("rpb", rpb, query)
        check_rpb(rpb, query.shape[-2], slots.neighborhood)
    if additional_keys is not None:
        check_tensor("additional_keys", additional_keys, query)
        check_additional("additional_keys", additional_keys, key)
    variant = launch.choose(query.dtype, query.device, variant)
    scores = pn(query, key, rpb, slots.neighborhood.encode(), scale, float("-inf"), variant)
    if additional_keys is None:
        return scores
    return torch.cat([scores, scale * launch.dense_qk(query, additional_keys)], -1)


def neighborhood_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: PerAxis[int],
    dilation: PerAxis[int] | None = 1,
    additional_values: Tensor | None = None,
    is_causal: PerAxis[bool] | None = False,
    *,
    stride: PerAxis[int] | None = 1,
    boundary: PerAxis[Boundary] = "shift",
    variant: str | None = None,
) -> Tensor:
    """For each query the sum of its neighbors' values weighted by `attn`, 1-D to 3-D (from the tensors' rank).

    Args:
        attn: `[B, *X, H, slots + M]` as `neighborhood_qk` lays it out, in value's dtype.
        value: `[B, *X, Hkv, Dv]`, floating point.
        kernel_size, dilation, is_causal, stride, boundary, variant: as given to `neighborhood_qk`.
        additional_values: `[B, M, Hkv, Dv]`, weighted by the last `M` slots.

    Returns:
        `[B, *X, H, Dv]` in value's dtype.

    Raises:
        TypeError, ValueError: an argument that does not fit, or a variant that cannot run here, with the reason.
    """
    value, attn, additional_values = autocast((value, attn, additional_values))
    check_tensor("value", value)
    check_spatial("value", value, check_rank("value", value))
    slots = _slots(value, kernel_size, stride, dilation, is_causal, boundary)
    extra = 0
    if additional_values is not None:
        check_tensor("additional_values", additional_values, value, "value")
        check_additional("additional_values", additional_values, value)
        extra = additional_values.shape[1]
    check_weights(attn, value, slots.count + extra)
    variant = launch.choose(value.dtype, value.device, variant)
    output = nn(attn[..., : slots.count], value, slots.neighborhood.encode(), 1.0, variant)
    if additional_values is None:
        return output
    return output + launch.dense_av(attn[..., slots.count :], additional_values)


def _qkrpb(
    query: Tensor,
    key: Tensor,
    rpb: Tensor | None,
    kernel_size: PerAxis[int],
    dilation: PerAxis[int] | None = 1,
    additional_keys: Tensor | None = None,
    is_causal: PerAxis[bool] | None = False,
    *,
    stride: PerAxis[int] | None = 1,
    scale: float = 1.0,
    boundary: PerAxis[Boundary] = "shift",
    variant: str | None = None,
) -> Tensor:
    """`neighborhood_qk` with the bias third."""
    numbers = (kernel_size, dilation, additional_keys, is_causal, rpb)
    return neighborhood_qk(query, key, *numbers, stride=stride, scale=scale, boundary=boundary, variant=variant)


def _ranked(function: Callable[P, Tensor], rank: int, kind: str, name: str) -> Callable[P, Tensor]:
    """`na{rank}d_{kind}`: the function for tensors of one rank, which its argument `name` must have."""
    place = list(signature(function).parameters).index(name)

    @wraps(function)
    def ranked(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensor = args[place] if len(args) > place else kwargs.get(name)
        if isinstance(tensor, Tensor):
            check_tensor(name, tensor)
            check_spatial(name, tensor, rank)
        return function(*args, **kwargs)

    ranked.__name__ = ranked.__qualname__ = f"na{rank}d_{kind}"
    bias = ", the bias third" if kind == "qkrpb" else ""
    ranked.__doc__ = f"`neighborhood_{kind[:2]}` of {rank}-D tensors; the same arguments{bias}."
    return ranked


na1d_qk, na2d_qk, na3d_qk = (_ranked(neighborhood_qk, rank, "qk", "query") for rank in (1, 2, 3))
na1d_qkrpb, na2d_qkrpb, na3d_qkrpb = (_ranked(_qkrpb, rank, "qkrpb", "query") for rank in (1, 2, 3))
na1d_av, na2d_av, na3d_av = (_ranked(neighborhood_av, rank, "av", "value") for rank in (1, 2, 3))


def _slots(tensor: Tensor, *geometry: Any) -> Slots:
    """The slots of `[batch, *lengths, heads, dim]`, for window, stride, dilation, causality and boundary as given."""
    lengths = tuple(torch_internals.shape_of(tensor)[1:-2])
    window = neighborhood(len(lengths), *geometry)
    if window.is_circular:
        raise ValueError("boundary must be 'shift' or 'clip' on every axis of unfused operators, got 'wrap'")
    if torch.compiler.is_compiling():
        return Slots(window.resolve(lengths), lengths)
    return _known_slots(window, lengths)


@lru_cache(maxsize=1024)
def _known_slots(window: Neighborhood, lengths: tuple[int, ...]) -> Slots:
    return Slots(window.resolve(lengths), lengths)
