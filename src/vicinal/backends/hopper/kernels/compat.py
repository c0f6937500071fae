"""The Gluon names that the Hopper kernels use, the same for every supported Triton (3.6 to 3.9).

Gluon is experimental in Triton: names move between releases. Kernels import it from here only. Importing this module
fails with ImportError where Triton has no Gluon for Hopper; the backend turns that into a reason.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from triton._C.libtriton import ir
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
thread_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # Triton >= 3.7 renamed it


@builtin
def tma_add(tensor_desc, coord, src, _semantic=None):
    """Add a tile in shared memory to global memory, element by element; `tma_store_wait` waits for it too."""
    coord = _semantic._convert_to_ir_values(coord, require_i64=False)
    _semantic.builder.create_async_tma_reduce(ir.DESCRIPTOR_REDUCE_KIND.ADD, tensor_desc.handle, coord, src.handle)


@builtin
def reinterpret(memory, shape, layout, dtype=None, _semantic=None):
    """Shared `memory` as `shape` in `layout`; the caller knows that both name the same bytes."""
    method = getattr(memory, "_reinterpret", None) or memory.reinterpret  # its name lost the underscore
    return method(memory.dtype if dtype is None else dtype, shape, layout, _semantic=_semantic)


def tensor_descriptor(tensor, shape, strides, block):
    """Triton's host-side descriptor, to pass to a kernel: blocks of `block` elements, swizzled for wgmma."""
    return TensorDescriptor(tensor, list(shape), list(strides), list(block), _layout(tuple(block), tensor.dtype))


@lru_cache(maxsize=256)
def _layout(block, dtype):
    """How a block lies in shared memory."""
    names = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float32: gl.float32}
    return gl.NVMMASharedLayout.get_default_for(list(block), names[dtype])


def import_triton(function):
    """A `@triton.jit` function of scalars and elementwise operations, as one that Gluon kernels can call."""
    return gluon.jit(getattr(function, "fn", function))


def launch_function(compiled, grid, device):
    """How to launch a compiled kernel over `grid` on the current stream of `device`: `(encode, launch)`.

    `encode(i, descriptor)` is what `launch` takes for tensor argument `i`; it may be kept while the memory stays where
    it is. `launch(arguments)` takes all arguments in order, with pointers as integers.

    Triton encodes every descriptor of every call as a tensor map, in a wrapper around its launcher. Where the wrapper
    looks as it does in 3.6 and 3.9, the launcher inside is called with tensor maps that were encoded before, and
    without the bookkeeping for hooks where none is installed; anywhere else the ordinary way is taken.
    """
    from triton import knobs
    from triton.runtime import driver

    ordinary = compiled[grid]
    stream_of = driver.active.get_current_stream
    bare, encode = _bare_launcher(compiled)
    if bare is None:
        return (lambda i, descriptor: (descriptor,)), lambda arguments: ordinary(*arguments, stream=stream_of(device))
    function, metadata = compiled.function, compiled.packed_metadata

    def launch(arguments):
        stream = stream_of(device)
        hooks = (None, None, None)
        enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
            hooks = (compiled.launch_metadata(grid, stream), enter, leave)
        bare(*grid, stream, function, metadata, *hooks, *arguments)

    return encode, launch


@lru_cache(maxsize=1024)
def _bare_launcher(compiled) -> tuple[Any, Any]:
    """The kernel's launcher without the wrapper that encodes descriptors, and what encodes one; None where unknown."""
    try:
        from triton.backends.nvidia.driver import make_tensordesc_arg

        described = list(compiled.metadata.tensordesc_meta)
        launcher = copy.copy(compiled.run)
        signature = [str(kind) for kind in compiled.src.signature.values()]
        wrapper = launcher.launch
        if described:
            inside = dict(zip(wrapper.__code__.co_freevars, (cell.cell_contents for cell in wrapper.__closure__)))
            launcher.launch = inside["launcher"]
    except (ImportError, AttributeError, KeyError, TypeError):
        return None, None
    at = [i for i, kind in enumerate(signature) if kind.startswith("tensordesc")]
    if len(at) != len(described) or None in described:
        return None, None
    meta = dict(zip(at, described))
    unused = (None,) * (make_tensordesc_arg.__code__.co_argcount - 2)

    def encode(i, descriptor):
        return tuple(make_tensordesc_arg(descriptor, meta[i], *unused))

    return launcher, encode


__all__ = [
    "fence_async_shared",
    "gl",
    "gluon",
    "import_triton",
    "launch_function",
    "mbarrier",
    "reinterpret",
    "tensor_descriptor",
    "thread_barrier",
    "tma_add",
    "tma_load",
    "tma_store",
    "tma_store_wait",
    "warpgroup_mma",
    "warpgroup_mma_wait",
]
