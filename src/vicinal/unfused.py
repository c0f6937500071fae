"""Unfused neighborhood attention: scores and weighted sums as two operators, the attention weights between them.

For attention maps, dropout of attention weights, another normalisation than softmax, or a value dimension of its own:

    scores = na2d_qk(query, key, kernel_size=7, scale=query.shape[-1] ** -0.5)
    output = na2d_av(scores.softmax(-1), value, kernel_size=7)

The operators are the paper's PN, NN and (in gradients) IN ("Faster Neighborhood Attention", arXiv 2403.04690, section
3). Attention weights are `[B, *X, H, slots + M]`, heads last, `slots = K0 * K1 * ...` of the window and `M` of the
additional keys; which key sits in which slot is defined in `vicinal.backends.slots`. Where a window has fewer keys
than slots (causal, or `boundary="clip"`) the absent ones are minus infinity, and softmax makes them zero.

Argument names and order are those of NATTEN 0.17's unfused operators; the layout is heads-last (its was heads-first:
`vicinal.compat` has that), and `stride`, `scale` and `boundary` are new. Scores are not scaled unless `scale` is given.

On CUDA the Triton kernels run (`variant="gemm"`: tensor cores; `variant="naive"`: one thread group per query), on CPU
plain torch (`variant="torch"`). All are differentiable any number of times, except the bias once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vicinal.backends import unfused_launch as launch
from vicinal.backends.slots import Slots
from vicinal.geometry.neighborhood import Neighborhood, PerAxis, decode
from vicinal.geometry.work import useful_scores

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
    dilation: PerAxis[int] = 1,
    additional_keys: Tensor | None = None,
    is_causal: PerAxis[bool] = False,
    rpb: Tensor | None = None,
    *,
    stride: PerAxis[int] = 1,
    scale: float = 1.0,
    boundary: PerAxis[str] = "shift",
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
        scale: factor of the dot products.
        boundary: "shift" or "clip" windows at borders.
        variant: "gemm", "naive" or "torch"; None for the best that runs here.

    Returns:
        `[B, *X, H, slots + M]` in query's dtype; minus infinity in absent slots.

    Raises:
        TypeError, ValueError: an argument that does not fit, or a variant that cannot run here, with the reason.
    """
    slots = _slots(query, kernel_size, stride, dilation, is_causal, boundary)
    _check_pair("key", key, query, query.shape[-1])
    if rpb is not None:
        expected = (query.shape[-2], *slots.bias_shape)
        if tuple(rpb.shape) != expected:
            raise ValueError(f"rpb must have shape [heads, 2*kernel_size-1, ...] = {expected}, got {tuple(rpb.shape)}")
        rpb = rpb.to(query.dtype)
    name = launch.choose(query, variant)
    scores = _pn(query, key, rpb, slots.neighborhood.encode(), scale, float("-inf"), name)
    if additional_keys is None:
        return scores
    _check_additional("additional_keys", additional_keys, key)
    return torch.cat([scores, scale * launch.dense_qk(query, additional_keys)], -1)


