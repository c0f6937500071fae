"""Launching the unfused operators: one function per operator, the variant chosen by name.

Variants: "torch" (plain torch, any device), "naive" and "gemm" (the Triton kernels; under Triton's interpreter also
for CPU tensors). Tensors are heads-last; see `vicinal.backends.unfused_torch` for shapes.
"""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from vicinal.backends import unfused_torch
from vicinal.backends.slots import Slots
from vicinal.geometry.window import SHIFT, mode

VARIANTS = ("gemm", "naive", "torch")
TILES = {1: (1, 1, 64), 2: (1, 8, 8), 3: (4, 4, 4)}  # 64 tokens, as in the paper (section 3.1)


def choose(tensor: Tensor, variant: str | None) -> str:
    """The variant to run on `tensor`'s device and dtype: the one named, or the first that can.

    Raises:
        ValueError: the variant is unknown or cannot run here, with the reason.
    """
    if variant is None:
        if tensor.device.type != "cuda":
            return "torch"
        return next(v for v in VARIANTS if unsupported(v, tensor.dtype, tensor.device) is None)
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
    reason = unsupported(variant, tensor.dtype, tensor.device)
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


def pn(query: Tensor, key: Tensor, rpb: Tensor | None, slots: Slots, scale: float, fill: float, variant: str) -> Tensor:
    """Pointwise-neighborhood; see `unfused_torch.pn`."""
    if variant == "torch":
        return unfused_torch.pn(query, key, rpb, slots, scale, fill)
    q, k = _rows(query), _rows(key)
    shape = (*query.shape[:-1], slots.count)
    partial = variant == "gemm" and slots.has_absent_slots  # its tiles only touch slots that hold a key
    attn = query.new_full(shape, fill) if partial else query.new_empty(shape)
    if attn.numel() == 0:
        return attn
    a = _rows(attn)
    bias = q if rpb is None else rpb.contiguous()
    heads, group = query.shape[-2], query.shape[-2] // key.shape[-2]
    arguments = (q, k, bias, a, *_strides(q), *_strides(k), *_strides(a), heads, group, slots.tokens, query.shape[-1])
    constants = {**_constants(slots), "HAS_BIAS": rpb is not None}
    numbers = (scale, fill, *_geometry(slots))
    if variant == "naive":
        block_d = _block(query.shape[-1], 1)
        constants |= {"ACC": _accumulator(query), "BLOCK_D": block_d, "BLOCK_S": _block_s(block_d), "num_warps": 1}
        _naive().pn[(q.shape[0] * slots.tokens * heads,)](*arguments, *numbers, **constants)
    else:
        constants |= _gemm_constants(slots, query)
        constants["WHOLE_D"] = query.shape[-1] <= constants["BLOCK_D"]
        _gemm().pn[(_tiles(slots), q.shape[0] * heads)](*arguments, *numbers, **constants)
    return attn


def nn(attn: Tensor, value: Tensor, slots: Slots, scale: float, variant: str) -> Tensor:
    """Neighborhood-neighborhood; see `unfused_torch.nn`."""
    if variant == "torch":
        return unfused_torch.nn(attn, value, slots, scale)
    output = value.new_empty((*attn.shape[:-1], value.shape[-1]))
    group = attn.shape[-2] // value.shape[-2]
    return _weighted_sum("nn", attn, value, output, group, slots, scale, variant)


def inverse(attn: Tensor, query: Tensor, kv_heads: int, slots: Slots, scale: float, variant: str) -> Tensor:
    """Inverse-neighborhood; see `unfused_torch.inverse`."""
    if variant == "torch":
        return unfused_torch.inverse(attn, query, kv_heads, slots, scale)
    output = query.new_empty((*query.shape[:-2], kv_heads, query.shape[-1]))
    group = query.shape[-2] // kv_heads
    return _weighted_sum("inverse", attn, query, output, group, slots, scale, variant)


