"""Strides of tensors `[B, *X, H, D]` as launches need them, in elements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import gcd

import torch
from torch import Tensor


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """Strides of all dimensions but the last; 0 where the size is 1, since any stride means the same there."""
    return tuple([s if n > 1 else 0 for s, n in zip(tensor.stride()[:-1], tensor.shape[:-1])])


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    strides, stride = [], 1
    for n in reversed(shape):
        strides.append(stride)
        stride *= n
    return tuple(strides[::-1])


def vector_of(strides: Iterable[tuple[int, ...]], itemsize: int) -> int:
    """The power of two, at most 16 bytes of elements, that divides every stride."""
    return gcd(16 // itemsize, *(s for each in strides for s in each))


def has_rows(tensor: Tensor) -> bool:
    """Whether the last dimension is contiguous: what every kernel that reads in place assumes."""
    return tensor.stride(-1) == 1 or tensor.shape[-1] == 1


def rows_last(tensor: Tensor) -> Tensor:
    """The tensor with a last dimension that is contiguous, and no pending negation: itself, unless it is not."""
    if tensor.is_neg():
        return tensor.resolve_neg().contiguous()
    return tensor if has_rows(tensor) else tensor.contiguous()


def dense(tensor: Tensor) -> Tensor:
    """The tensor contiguous, without pending negation: itself, unless it is not."""
    return tensor.resolve_neg().contiguous()


def aligned(tensors: Iterable[Tensor | None]) -> bool:
    """Whether every tensor starts at a multiple of 16 bytes, as all that torch allocates does."""
    addresses = 0
    for tensor in tensors:
        if tensor is not None:
            addresses |= tensor.data_ptr()
    return addresses & 15 == 0


def empty(beside: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous tensor, not yet written, on the device of another, of its dtype if none is given.

    What `Tensor.new_empty` makes: that takes four times as long on the meta device, where passes are compiled ahead.
    """
    return torch.empty(shape, dtype=beside.dtype if dtype is None else dtype, device=beside.device)


def contiguous_like(tensor: Tensor) -> Tensor:
    """A contiguous tensor of its shape and dtype, not yet written: for its gradient."""
    if tensor.is_meta:  # nothing will be written
        return tensor if tensor.is_contiguous() else empty(tensor, tensor.shape)
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
