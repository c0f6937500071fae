"""Launching the Triton kernels of the unfused operators.

Eager calls on small problems are bound by the host, so a launch is prepared once per signature, and kept.
"""

from __future__ import annotations

from math import ceil, prod
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from vicinal.backends.gpu.arguments import axes_of, in_vectors, kernel_axis, precision_of
from vicinal.backends.gpu.devices import current
from vicinal.backends.gpu.kernels.window import Flags
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.strides import aligned, contiguous_strides, dense, has_rows, rows_last, strides_of, vector_of
from vicinal.backends.unfused.kernels import gemm, naive
from vicinal.backends.unfused.kernels import slots as shared
from vicinal.backends.unfused.tilings import block_of, gemm_tile, schedule, too_large
from vicinal.caching import Cache
from vicinal.geometry.slots import Slots
from vicinal.geometry.unfold import tile_count

MAX_PREPARED = 4096  # some kilobytes of host memory each
BLOCK_N, BLOCK_R = 32, 32  # tokens and relative positions that a program of `bias_sum` takes at a time


def pn(query: Tensor, key: Tensor, rpb: Tensor | None, slots: Slots, scale: float, fill: float, variant: str) -> Tensor:
    """See `plain.pn`; `variant` "naive" or "gemm"."""
    shape = (*query.shape[:-1], slots.count)
    numbers: tuple[float, ...]
    if variant == "naive":
        numbers, attn = (scale, fill), query.new_empty(shape)
    else:  # tiles only touch slots that hold a key
        numbers = (scale,)
        attn = query.new_full(shape, fill) if slots.has_absent_slots else query.new_empty(shape)
    _run(_Call("pn", variant, slots, numbers), (query, key), attn, rpb)
    return attn


def nn(attn: Tensor, value: Tensor, slots: Slots, scale: float, variant: str) -> Tensor:
    """See `plain.nn`; `variant` "naive" or "gemm"."""
    output = value.new_empty((*attn.shape[:-1], value.shape[-1]))
    _run(_Call("nn", variant, slots, (scale,)), (attn, value), output)
    return output


def inverse(attn: Tensor, query: Tensor, kv_heads: int, slots: Slots, scale: float, variant: str) -> Tensor:
    """See `plain.inverse`; `variant` "naive" or "gemm"."""
    output = query.new_empty((*query.shape[:-2], kv_heads, query.shape[-1]))
    _run(_Call("inverse", variant, slots, (scale,)), (attn, query), output)
    return output


