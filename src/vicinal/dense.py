"""Attention without neighborhoods, from torch's operations: differentiable, on every device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vicinal.autocast import without_autocast
from vicinal.problem import lse_dtype


def attend(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Every query attends to every key; with `is_causal` to those up to its own place, both counted from the start.

    Args:
        query: `[B, N, H, D]`.
        key, value: `[B, M, Hkv, D]` and `[B, M, Hkv, Dv]`, `H` a multiple of `Hkv`; `M` may be 0.
        is_causal, scale: which scores there are, and their factor.
        with_lse: also return the log-sum-exp, for which torch's own attention does not do: O(N * M) memory.

    Returns:
        output `[B, N, H, Dv]` in query's dtype, and log-sum-exp `[B, N, H]` in its `lse_dtype` or None.
    """
    if with_lse or key.shape[1] == 0:
        return _by_formula(query, key, value, is_causal, scale)
    q, k, v = (_readable(t).transpose(1, 2) for t in (query, key, value))
    grouped: Any = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}  # traced, no comparison is a bool by itself
    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale, **grouped)
    if output.requires_grad and not torch.compiler.is_compiling():
        output.register_hook(partial(_laid_out, strides=output.stride()))
    return output.transpose(1, 2), None


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Sequence[tuple[slice, slice]],
    is_causal: bool,
    scale: float,
    with_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """`attend` within each of several sequences, given by the places of their queries and keys.

    A query of a sequence that has no keys gets an output of 0 and a log-sum-exp of minus infinity.
    """
    parts = [attend(query[:, q], key[:, k], value[:, k], is_causal, scale, with_lse) for q, k in spans]
    output = torch.cat([output for output, _ in parts], 1)
    return output, torch.cat([lse for _, lse in parts if lse is not None], 1) if with_lse else None


def merge(outputs: Sequence[Tensor], lse_tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attentions of the same queries over different keys, merged: outputs weighted by `exp(lse - merged lse)`."""
    weights, merged_lse = softmax(torch.stack(list(lse_tensors)), 0)
    merged = torch.zeros_like(outputs[0], dtype=torch.promote_types(outputs[0].dtype, weights.dtype))
    for weight, output in zip(weights.unsqueeze(-1), outputs):
        # By selection: a part without weight counts for nothing, even where it holds no numbers.
        merged = merged + weight * output.masked_fill(weight == 0, 0.0)
    return merged.to(outputs[0].dtype), merged_lse


def softmax(scores: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Softmax and log-sum-exp; where all scores are minus infinity 0, minus infinity, and gradients of 0 for NaN."""
    top = scores.detach().amax(dim, keepdim=True)
    top = top.masked_fill(top == float("-inf"), 0.0)
    weights = (scores - top).exp()
    total = weights.sum(dim, keepdim=True)
    none = total == 0
    total = torch.where(none, 1.0, total)
    lse = torch.where(none, float("-inf"), top + total.log())
    return weights / total, lse.squeeze(dim)


def _readable(tensor: Tensor) -> Tensor:
    """What torch's attention reads rightly; on GPUs its kernels take other memory for aligned and dense.

    They fault where a tensor starts at no multiple of 16 bytes (pytorch issue 183484, torch 2.11), as a slice may, and
    are wrong on some expanded ones (191937). Compiled code aligns its own inputs.
    """
    return _aligned(tensor) if _is_read_on_gpu(tensor) else tensor


def _laid_out(grad: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The gradient from above, readable and in the output's own strides: cuDNN's backward takes it to have them."""
    if not _is_read_on_gpu(grad) or (grad.stride() == strides and _aligned(grad) is grad):
        return grad
    try:
        return grad.new_empty_strided(grad.shape, strides).copy_(grad)
    except RuntimeError:  # mapped by a transform
        return _aligned(grad)


def _is_read_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda and not torch.compiler.is_compiling()


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor; a copy in order where it starts at no multiple of 16 bytes, is expanded, or hides where it lies."""
    try:
        suits = tensor.data_ptr() % 16 == 0 and all(s != 0 or n == 1 for s, n in zip(tensor.stride(), tensor.shape))
    except RuntimeError:  # mapped by a transform, or without memory of its own
        suits = False
    return tensor if suits else tensor.clone(memory_format=torch.contiguous_format)


def _by_formula(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    dtype = lse_dtype(query.dtype)
    with without_autocast(query.device):
        q, k, v = (t.to(dtype) for t in (query, key, value))
        k, v = (t.repeat_interleave(query.shape[2] // key.shape[2], 2) for t in (k, v))
        scores = scale * torch.einsum("bnhd,bmhd->bhnm", q, k)
        if is_causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        if key.shape[1] > 0:
            weights, lse = softmax(scores, -1)
        else:
            weights, lse = scores, scores.new_full(scores.shape[:-1], float("-inf"))
        return torch.einsum("bhnm,bmhd->bnhd", weights, v).to(query.dtype), lse.transpose(1, 2)
