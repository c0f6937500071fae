"""Launching a Triton kernel with little host time: what repeats is prepared once, a call only adds its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import triton
from torch import Tensor

from vicinal.backends.gpu import kernel_cache, specialised

MAX_GRID = (2**31 - 1, 65535, 65535)  # programs along each dimension of a CUDA grid


@dataclass
class Launch:
    """A kernel with all its arguments but the tensors, which come first.

    The first call compiles (or finds) the kernel through Triton; later ones go straight to the compiled one, which
    holds as long as every pointer is 16-byte aligned, as in the call that compiled it. So it is for tensors that are
    alike: the same ones None, the others of the same dtypes, on one device; who keeps it, keeps it for these. Safe to
    call from several threads: what is kept is complete before it is seen, and the same whoever made it.

    Integers in tuples are never specialised on; others are, unless the kernel says otherwise.

    Raises:
        ValueError: the grid is larger than a GPU's can be.
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    options: dict[str, int]
    _run: Callable[..., None] | None = field(default=None, repr=False)
    _plain: tuple[Any, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        if any(n > most for n, most in zip(self.grid, MAX_GRID)):
            raise ValueError(f"a grid of {self.grid} programs is larger than a GPU's can be, {MAX_GRID}")

    def __call__(self, tensors: Sequence[Tensor | None], aligned: bool) -> None:
        """Launch on the current stream of the current device, the tensors'; `aligned`: all of them, to 16 bytes."""
        run = self._run
        if run is not None and aligned:
            run(*tensors, *self._plain)
            return
        if not isinstance(self.kernel, triton.JITFunction):  # it is interpreted
            self.kernel[self.grid](*tensors, *self.arguments, **self.options)
            return
        run = self._loaded(tensors, aligned)[self.grid]
        self._plain = plain(self.arguments)
        run(*tensors, *self._plain)
        if aligned:
            self._run = run

    def _loaded(self, tensors: Sequence[Tensor | None], aligned: bool) -> Any:
        """The compiled kernel, in the device's memory."""
        if not aligned:
            return kernel_cache.loaded(self.kernel, lambda: self.compile(tensors), self.grid)
        others = specialised.kinds_of(self.kernel.params[len(tensors) :], self.arguments, tuples_alike=True)
        kinds = tuple([None if t is None else t.dtype for t in tensors]), others, tuple(self.options.items())
        device = next(t.device.index for t in tensors if t is not None)
        return specialised.loaded(self.kernel, device, kinds, lambda: self.compile(tensors), self.grid)

    def compile(self, tensors: Sequence[Any]) -> Any:
        """The compiled kernel, for tensors of these dtypes and alignments; needs no GPU."""
        return kernel_cache.compiled(self.kernel, (*tensors, *self._seen(tensors)), self.grid, self.options)

    def _seen(self, tensors: Sequence[Any]) -> list[Any]:
        """The arguments as Triton gets to see them when it compiles.

        It specialises on integers in tuples, whatever `do_not_specialize` says: so it is given others of the same
        width, of which there is nothing special: not 1, not divisible by anything but 1.
        """
        parameters = self.kernel.params[len(tensors) :]
        return [
            a if p.is_constexpr or not isinstance(a, tuple) else with_integers(a, lambda n: n | 3)
            for p, a in zip(parameters, self.arguments)
        ]


def options_of(warps: int, stages: int = 2, chained: bool = False) -> dict[str, int]:
    """Launch options. Multiply-adds are fused: the newest Triton asks to be told.

    `chained`: the kernel calls `await_previous` before it touches memory.
    """
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return options | {"launch_pdl": True} if chained else options


def plain(argument: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same tuple with plain ones in it for named ones, which Triton's launcher takes 5 times as long to read.

    A plain one that begins with an integer holds nothing else, and stays.
    """
    return tuple(
        [
            plain(a) if isinstance(a, tuple) and not (type(a) is tuple and a and type(a[0]) is int) else a
            for a in argument
        ]
    )


def with_integers(argument: Any, change: Callable[[int], int]) -> Any:
    """The same argument, tuples of tuples and all, with every integer changed."""
    if not isinstance(argument, tuple):
        return change(argument) if isinstance(argument, int) else argument
    values = [change(a) if isinstance(a, int) else with_integers(a, change) for a in argument]
    return argument._make(values) if hasattr(argument, "_make") else tuple(values)