def neighborhood_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: PerAxis[int],
    dilation: PerAxis[int] = 1,
    additional_values: Tensor | None = None,
    is_causal: PerAxis[bool] = False,
    *,
    stride: PerAxis[int] = 1,
    boundary: PerAxis[str] = "shift",
    variant: str | None = None,
) -> Tensor:
    """For each query the sum of its neighbors' values weighted by `attn`, 1-D to 3-D (from the tensors' rank).

    Args:
        attn: `[B, *X, H, slots + M]` as `neighborhood_qk` lays it out, of any strides; cast to value's dtype.
        value: `[B, *X, Hkv, Dv]`, floating point.
        kernel_size, dilation, is_causal, stride, boundary, variant: as given to `neighborhood_qk`.
        additional_values: `[B, M, Hkv, Dv]`, weighted by the last `M` slots.

    Returns:
        `[B, *X, H, Dv]` in value's dtype.

    Raises:
        TypeError, ValueError: an argument that does not fit, or a variant that cannot run here, with the reason.
    """
    slots = _slots(value, kernel_size, stride, dilation, is_causal, boundary)
    extra = 0 if additional_values is None else additional_values.shape[1]
    if attn.ndim != value.ndim or attn.shape[:-2] != value.shape[:-2] or attn.shape[-1] != slots.count + extra:
        expected = [*value.shape[:-2], "heads", slots.count + extra]
        raise ValueError(
            f"attn must have shape [batch, *lengths, heads, slots] = {expected} for value {list(value.shape)}, "
            f"got {list(attn.shape)}"
        )
    if attn.shape[-2] % value.shape[-2]:
        raise ValueError(f"attn's heads {attn.shape[-2]} must be a multiple of value's heads {value.shape[-2]}")
    if not attn.is_floating_point() or attn.device != value.device:
        raise ValueError(f"attn must be floating point on {value.device}, got {attn.dtype} on {attn.device}")
    attn = attn.to(value.dtype)
    name = launch.choose(value, variant)
    output = _nn(attn[..., : slots.count], value, slots.neighborhood.encode(), 1.0, name)
    if additional_values is None:
        return output
    _check_additional("additional_values", additional_values, value)
    return output + launch.dense_av(attn[..., slots.count :], additional_values)


def _qk(rank: int) -> Callable[..., Tensor]:
    """`na{rank}d_qk`: one signature for the three."""

    def qk(
        query: Tensor,
        key: Tensor,
        kernel_size: PerAxis[int],
        dilation: PerAxis[int] = 1,
        additional_keys: Tensor | None = None,
        is_causal: PerAxis[bool] = False,
        rpb: Tensor | None = None,
        *,
        stride: PerAxis[int] = 1,
        scale: float = 1.0,
        boundary: PerAxis[str] = "shift",
        variant: str | None = None,
    ) -> Tensor:
        return neighborhood_qk(
            _ranked(query, rank),
            key,
            kernel_size,
            dilation,
            additional_keys,
            is_causal,
            rpb,
            stride=stride,
            scale=scale,
            boundary=boundary,
            variant=variant,
        )

    return _named(qk, f"na{rank}d_qk", f"`neighborhood_qk` of {rank}-D tensors; the same arguments.")


def _qkrpb(rank: int) -> Callable[..., Tensor]:
    """`na{rank}d_qkrpb`: the bias third."""

    def qkrpb(
        query: Tensor,
        key: Tensor,
        rpb: Tensor | None,
        kernel_size: PerAxis[int],
        dilation: PerAxis[int] = 1,
        additional_keys: Tensor | None = None,
        is_causal: PerAxis[bool] = False,
        *,
        stride: PerAxis[int] = 1,
        scale: float = 1.0,
        boundary: PerAxis[str] = "shift",
        variant: str | None = None,
    ) -> Tensor:
        return neighborhood_qk(
            _ranked(query, rank),
            key,
            kernel_size,
            dilation,
            additional_keys,
            is_causal,
            rpb,
            stride=stride,
            scale=scale,
            boundary=boundary,
            variant=variant,
        )

    return _named(qkrpb, f"na{rank}d_qkrpb", f"`neighborhood_qk` of {rank}-D tensors, the bias third.")


def _av(rank: int) -> Callable[..., Tensor]:
    """`na{rank}d_av`: one signature for the three."""

    def av(
        attn: Tensor,
        value: Tensor,
        kernel_size: PerAxis[int],
        dilation: PerAxis[int] = 1,
        additional_values: Tensor | None = None,
        is_causal: PerAxis[bool] = False,
        *,
        stride: PerAxis[int] = 1,
        boundary: PerAxis[str] = "shift",
        variant: str | None = None,
    ) -> Tensor:
        return neighborhood_av(
            attn,
            _ranked(value, rank),
            kernel_size,
            dilation,
            additional_values,
            is_causal,
            stride=stride,
            boundary=boundary,
            variant=variant,
        )

    return _named(av, f"na{rank}d_av", f"`neighborhood_av` of {rank}-D tensors; the same arguments.")


def _named(function: Callable[..., Tensor], name: str, doc: str) -> Callable[..., Tensor]:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


