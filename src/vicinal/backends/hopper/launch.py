"""Launching compiled Gluon kernels with little host time: what repeats is kept, a call looks its addresses up.

Triton's own call path binds, specialises and hashes every argument of every call, and encodes a tensor map for every
descriptor. A `Launcher` compiles once, by `warmup`, keeps the encoded arguments of the addresses that it has seen
(the caching allocator hands out the same ones again), and hands them to Triton's launcher. Nothing is allocated on the
device and nothing synchronises, so a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vicinal.backends.gpu.kernel_cache import settle_keys
from vicinal.backends.hopper.layout import Descriptor

KNOWN_ADDRESSES = 256  # encoded arguments kept per launcher, and descriptors per argument


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
        arguments: the others, in the kernel's order, constexprs included. Integers in tuples are specialised on as the
            kernel's decorator says of their parameter.
        grid: programs along one, two or three dimensions.
        options: compile options (`num_warps`, `maxnreg`).
    """

    def __init__(
        self,
        kernel: Any,
        tensors: Sequence[Tile | None],
        offsets: Sequence[int],
        arguments: Sequence[Any],
        grid: tuple[int, ...],
        options: dict[str, int],
    ) -> None:
        self.kernel = kernel
        self.tensors = tensors
        self.offsets = [o if t is None else t.description.offset for t, o in zip(tensors, offsets)]
        self.arguments = arguments
        self._plain = tuple(_plain(a) for a in arguments)  # reading a named tuple takes a launch 5 times as long
        self.grid = (*grid, 1, 1)[:3]
        self.options = options
        self._launch: Any = None
        self._templates: list[Any] = []
        self._known: dict[tuple[int, ...], tuple[Any, ...]] = {}

    def __call__(self, *tensors: Tensor) -> None:
        """Launch on the current stream of the tensors' device, which must be the current one."""
        if self._launch is None:
            self._prepare(tensors)
        addresses = tuple([tensor.data_ptr() for tensor in tensors])
        arguments = self._known.get(addresses)
        if arguments is None:
            arguments = self._encode(addresses)
        self._launch(arguments)

    def compile(self, *tensors: Tensor) -> Any:
        """The compiled kernel (Triton's `CompiledKernel`); needs no GPU."""
        arguments = [
            (_from(tensor, offset) if offset else tensor) if tile is None else tensor_descriptor(tensor, tile)
            for tensor, tile, offset in zip(tensors, self.tensors, self.offsets)
        ]
        others = zip(self.kernel.params[len(tensors) :], self.arguments)
        settle_keys()
        return self.kernel.warmup(*arguments, *(_specialised(p, a) for p, a in others), grid=self.grid, **self.options)

    def _prepare(self, tensors: Sequence[Tensor]) -> None:
        from vicinal.backends.hopper.kernels import compat

        self._templates = []
        for tensor, tile, offset in zip(tensors, self.tensors, self.offsets):
            descriptor = None if tile is None else _at(tensor_descriptor(tensor, tile), 0)  # Triton's checks, once
            self._templates.append((offset * tensor.element_size(), descriptor, {}))
        compiled = self.compile(*tensors)
        self._encoded, self._launch = compat.launch_function(compiled, self.grid, tensors[0].device.index)

    def _encode(self, addresses: tuple[int, ...]) -> tuple[Any, ...]:
        arguments: list[Any] = []
        for i, (address, (offset, descriptor, known)) in enumerate(zip(addresses, self._templates)):
            address += offset
            if descriptor is None:
                arguments.append(address)
                continue
            if address not in known:
                if len(known) >= KNOWN_ADDRESSES:
                    known.clear()
                known[address] = self._encoded(i, _at(descriptor, address))
            arguments.extend(known[address])
        if len(self._known) >= KNOWN_ADDRESSES:
            self._known.clear()
        self._known[addresses] = found = (*arguments, *self._plain)
        return found


def _specialised(parameter: Any, argument: Any) -> Any:
    """An argument as Triton gets to see it when it compiles.

    It specialises on integers in tuples (on being 1, and on being a multiple of 16), whatever the kernel's decorator
    says of the parameter. So those on which it should not are replaced by others of the same width.
    """
    if parameter.is_constexpr or not isinstance(argument, tuple):
        return argument
    if parameter.do_not_specialize:
        return _with_integers(argument, lambda n: n | 3)
    if parameter.do_not_specialize_on_alignment:
        return _with_integers(argument, lambda n: n if n == 1 else n | 3)
    return argument


def _with_integers(argument: Any, change: Callable[[int], int]) -> Any:
    if isinstance(argument, int):
        return change(argument)
    if not isinstance(argument, tuple):
        return argument
    values = [_with_integers(a, change) for a in argument]
    return argument._make(values) if hasattr(argument, "_make") else tuple(values)


def _plain(argument: Any) -> Any:
    """The same argument with plain tuples for named ones."""
    return tuple(_plain(a) for a in argument) if isinstance(argument, tuple) else argument


class _Address:
    """What a descriptor needs of a tensor: without holding its memory."""

    __slots__ = ("address", "dtype")

    def __init__(self, address: int, dtype: torch.dtype) -> None:
        self.address = address
        self.dtype = dtype

    def data_ptr(self) -> int:
        return self.address


def _at(descriptor: Any, address: int) -> Any:
    """The same descriptor of other memory."""
    moved = object.__new__(type(descriptor))  # checked when the first one was made
    moved.__dict__.update(descriptor.__dict__, base=_Address(address, descriptor.base.dtype))
    return moved


def _from(tensor: Tensor, offset: int) -> Tensor:
    return torch.as_strided(tensor, (1,), (1,), tensor.storage_offset() + offset)


def tensor_descriptor(tensor: Tensor, tile: Tile) -> Any:
    """Triton's host-side descriptor of `tensor` as `tile` says."""
    from vicinal.backends.hopper.kernels import compat

    return compat.tensor_descriptor(tensor, tile.description.shape, tile.description.strides, tile.block)