def bias_sum(grad: Tensor, slots: Slots, variant: str) -> Tensor:
    """The gradient of the relative positional bias; see `unfused_torch.bias_sum`."""
    if variant == "torch" or grad.dtype == torch.float64:  # rare: no float64 kernel
        return unfused_torch.bias_sum(grad, slots)
    from vicinal.kernels.triton.slots import bias_sum as kernel

    g = _rows(grad)
    heads, batch_tokens = grad.shape[-2], g.shape[0] * slots.tokens
    size, block_n, block_r = prod(slots.bias_shape), 32, 32
    programs = -(-size // block_r) * heads
    parts = max(1, min(-(-batch_tokens // (4 * block_n)), 2048 // programs))  # enough to fill a large GPU
    chunk = -(-batch_tokens // parts)
    partial = grad.new_empty((parts, heads, size), dtype=torch.float32)
    if partial.numel():
        kernel[(-(-size // block_r), heads, parts)](
            g, partial, *_strides(g), heads, slots.tokens, batch_tokens, chunk, size, *_geometry(slots),
            **_constants(slots), BLOCK_N=block_n, BLOCK_R=block_r, num_warps=4,
        )  # fmt: skip
    return partial.sum(0).to(grad.dtype).unflatten(1, slots.bias_shape)


def dense_qk(query: Tensor, keys: Tensor) -> Tensor:
    """Every query `[B, *X, H, D]` against every key `[B, M, Hkv, D]`: `[B, *X, H, M]`. Plain torch, differentiable."""
    grouped = query.flatten(1, -3).unflatten(2, (keys.shape[2], -1))
    scores = torch.einsum("bnhgd,bmhd->bnhgm", grouped, keys)
    return scores.reshape(*query.shape[:-1], keys.shape[1])


def dense_av(attn: Tensor, values: Tensor) -> Tensor:
    """Values `[B, M, Hkv, Dv]` weighted by `[B, *X, H, M]`: `[B, *X, H, Dv]`. Plain torch, differentiable."""
    grouped = attn.flatten(1, -3).unflatten(2, (values.shape[2], -1))
    output = torch.einsum("bnhgm,bmhd->bnhgd", grouped, values)
    return output.reshape(*attn.shape[:-1], values.shape[-1])


def _weighted_sum(
    name: str, attn: Tensor, x: Tensor, output: Tensor, group: int, slots: Slots, scale: float, variant: str
) -> Tensor:
    if output.numel() == 0:
        return output
    a, x, o = _rows(attn), _rows(x), _rows(output)
    heads, dim = output.shape[-2], output.shape[-1]
    arguments = (a, x, o, *_strides(a), *_strides(x), *_strides(o), heads, group, slots.tokens, dim)
    numbers = (scale, *_geometry(slots))
    constants = _constants(slots)
    if variant == "naive":
        block_d = _block(dim, 1)
        constants |= {"ACC": _accumulator(x), "BLOCK_D": block_d, "BLOCK_S": _block_s(block_d), "num_warps": 1}
        kernel = getattr(_naive(), name)
        kernel[(o.shape[0] * slots.tokens * heads,)](*arguments, *numbers, **constants)
    else:
        constants |= _gemm_constants(slots, x)
        kernel = getattr(_gemm(), name)
        kernel[(_tiles(slots), o.shape[0] * heads, -(-dim // constants["BLOCK_D"]))](*arguments, *numbers, **constants)
    return output


def _naive() -> Any:
    from vicinal.kernels.triton import naive

    return naive


def _gemm() -> Any:
    from vicinal.kernels.triton import gemm

    return gemm


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _rows(t: Tensor) -> Tensor:
    """`[B, N, heads, C]` with a contiguous last axis; a view where strides allow."""
    t = t.flatten(1, -3)
    return t if t.stride(-1) == 1 else t.contiguous()


def _strides(t: Tensor) -> tuple[int, ...]:
    return t.stride()[:3]


def _three(values: tuple[Any, ...], fill: Any) -> tuple[Any, ...]:
    return (fill,) * (3 - len(values)) + values


@lru_cache(maxsize=1024)
def _geometry(slots: Slots) -> tuple[int, ...]:
    """The kernels' integers: lengths, windows, strides, dilations, modes, three of each."""
    axes = slots.neighborhood.axes
    return (
        *_three(slots.lengths, 1),
        *_three(slots.window, 1),
        *_three(slots.neighborhood.stride, 1),
        *_three(slots.neighborhood.dilation, 1),
        *_three(tuple(mode(a) for a in axes), SHIFT),
    )


def _constants(slots: Slots) -> dict[str, Any]:
    return {
        "RANK": len(slots.lengths),
        "STRIDED": max(slots.neighborhood.stride) > 1,
        "MODED": slots.has_absent_slots,
        "DILATED": max(slots.neighborhood.dilation) > 1,
    }


def _gemm_constants(slots: Slots, x: Tensor) -> dict[str, Any]:
    """Tile, columns at a time, precision and warps: what fits 255 registers a thread without spills (sm_90)."""
    t0, t1, t2 = TILES[len(slots.lengths)]
    full = x.dtype == torch.float32
    block_d = min(_block(x.shape[-1], 16), 64 if full else 128)
    return {
        "T0": t0,
        "T1": t1,
        "T2": t2,
        "BLOCK_D": block_d,
        "PRECISION": "tf32" if full and torch.backends.cuda.matmul.allow_tf32 else "ieee",
        "num_warps": 8 if full or block_d > 64 else 4,
        "num_stages": 2,
    }


def _tiles(slots: Slots) -> int:
    """Tiles of all dilation groups, as `decode_tile` counts them: the longest group's for each."""
    tile = TILES[len(slots.lengths)][-len(slots.lengths) :]
    axes = zip(slots.lengths, slots.neighborhood.dilation, tile)
    return prod(ceil(ceil(length / d) / t) * d for length, d, t in axes)


def _block(dim: int, least: int) -> int:
    """Columns at a time: a power of two, at most 128."""
    return min(max(1 << (dim - 1).bit_length(), least), 128)


def _block_s(block_d: int) -> int:
    """Slots at a time, for one warp: 512 elements of a gathered block are 16 registers a thread."""
    return min(max(512 // block_d, 4), 64)


def _accumulator(tensor: Tensor) -> Any:
    import triton.language as tl

    return tl.float64 if tensor.dtype == torch.float64 else tl.float32