def _ranked(tensor: Tensor, rank: int) -> Tensor:
    if tensor.ndim != rank + 3:
        raise ValueError(
            f"tensors must have {rank + 3} dimensions [batch, {rank} lengths, heads, head_dim], "
            f"got {list(tensor.shape)}"
        )
    return tensor


na1d_qk, na2d_qk, na3d_qk = _qk(1), _qk(2), _qk(3)
na1d_qkrpb, na2d_qkrpb, na3d_qkrpb = _qkrpb(1), _qkrpb(2), _qkrpb(3)
na1d_av, na2d_av, na3d_av = _av(1), _av(2), _av(3)


# Operators: PN, NN and IN are closed under differentiation, each is the others' gradient --------------------------

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
_GEOMETRY = "int[] neighborhood, float scale"
torch.library.define(
    "vicinal::pn",
    f"(Tensor query, Tensor key, Tensor? rpb, {_GEOMETRY}, float fill, str variant) -> Tensor",
    tags=_TAGS,
)
torch.library.define("vicinal::nn", f"(Tensor attn, Tensor value, {_GEOMETRY}, str variant) -> Tensor", tags=_TAGS)
torch.library.define(
    "vicinal::inverse", f"(Tensor attn, Tensor query, int kv_heads, {_GEOMETRY}, str variant) -> Tensor", tags=_TAGS
)
torch.library.define("vicinal::bias_sum", "(Tensor grad, int[] neighborhood, str variant) -> Tensor", tags=_TAGS)
_pn = torch.ops.vicinal.pn.default
_nn = torch.ops.vicinal.nn.default
_inverse = torch.ops.vicinal.inverse.default
_bias_sum = torch.ops.vicinal.bias_sum.default


@torch.library.impl("vicinal::pn", "default")
def _pn_run(query, key, rpb, code, scale, fill, variant):  # type: ignore[no-untyped-def]
    return launch.pn(query, key, rpb, _decode(code, query), scale, fill, variant)


@torch.library.impl("vicinal::nn", "default")
def _nn_run(attn, value, code, scale, variant):  # type: ignore[no-untyped-def]
    return launch.nn(attn, value, _decode(code, value), scale, variant)


@torch.library.impl("vicinal::inverse", "default")
def _inverse_run(attn, query, kv_heads, code, scale, variant):  # type: ignore[no-untyped-def]
    return launch.inverse(attn, query, kv_heads, _decode(code, query), scale, variant)


@torch.library.impl("vicinal::bias_sum", "default")
def _bias_sum_run(grad, code, variant):  # type: ignore[no-untyped-def]
    return launch.bias_sum(grad, _decode(code, grad), variant)


@torch.library.register_fake("vicinal::pn")
def _pn_fake(query, key, rpb, code, scale, fill, variant):  # type: ignore[no-untyped-def]
    return query.new_empty((*query.shape[:-1], _decode(code, query).count))


@torch.library.register_fake("vicinal::nn")
def _nn_fake(attn, value, code, scale, variant):  # type: ignore[no-untyped-def]
    return value.new_empty((*attn.shape[:-1], value.shape[-1]))


@torch.library.register_fake("vicinal::inverse")
def _inverse_fake(attn, query, kv_heads, code, scale, variant):  # type: ignore[no-untyped-def]
    return query.new_empty((*query.shape[:-2], kv_heads, query.shape[-1]))


@torch.library.register_fake("vicinal::bias_sum")
def _bias_sum_fake(grad, code, variant):  # type: ignore[no-untyped-def]
    return grad.new_empty((grad.shape[-2], *_decode(code, grad).bias_shape))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*(t for t in inputs[:2] if isinstance(t, Tensor)))
    ctx.settings = inputs


def _pn_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key = ctx.saved_tensors
    code, scale, _fill, variant = ctx.settings[3:]
    need = ctx.needs_input_grad
    d_query = _nn(grad, key, code, scale, variant) if need[0] else None
    d_key = _inverse(grad, query, key.shape[-2], code, scale, variant) if need[1] else None
    d_rpb = _bias_sum(grad, code, variant) if need[2] else None
    return d_query, d_key, d_rpb, None, None, None, None


