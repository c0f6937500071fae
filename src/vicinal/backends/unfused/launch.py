"""The unfused operators: one function per operator, the variant chosen by name.

Variants: "torch" (plain torch, any device), "naive" and "gemm" (the Triton kernels; under Triton's interpreter also
for CPU tensors). Tensors are heads-last; see `vicinal.backends.unfused.plain` for shapes.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, get_args

import torch
from torch import Tensor

from vicinal.autocast import without_autocast
from vicinal.backends.unfused import plain
from vicinal.backends.unfused.config import Variant
from vicinal.geometry.slots import Slots

VARIANTS: tuple[Variant, ...] = get_args(Variant)  # in order of preference


def choose(dtype: torch.dtype, device: torch.device, variant: str | None) -> str:
    """The variant to run for tensors of a dtype on a device: the one named, or the first that can.

    Raises:
        ValueError: the variant is unknown or cannot run here, with the reason.
    """
    if variant is None:
        if device.type != "cuda":
            return "torch"
        return next(v for v in VARIANTS if unsupported(v, dtype, device) is None)
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
    reason = unsupported(variant, dtype, device)
    if reason is not None:
        raise ValueError(f"variant {variant!r} cannot run here: {reason}")
    return variant


def unsupported(variant: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a variant cannot run; None when it can."""
    if variant == "torch":
        return None
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda" and not _interpreted():
        return f"Triton kernels need a CUDA device (or TRITON_INTERPRET=1), the tensors are on {device.type}"
    if variant == "gemm" and dtype == torch.float64:
        return "the GEMM kernels have no float64 (use the naive kernels)"
    return None


P = ParamSpec("P")


def in_their_dtypes(product: Callable[Concatenate[Tensor, P], Tensor]) -> Callable[Concatenate[Tensor, P], Tensor]:
    """Autocast, which would take the products of float32 to half precision, does not reach `product`."""

    @wraps(product)
    def run(first: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with without_autocast(first.device):
            return product(first, *args, **kwargs)

    return run


@in_their_dtypes
def pn(query: Tensor, key: Tensor, rpb: Tensor | None, slots: Slots, scale: float, fill: float, variant: str) -> Tensor:
    """Pointwise-neighborhood; see `plain.pn`."""
    if variant == "torch":
        return plain.pn(query, key, rpb, slots, scale, fill)
    return _kernels().pn(query, key, rpb, slots, scale, fill, variant)


@in_their_dtypes
def nn(attn: Tensor, value: Tensor, slots: Slots, scale: float, variant: str) -> Tensor:
    """Neighborhood-neighborhood; see `plain.nn`."""
    if variant == "torch":
        return plain.nn(attn, value, slots, scale)
    return _kernels().nn(attn, value, slots, scale, variant)


@in_their_dtypes
def inverse(attn: Tensor, query: Tensor, kv_heads: int, slots: Slots, scale: float, variant: str) -> Tensor:
    """Inverse-neighborhood; see `plain.inverse`."""
    if variant == "torch":
        return plain.inverse(attn, query, kv_heads, slots, scale)
    return _kernels().inverse(attn, query, kv_heads, slots, scale, variant)


def bias_sum(grad: Tensor, slots: Slots, variant: str) -> Tensor:
    """The gradient of the relative positional bias; see `plain.bias_sum`."""
    if variant == "torch" or grad.dtype == torch.float64:  # rare: no float64 kernel
        return plain.bias_sum(grad, slots)
    return _kernels().bias_sum(grad, slots)


@in_their_dtypes
def dense_qk(query: Tensor, keys: Tensor) -> Tensor:
    """Every query `[B, *X, H, D]` against every key `[B, M, Hkv, D]`: `[B, *X, H, M]`. Plain torch, differentiable."""
    grouped = query.flatten(1, -3).unflatten(2, (keys.shape[2], -1))
    scores = torch.einsum("bnhgd,bmhd->bnhgm", grouped, keys)
    return scores.reshape(*query.shape[:-1], keys.shape[1])


@in_their_dtypes
def dense_av(attn: Tensor, values: Tensor) -> Tensor:
    """Values `[B, M, Hkv, Dv]` weighted by `[B, *X, H, M]`: `[B, *X, H, Dv]`. Plain torch, differentiable."""
    grouped = attn.flatten(1, -3).unflatten(2, (values.shape[2], -1))
    output = torch.einsum("bnhgm,bmhd->bnhgd", grouped, values)
    return output.reshape(*attn.shape[:-1], values.shape[-1])


def _kernels() -> Any:
    """`programs`, imported when it is first needed: it needs Triton."""
    from vicinal.backends.unfused import programs

    return programs


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
