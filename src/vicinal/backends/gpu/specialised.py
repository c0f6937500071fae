"""What of a kernel's arguments Triton compiles it for: launches that are alike in it share a compiled kernel.

A new size needs new arguments, and nearly always kernels that are there. Triton would find them by looking at every
argument; telling that all are of kinds met before takes less. Kinds are never coarser than what Triton specialises on:
of integers their width, and, unless the kernel is the same for all of them, being 1 and being a multiple of 16; of
constants the value.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from vicinal.backends.gpu import kernel_cache
from vicinal.caching import Cache

KEPT = 256  # tuples that launches of a problem share

_loaded: Cache[tuple[Any, Any]] = Cache(entries=4096)  # kernels, by what they are compiled for, and compiled ones
_tuples: Cache[tuple[Any, Hashable]] = Cache(entries=KEPT)  # tuples, by their numbers, and their kinds


def kinds_of(parameters: Sequence[Any], arguments: Sequence[Any], tuples_alike: bool = False) -> Hashable:
    """The kinds of arguments, but tensors, by the kernel's parameters (Triton's `KernelParam`).

    Args:
        tuples_alike: whether integers in tuples are compiled for any value, whatever the decorator says.
    """
    found: list[Any] = []
    for parameter, argument in zip(parameters, arguments):
        if parameter.is_constexpr:
            found.append((type(argument), argument))  # True and 1 are equal, and not the same
            continue
        of: Callable[[int], Hashable] = _of_integer
        if parameter.do_not_specialize or (tuples_alike and isinstance(argument, tuple)):
            of = _width
        elif parameter.do_not_specialize_on_alignment:
            of = _of_any_alignment
        if type(argument) is int:
            found.append(of(argument))
        elif isinstance(argument, tuple):
            found.append(_known_kind(argument, of))
        else:
            found.append(type(argument))
    return tuple(found)


def loaded(kernel: Any, device: int | None, kinds: Hashable, make: Callable[[], Any], grid: tuple[int, ...]) -> Any:
    """What `make` compiles of `kernel`, in the current device's memory: as it was for the same kinds of arguments.

    Args:
        device: the current one's number.
        kinds: of all arguments, tensors and options too. AMD's compiler looks at more of a tensor than is in them.
    """
    if torch.version.hip:
        return kernel_cache.loaded(kernel, make, grid)
    # By its number: Triton's own hash of a kernel reads its source. It is kept, so that no other gets the number.
    _, found = _loaded.get((id(kernel), device, kinds), lambda: (kernel, kernel_cache.loaded(kernel, make, grid)))
    return found


def _known_kind(argument: tuple[Any, ...], of: Callable[[int], Hashable]) -> Hashable:
    """Of a tuple, looked at once by all launches that share it: by its number, as it is kept with its kind."""
    _, found = _tuples.get((id(argument), of), lambda: (argument, _kind(argument, of)))
    return found


def _kind(argument: Any, of: Callable[[int], Hashable]) -> Any:
    """Of what is no integer; of a tuple that of each part."""
    if not isinstance(argument, tuple):
        return type(argument)
    return type(argument), *[of(a) if type(a) is int else _kind(a, of) for a in argument]


def _of_integer(number: int) -> Hashable:
    return number == 1, number % 16 == 0, _width(number)


def _of_any_alignment(number: int) -> Hashable:
    return number == 1, _width(number)


def _width(number: int) -> int:
    """0, 1 or 2: of 32 bits, of 64 bits with a sign, without."""
    return (not -(2**31) <= number < 2**31) + (number >= 2**63)