def _nn_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    attn, value = ctx.saved_tensors
    code, scale, variant = ctx.settings[2:]
    need = ctx.needs_input_grad
    d_attn = _pn(grad, value, None, code, scale, 0.0, variant) if need[0] else None
    d_value = _inverse(attn, grad, value.shape[-2], code, scale, variant) if need[1] else None
    return d_attn, d_value, None, None, None


def _inverse_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    attn, query = ctx.saved_tensors
    code, scale, variant = ctx.settings[3:]
    need = ctx.needs_input_grad
    d_attn = _pn(query, grad, None, code, scale, 0.0, variant) if need[0] else None
    d_query = _nn(attn, grad, code, scale, variant) if need[1] else None
    return d_attn, d_query, None, None, None, None


torch.library.register_autograd("vicinal::pn", _pn_backward, setup_context=_save)
torch.library.register_autograd("vicinal::nn", _nn_backward, setup_context=_save)
torch.library.register_autograd("vicinal::inverse", _inverse_backward, setup_context=_save)


@register_flop_formula(torch.ops.vicinal.pn)
def _pn_flops(query: Any, key: Any, rpb: Any, code: list[int], *_: Any, **__: Any) -> int:
    return _flops(query[:-1], query[-1], code)


@register_flop_formula(torch.ops.vicinal.nn)
def _nn_flops(attn: Any, value: Any, code: list[int], *_: Any, **__: Any) -> int:
    return _flops(attn[:-1], value[-1], code)


@register_flop_formula(torch.ops.vicinal.inverse)
def _inverse_flops(attn: Any, query: Any, kv_heads: int, code: list[int], *_: Any, **__: Any) -> int:
    return _flops(query[:-1], query[-1], code)


# Checks -----------------------------------------------------------------------------------------------------------


def _flops(shape: Any, dim: int, code: list[int]) -> int:
    batch, *lengths, heads = shape
    (neighborhood,) = decode(code, len(lengths))
    return 2 * batch * heads * dim * useful_scores(neighborhood, tuple(lengths))


def _decode(code: list[int], tensor: Tensor) -> Slots:
    lengths = tuple(tensor.shape[1:-2])
    (neighborhood,) = decode(code, len(lengths))
    return Slots(neighborhood, lengths)


def _slots(tensor: Tensor, kernel_size, stride, dilation, is_causal, boundary) -> Slots:  # type: ignore[no-untyped-def]
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise TypeError(f"query, key and value must be floating-point tensors, got {getattr(tensor, 'dtype', tensor)}")
    rank = tensor.ndim - 3
    if rank not in (1, 2, 3):
        raise ValueError(f"tensors must be [batch, 1 to 3 lengths, heads, head_dim], got {list(tensor.shape)}")
    neighborhood = Neighborhood.of(rank, kernel_size, stride, dilation, is_causal, boundary)
    lengths = tuple(tensor.shape[1:-2])
    return Slots(neighborhood.resolve(lengths), lengths)


def _check_pair(name: str, other: Tensor, query: Tensor, head_dim: int) -> None:
    if other.dtype != query.dtype or other.device != query.device:
        raise TypeError(f"{name} must be {query.dtype} on {query.device}, got {other.dtype} on {other.device}")
    if other.ndim != query.ndim or other.shape[:-2] != query.shape[:-2] or other.shape[-1] != head_dim:
        raise ValueError(f"{name} {list(other.shape)} does not fit query {list(query.shape)}")
    if query.shape[-2] % other.shape[-2]:
        raise ValueError(f"query's heads {query.shape[-2]} must be a multiple of {name}'s heads {other.shape[-2]}")


def _check_additional(name: str, extra: Tensor, like: Tensor) -> None:
    expected = [like.shape[0], extra.shape[1] if extra.ndim == 4 else "M", *like.shape[-2:]]
    if list(extra.shape) != expected or extra.dtype != like.dtype or extra.device != like.device:
        raise ValueError(
            f"{name} must be [batch, M, heads, head_dim] = {expected} {like.dtype} on {like.device}, "
            f"got {list(extra.shape)} {extra.dtype} on {extra.device}"
        )
