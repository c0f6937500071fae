"""Calling the numba backend's kernels on tensors: rows of whole vectors, results, addresses."""

from __future__ import annotations

from threading import local

import numpy as np
import torch
from torch import Tensor
from torch.utils import deterministic

from vicinal.backends.numba import threads
from vicinal.backends.numba.compiled import compiled
from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.plan import LANES, CallPlan, call_plan
from vicinal.backends.protocol import Direction
from vicinal.problem import Inputs, Problem, Upstream, Wanted, lse_dtype

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
NOBODY = Wanted(*[False] * len(Wanted._fields))
NOTHING = Inputs(*[None] * len(Inputs._fields))  # type: ignore[arg-type]


Given = tuple[Tensor | None, ...]


def forward(problem: Problem, tile: tuple[int, ...], inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, contiguous."""
    dtype = lse_dtype(problem.dtype)
    given = tuple([None if t is None else _rows(t, dtype) for t in inputs[:5]])
    plan = _plan(problem, "forward", tile, given, NOBODY)
    shape = inputs.query.shape[:-1]
    output = _empty((*shape, _whole(problem.value_dim)), dtype)
    lse = _empty(shape, dtype)
    _run(problem, "forward", plan, (*given, output, lse))
    return _narrow(output, problem.value_dim, problem.dtype), lse


def backward(
    problem: Problem,
    tile: tuple[int, ...],
    inputs: Inputs,
    upstream: Upstream,
    wanted: Wanted,
) -> Inputs:
    """The gradients that are wanted, contiguous."""
    if not any(wanted):
        return NOTHING
    output, lse, grad_output, grad_lse = upstream
    dtype = lse_dtype(problem.dtype)
    rows = [None if t is None else _rows(t, dtype) for t in inputs[:5]]
    sums = (_numbers(lse, dtype), None if grad_lse is None else _numbers(grad_lse, dtype))
    given = (*rows, _rows(output, dtype), sums[0], _rows(grad_output, dtype), sums[1])
    plan = _plan(problem, "backward", tile, given, wanted)
    parts = () if plan.parts == 1 else (plan.parts,)
    made: list[Tensor | None] = []
    for place, (t, computed) in enumerate(zip(inputs[:5], plan.computed)):
        if t is None or not computed:
            made.append(None)
        else:
            made.append(_empty((*(() if place == 0 else parts), *t.shape[:-1], _whole(t.shape[-1])), dtype))
    _run(problem, "backward", plan, (*given, *made))
    found: list[Tensor | None] = []
    for t, grad, is_wanted in zip(inputs, (*made, None), wanted):
        if t is None or grad is None or not is_wanted:
            found.append(None)
        else:
            if grad.ndim > t.ndim:
                grad = torch.sum(grad, 0, out=_empty(grad.shape[1:], dtype))
            found.append(_narrow(grad, t.shape[-1], problem.dtype))
    return Inputs(*found)  # type: ignore[arg-type]


def _plan(problem: Problem, direction: Direction, tile: tuple[int, ...], given: Given, wanted: Wanted) -> CallPlan:
    layouts = tuple([None if t is None else (*t.stride(), t.shape[-1]) for t in given])
    return call_plan(problem, direction, tile, layouts, wanted, torch.get_num_threads())


def _run(problem: Problem, direction: Direction, plan: CallPlan, tensors: Given) -> None:
    numbers = plan.numbers.copy()
    numbers[c.ADDRESS : c.ADDRESS + len(tensors)] = [0 if t is None else t.data_ptr() for t in tensors]
    numbers[c.SCRATCH] = SCRATCH.take(plan.threads * plan.scratch)
    function = compiled(direction, DTYPES[lse_dtype(problem.dtype)])
    threads.run(function.address, numbers.ctypes.data, plan.threads)


def _rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype` with contiguous rows of whole vectors: itself, or a copy with zeros after each row.

    What else its memory looks like does not matter: `call_plan` reads the strides, and checks what kernels rely on.
    """
    width = tensor.shape[-1]
    whole = _whole(width)
    if width == whole and tensor.stride(-1) == 1 and tensor.dtype == dtype and not tensor.is_neg():
        return tensor
    rows = _empty((*tensor.shape[:-1], whole), dtype)
    with torch.no_grad():
        rows[..., :width].copy_(tensor)
        rows[..., width:].zero_()
    return rows


def _numbers(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype` with its numbers in memory, in any strides."""
    if tensor.dtype == dtype and not tensor.is_neg():
        return tensor
    return _empty(tensor.shape, dtype).copy_(tensor.detach())


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Contiguous, on the CPU, whatever the default device is and whatever a like tensor's memory looks like."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def _whole(width: int) -> int:
    """Channels of whole vectors."""
    return width + -width % LANES


def _narrow(tensor: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The first `width` channels in `dtype`, contiguous."""
    if tensor.shape[-1] == width and tensor.dtype == dtype:
        return tensor
    narrow = _empty((*tensor.shape[:-1], width), dtype)
    return narrow.copy_(tensor[..., :width])


class Scratch(local):
    """Memory that calls from one Python thread reuse.

    Its content never matters. Where torch is asked to fill uninitialised memory
    (`torch.utils.deterministic.fill_uninitialized_memory`), it is filled too: with numbers that are none.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, size: int) -> int:
        """The address of so many bytes, in whole cache lines; the last ones are lost."""
        if self._memory.size < size + 64:
            self._memory = np.empty(size + 64, np.uint8)
        if torch.are_deterministic_algorithms_enabled() and deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
            self._memory.fill(0xFF)
        address = self._memory.ctypes.data
        return address + -address % 64


SCRATCH = Scratch()
