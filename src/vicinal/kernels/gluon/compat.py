"""The Gluon names that the Hopper kernels use, the same for every supported Triton (3.6 to 3.9).

Gluon is experimental in Triton: names move between releases. Kernels import it from here only. Importing this module
fails with ImportError where Triton has no Gluon for Hopper; the backend turns that into a reason.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

if hasattr(tma, "async_load"):  # Triton >= 3.8 renamed the copies, and kept stubs that raise under the old names
    tma_load = tma.async_load
    tma_store = tma.async_store
else:
    tma_load = tma.async_copy_global_to_shared
    tma_store = tma.async_copy_shared_to_global
tma_store_wait = tma.store_wait


@builtin
def reinterpret(memory, shape, layout, _semantic=None):
    """Shared `memory` as `shape` in `layout`; the caller knows that both name the same bytes."""
    method = getattr(memory, "_reinterpret", None) or memory.reinterpret  # its name lost the underscore
    return method(memory.dtype, shape, layout, _semantic=_semantic)


def tensor_descriptor(tensor, shape, strides, block):
    """Triton's host-side descriptor, to pass to a kernel: blocks of `block` elements, swizzled for wgmma."""
    dtype = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float32: gl.float32}[tensor.dtype]
    layout = gl.NVMMASharedLayout.get_default_for(list(block), dtype)
    return TensorDescriptor(tensor, list(shape), list(strides), list(block), layout)


def import_triton(function):
    """A `@triton.jit` function of scalars and elementwise operations, as one that Gluon kernels can call."""
    return gluon.jit(getattr(function, "fn", function))


__all__ = [
    "fence_async_shared",
    "gl",
    "gluon",
    "import_triton",
    "mbarrier",
    "reinterpret",
    "tensor_descriptor",
    "tma_load",
    "tma_store",
    "tma_store_wait",
    "warpgroup_mma",
    "warpgroup_mma_wait",
]