def bias_sum(grad: Tensor, slots: Slots) -> Tensor:
    """See `plain.bias_sum`; summed in parts, enough to fill a large GPU."""
    heads, size, tokens = grad.shape[-2], prod(slots.bias_shape), grad.shape[0] * slots.tokens
    parts = max(1, min(ceil(tokens / (4 * BLOCK_N)), 2048 // (ceil(size / BLOCK_R) * heads)))
    partial = grad.new_empty((parts, heads, *slots.bias_shape), dtype=torch.float32)
    _run(_Call("bias_sum", "", slots, ()), (grad,), partial)
    return partial.sum(0).to(grad.dtype)


class _Call(NamedTuple):
    """An operator without its tensors: kernel, variant, slots, and its numbers, as the kernel takes them."""

    kernel: str
    variant: str
    slots: Slots
    numbers: tuple[float, ...]


_prepared: Cache[Launch] = Cache(entries=MAX_PREPARED)


def _run(call: _Call, inputs: tuple[Tensor, ...], output: Tensor, bias: Tensor | None = None) -> None:
    """Write `output`, contiguous, from heads-last inputs; "pn" alone may have a bias."""
    if output.numel() == 0:
        return
    inputs = tuple(rows_last(t) for t in inputs)
    bias = None if bias is None else dense(bias)
    signature = tuple((t.shape, t.stride(), t.dtype) for t in inputs)
    key = (call, signature, bias is None, output.shape, output.device, precision_of(inputs[0].dtype))
    prepare = _prepare_bias_sum if call.kernel == "bias_sum" else _prepare
    launch = _prepared.get(key, lambda: prepare(call, inputs, output))
    tensors = (*inputs, bias, output) if call.kernel == "pn" else (*inputs, output)
    with current(output.device):
        launch(tensors, aligned(tensors))


def _prepare(call: _Call, inputs: tuple[Tensor, ...], output: Tensor) -> Launch:
    first, second = inputs
    reason = too_large(call.variant, call.slots, output.shape[0] * first.shape[-2])
    if reason is not None:
        raise ValueError(reason)
    assert all(has_rows(t) for t in inputs)
    slots, is_pn, dtype = call.slots, call.kernel == "pn", second.dtype
    batch, heads, dim = output.shape[0], output.shape[-2], (first if is_pn else output).shape[-1]
    group_size = first.shape[-2] // (heads if call.kernel == "inverse" else second.shape[-2])
    strides = strides_of(first), strides_of(second)
    vector = vector_of(strides if is_pn else strides[1:], dtype.itemsize)
    chosen = schedule(call.variant, call.kernel, dim, dtype)
    tile, unfolded = gemm_tile(slots.neighborhood, slots.lengths) if call.variant == "gemm" else ((), None)
    common = (vector, _flags(slots, inputs, unfolded))
    constants: tuple[Any, ...]
    if call.variant == "naive":
        programs, blocks = slots.tokens, 1
        constants = (block_of(dim, 1), chosen.slots, *common, tl.float64 if dtype == torch.float64 else tl.float32)
    else:
        full = dtype == torch.float32
        block = min(block_of(dim, 16), 64 if full else 128)
        programs = tile_count(slots.neighborhood, slots.lengths, tile, unfolded)
        blocks = 1 if is_pn else ceil(dim / block)
        constants = (block, tile, *common, precision_of(dtype))
    arguments = (
        *call.numbers,
        *(heads, group_size, programs),
        axes_of(slots.neighborhood, slots.lengths, unfolded),
        in_vectors(strides[0], vector if is_pn else 1, unfolded),
        in_vectors(strides[1], vector, unfolded),
        dim,
        *constants,
    )
    kernel = getattr(naive if call.variant == "naive" else gemm, call.kernel)
    options = options_of(chosen.warps, chosen.stages)
    return Launch(kernel, (batch * programs * heads, blocks, 1), arguments, options)


def _prepare_bias_sum(call: _Call, inputs: tuple[Tensor, ...], partial: Tensor) -> Launch:
    slots, (grad,), parts = call.slots, inputs, partial.shape[0]
    heads, tokens = grad.shape[-2], grad.shape[0] * slots.tokens
    arguments = (
        *(heads, slots.tokens, tokens, ceil(tokens / parts)),
        axes_of(slots.neighborhood, slots.lengths),
        in_vectors(strides_of(grad), 1),
        *(_flags(slots, inputs), BLOCK_N, BLOCK_R),
    )
    grid = (ceil(prod(slots.bias_shape) / BLOCK_R), heads, parts)
    return Launch(shared.bias_sum, grid, arguments, options_of(warps=4))


def _flags(slots: Slots, inputs: tuple[Tensor, ...], unfolded: int | None = None) -> Flags:
    reach = [sum((n - 1) * s for n, s in zip(t.shape[1:-2], t.stride()[1:-2])) for t in inputs]
    reach.append(sum(n * s for n, s in zip(slots.lengths, contiguous_strides(slots.window))))  # in numbers of slots
    return Flags(
        strided=max(slots.neighborhood.stride) > 1,
        dilated=max(slots.neighborhood.dilation) > 1,
        moded=slots.has_absent_slots,
        wide=max(reach) + slots.count >= 2**31,
        checked=True,
        unfolded=kernel_axis(unfolded),
    )
