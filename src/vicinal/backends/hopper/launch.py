"""Launching compiled Gluon kernels with little host time: what repeats is kept, a call looks its addresses up.

Triton's own call path binds, specialises and hashes every argument of every call, and encodes a tensor map for every
descriptor. A `Launcher` compiles once, by `warmup`, keeps the encoded arguments of the addresses that it has seen
(the caching allocator hands out the same ones again), and hands them to Triton's launcher. Nothing is allocated on the
device and nothing synchronises, so a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vicinal.backends.gpu import kernel_cache, specialised
from vicinal.backends.gpu.launch import plain, with_integers
from vicinal.backends.hopper.layout import Descriptor
from vicinal.caching import Cache

KNOWN_ADDRESSES = 256  # encoded arguments kept per launcher, and descriptors per argument


class Block(NamedTuple):
    """What a descriptor moves at once."""

    description: Descriptor
    block: tuple[int, ...]


class Launcher:
    """One kernel, compiled, with all its arguments but the tensors.

    Args:
        kernel: the `@gluon.jit` function; its first parameters are the tensors.
        tensors: per tensor its `Block`, or, of a plain pointer, the first element.
        arguments: the others, in the kernel's order, constexprs included. Integers in tuples are specialised on as the
            kernel's decorator says of their parameter.
        grid: programs along one, two or three dimensions.
        options: compile options (`num_warps`, `maxnreg`).
        seen: the arguments as Triton gets to see them when it compiles, where it is not to specialise on these.
    """

    def __init__(
        self,
        kernel: Any,
        tensors: Sequence[Block | int],
        arguments: Sequence[Any],
        grid: tuple[int, ...],
        options: dict[str, int],
        seen: Sequence[Any] | None = None,
    ) -> None:
        self.kernel = kernel
        self.tensors = tensors
        self.arguments = arguments
        self.grid = (*grid, 1, 1)[:3]
        self.options = options
        self._seen = arguments if seen is None else seen
        self._ready: _Ready | None = None
        self._lock = Lock()

    def __call__(self, *tensors: Tensor) -> None:
        """Launch on the current stream of the tensors' device, which must be the current one."""
        ready = self._ready or self._prepare(tensors)
        ready.launch(ready.encoded(*[tensor.data_ptr() for tensor in tensors]))

    def compile(self, *tensors: Tensor) -> Any:
        """The compiled kernel (Triton's `CompiledKernel`); needs no GPU."""
        given = [
            tensor_descriptor(tensor, of) if isinstance(of, Block) else _from(tensor, of)
            for tensor, of in zip(tensors, self.tensors)
        ]
        others = zip(self.kernel.params[len(tensors) :], self._seen)
        arguments = (*given, *(_specialised(p, a) for p, a in others))
        return kernel_cache.compiled(self.kernel, arguments, self.grid, self.options)

    def _prepare(self, tensors: Sequence[Tensor]) -> _Ready:
        """Compile, once whatever threads call."""
        from vicinal.backends.hopper.kernels import compat

        with self._lock:
            if self._ready is None:
                kinds, device = self._kinds(tensors), tensors[0].device.index
                make = partial(self.compile, *tensors)
                compiled = specialised.loaded(self.kernel, device, kinds, make, self.grid)
                encode, launch = compat.launch_function(compiled, self.grid, device)
                each = [_encoder(i, t, of, encode) for i, (t, of) in enumerate(zip(tensors, self.tensors))]
                others = plain(tuple(self.arguments))

                def encoded(*addresses: int) -> tuple[Any, ...]:
                    assert not any(address % 16 for address in addresses), "tensors start at multiples of 16 bytes"
                    return (*(x for one, address in zip(each, addresses) for x in one(address)), *others)

                self._ready = _Ready(launch, Cache[tuple[Any, ...]](KNOWN_ADDRESSES).memoize(encoded))
            return self._ready

    def _kinds(self, tensors: Sequence[Tensor]) -> Hashable:
        """See `vicinal.backends.gpu.specialised`: tensors by their blocks, or their alignment, and all arguments."""
        each = [
            (t.dtype, of.block if isinstance(of, Block) else (t.data_ptr() + of * t.element_size()) % 16 == 0)
            for t, of in zip(tensors, self.tensors)
        ]
        others = specialised.kinds_of(self.kernel.params[len(tensors) :], self._seen)
        return tuple(each), others, tuple(self.options.items())


class _Ready(NamedTuple):
    """A compiled kernel: `launch(encoded(*addresses))`, where `encoded` keeps what it has made."""

    launch: Callable[[tuple[Any, ...]], None]
    encoded: Callable[..., tuple[Any, ...]]


def _encoder(i: int, tensor: Tensor, of: Block | int, encode: Any) -> Callable[[int], tuple[Any, ...]]:
    """How tensor argument `i` is handed to the launcher, by its address."""
    if isinstance(of, int):
        offset = of * tensor.element_size()
        return lambda address: (address + offset,)
    offset = of.description.offset * tensor.element_size()
    descriptor = _at(tensor_descriptor(tensor, of), 0)  # Triton's checks, once
    known = Cache[tuple[Any, ...]](KNOWN_ADDRESSES)
    return lambda address: known.get(address, lambda: encode(i, _at(descriptor, address + offset)))


def _specialised(parameter: Any, argument: Any) -> Any:
    """An argument as Triton gets to see it when it compiles.

    It specialises on integers in tuples (on being 1, and on being a multiple of 16), whatever the kernel's decorator
    says of the parameter. So those on which it should not are replaced by others of the same width.
    """
    if parameter.is_constexpr or not isinstance(argument, tuple):
        return argument
    if parameter.do_not_specialize:
        return with_integers(argument, lambda n: n | 3)
    return of_any_alignment(argument) if parameter.do_not_specialize_on_alignment else argument


def of_any_alignment(argument: Any) -> Any:
    """The same argument with integers that are no multiples of 16, but for ones."""
    return with_integers(argument, lambda n: n if n == 1 else n | 3)


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
    return tensor if offset == 0 else torch.as_strided(tensor, (1,), (1,), tensor.storage_offset() + offset)


def tensor_descriptor(tensor: Tensor, of: Block) -> Any:
    """Triton's host-side descriptor of `tensor` as `of` says."""
    from vicinal.backends.hopper.kernels import compat

    return compat.tensor_descriptor(tensor, of.description.shape, of.description.strides, of.block)
