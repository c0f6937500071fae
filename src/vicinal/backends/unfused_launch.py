"""Launching the unfused operators: one function per operator, the variant chosen by name.

Variants: "torch" (plain torch, any device), "naive" and "gemm" (the Triton kernels; under Triton's interpreter also
for CPU tensors). Tensors are heads-last; see `vicinal.backends.unfused_torch` for shapes.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, NamedTuple

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
    shape = (*query.shape[:-1], slots.count)
    partial = variant == "gemm" and slots.has_absent_slots  # its tiles only touch slots that hold a key
    attn = query.new_full(shape, fill) if partial else query.new_empty(shape)
    _run(Call("pn", variant, slots, (scale, fill)), query, key, attn, rpb)
    return attn


def nn(attn: Tensor, value: Tensor, slots: Slots, scale: float, variant: str) -> Tensor:
    """Neighborhood-neighborhood; see `unfused_torch.nn`."""
    if variant == "torch":
        return unfused_torch.nn(attn, value, slots, scale)
    output = value.new_empty((*attn.shape[:-1], value.shape[-1]))
    _run(Call("nn", variant, slots, (scale,)), attn, value, output)
    return output


def inverse(attn: Tensor, query: Tensor, kv_heads: int, slots: Slots, scale: float, variant: str) -> Tensor:
    """Inverse-neighborhood; see `unfused_torch.inverse`."""
    if variant == "torch":
        return unfused_torch.inverse(attn, query, kv_heads, slots, scale)
    output = query.new_empty((*query.shape[:-2], kv_heads, query.shape[-1]))
    _run(Call("inverse", variant, slots, (scale,)), attn, query, output)
    return output


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


# Launching: eager calls on small problems are bound by the host, so a launch is prepared once per signature ----------


class Call(NamedTuple):
    """An operator without its tensors: kernel, variant, slots, and its numbers (scale; for "pn" also fill)."""

    kernel: str
    variant: str
    slots: Slots
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Settings:
    """How a kernel is launched: warps and pipeline stages; naive kernels also take `slots` slots at a time."""

    warps: int
    stages: int
    slots: int = 0


def settings(variant: str, kernel: str, rank: int, dim: int, dtype: torch.dtype) -> Settings:
    """The best of benchmarks/unfused_tilings.py, among those that fit 255 registers without spills (sm_90)."""
    if variant == "naive":
        return Settings(warps=1, stages=3, slots=min(max(512 // _block(dim, 1), 4), 64))
    return Settings(warps=8 if dtype == torch.float32 or dim > 64 else 4, stages=2)


@dataclass
class _Prepared:
    """A launch, and which of the two inputs must be copied first because their tokens are not evenly spaced."""

    launch: Any
    copied: tuple[bool, bool]


_prepared: dict[Any, _Prepared] = {}
MAX_PREPARED = 4096  # all are dropped when there are more


def _run(call: Call, first: Tensor, second: Tensor, output: Tensor, bias: Tensor | None = None) -> None:
    """Launch the kernel of `call` on heads-last tensors; `output` is contiguous."""
    if output.numel() == 0:
        return
    signature = (call, first.shape, first.stride(), second.shape, second.stride(), first.dtype, bias is None)
    key = (signature, first.device, torch.backends.cuda.matmul.allow_tf32)
    found = _prepared.get(key)
    if found is None:
        if len(_prepared) >= MAX_PREPARED:
            _prepared.clear()
        found = _prepared[key] = _prepare(call, first, second, output, bias is not None)
    if found.copied[0]:
        first = _rows(first)
    if found.copied[1]:
        second = _rows(second)
    addresses = first.data_ptr() | second.data_ptr() | output.data_ptr()
    tensors: tuple[Tensor, ...] = (first, second, output)
    if call.kernel == "pn":
        bias = first if bias is None else bias.contiguous()  # not read where there is none
        addresses |= bias.data_ptr()
        tensors = (first, second, bias, output)
    device = first.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            found.launch(tensors, addresses & 15 == 0)
    else:
        found.launch(tensors, addresses & 15 == 0)


def _prepare(call: Call, first: Tensor, second: Tensor, output: Tensor, has_bias: bool) -> _Prepared:
    from vicinal.backends.triton_launch import Launch

    a, x, o = _rows(first), _rows(second), _rows(output)
    slots, is_pn = call.slots, call.kernel == "pn"
    kernel = getattr(_kernels(call.variant), call.kernel)
    heads, dim = output.shape[-2], (first if is_pn else output).shape[-1]
    group = first.shape[-2] // (heads if call.kernel == "inverse" else second.shape[-2])
    chosen = settings(call.variant, call.kernel, len(slots.lengths), dim, second.dtype)
    constants = {**_constants(slots), "HAS_BIAS": has_bias}
    if call.variant == "naive":
        constants |= {"ACC": _accumulator(second), "BLOCK_D": _block(dim, 1), "BLOCK_S": chosen.slots}
        grid: tuple[int, ...] = (o.shape[0] * slots.tokens * heads, 1, 1)
    else:
        full = second.dtype == torch.float32
        block_d = min(_block(dim, 16), 64 if full else 128)
        constants |= dict(zip(("T0", "T1", "T2"), TILES[len(slots.lengths)]))
        constants |= {
            "BLOCK_D": block_d,
            "WHOLE_D": dim <= block_d,
            "PRECISION": "tf32" if full and torch.backends.cuda.matmul.allow_tf32 else "ieee",
        }
        grid = (_tiles(slots), o.shape[0] * heads, 1 if is_pn else -(-dim // block_d))
    arguments = (
        *_strides(a),
        *_strides(x),
        *_strides(o),
        *(heads, group, slots.tokens, dim),
        *call.numbers,
        *_geometry(slots),
        *(constants[name] for name in kernel.arg_names if name in constants),
    )
    options = {"num_warps": chosen.warps, "num_stages": chosen.stages}
    copied = (a.data_ptr() != first.data_ptr(), x.data_ptr() != second.data_ptr())
    return _Prepared(Launch(kernel, grid, arguments, options), copied)


def _kernels(variant: str) -> Any:
    if variant == "naive":
        from vicinal.kernels.triton import naive

        return naive
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


def _tiles(slots: Slots) -> int:
    """Tiles of all dilation groups, as `decode_tile` counts them: the longest group's for each."""
    tile = TILES[len(slots.lengths)][-len(slots.lengths) :]
    axes = zip(slots.lengths, slots.neighborhood.dilation, tile)
    return prod(ceil(ceil(length / d) / t) * d for length, d, t in axes)


def _block(dim: int, least: int) -> int:
    """Columns at a time: a power of two, at most 128."""
    return min(max(1 << (dim - 1).bit_length(), least), 128)


def _accumulator(tensor: Tensor) -> Any:
    import triton.language as tl

    return tl.float64 if tensor.dtype == torch.float64 else tl.float32
