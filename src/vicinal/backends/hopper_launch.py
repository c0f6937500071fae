"""Launching compiled Gluon kernels with little host time: arguments are made once, a call fills in addresses.

`Triton`'s own call path binds, specialises and hashes every argument of every call. A `Launcher` does that once, by
`warmup`, and afterwards hands the compiled kernel its arguments. Nothing is allocated on the device and nothing
synchronises, so a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vicinal.backends.hopper_layout import Descriptor

KNOWN_ADDRESSES = 64  # descriptors kept per argument: the caching allocator hands out the same addresses again


@dataclass(frozen=True)
class Tile:
    """The block that a descriptor moves; `None` for an argument that is a plain pointer."""

    description: Descriptor
    block: tuple[int, ...]


class Launcher:
    """One kernel, compiled, with all its arguments but the tensors.

    Args:
        kernel: the `@gluon.jit` function; its first parameters are the tensors.
        tensors: per tensor its `Tile`, or None for a plain pointer.
        offsets: per tensor, the first element of a plain pointer's (a descriptor has its own).
        scalars, constants: the other run-time arguments, and the constexprs, in order.
        grid: programs along one, two or three dimensions.
        options: compile options (`num_warps`, `maxnreg`).
    """

    def __init__(
        self,
        kernel: Any,
        tensors: Sequence[Tile | None],
        offsets: Sequence[int],
        scalars: Sequence[Any],
        constants: Sequence[Any],
        grid: tuple[int, ...],
        options: dict[str, int],
    ) -> None:
        self.kernel = kernel
        self.tensors = tensors
        self.offsets = [o if t is None else t.description.offset for t, o in zip(tensors, offsets)]
        self.rest = (*scalars, *constants)
        self.grid = (*grid, 1, 1)[:3]
        self.options = options
        self.run: Any = None
        self.templates: list[tuple[dict[int, Any], type, dict[str, Any]] | None] = []

    def __call__(self, *tensors: Tensor) -> None:
        if self.run is None:
            self.run = self.compile(*tensors)[self.grid]
        arguments: list[Any] = []
        for tensor, offset, template in zip(tensors, self.offsets, self.templates):
            if template is None:
                arguments.append(tensor if offset == 0 else _from(tensor, offset))
                continue
            address = tensor.data_ptr() + tensor.element_size() * offset if offset else tensor.data_ptr()
            known, kind, fields = template
            descriptor = known.get(address)
            if descriptor is None:
                if len(known) == KNOWN_ADDRESSES:
                    known.clear()
                descriptor = known[address] = object.__new__(kind)  # checked when the template was made
                descriptor.__dict__.update(fields, base=_Address(address))
            arguments.append(descriptor)
        self.run(*arguments, *self.rest)

    def compile(self, *tensors: Tensor) -> Any:
        """The compiled kernel (Triton's `CompiledKernel`); needs no GPU."""
        arguments = []
        self.templates = []
        for tensor, tile, offset in zip(tensors, self.tensors, self.offsets):
            if tile is None:
                self.templates.append(None)
                arguments.append(_from(tensor, offset) if offset else tensor)
            else:
                descriptor = tensor_descriptor(tensor, tile)
                fields = {name: value for name, value in descriptor.__dict__.items() if name != "base"}
                self.templates.append(({}, type(descriptor), fields))
                arguments.append(descriptor)
        return self.kernel.warmup(*arguments, *self.rest, grid=self.grid, **self.options)


class _Address:
    """What a descriptor needs of a tensor: without holding its memory."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        return self.address


def _from(tensor: Tensor, offset: int) -> Tensor:
    return torch.as_strided(tensor, (1,), (1,), tensor.storage_offset() + offset)


def tensor_descriptor(tensor: Tensor, tile: Tile) -> Any:
    """Triton's host-side descriptor of `tensor` as `tile` says."""
    from vicinal.kernels.gluon import compat

    return compat.tensor_descriptor(tensor, tile.description.shape, tile.description.strides, tile.block)
