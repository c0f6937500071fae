"""Calling the numba backend's kernels on tensors: rows of whole vectors, results, addresses."""

from __future__ import annotations

from threading import local

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vicinal.backends.numba import threads
from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.compiled import kernel
from vicinal.backends.numba.plan import LANES, CallPlan, call_plan
from vicinal.backends.protocol import Direction
from vicinal.problem import Inputs, Problem, Upstream, Wanted, lse_dtype

DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def forward(problem: Problem, tile: tuple[int, ...], inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, contiguous."""
    dtype = lse_dtype(problem.dtype)
    given = tuple([None if t is None else _rows(t, dtype) for t in inputs[:5]])
    query, value = given[0], given[2]
    assert query is not None
    assert value is not None
    plan = _plan(problem, "forward", tile, given)
    shape = query.shape[:-1]
    output = torch.empty((*shape, value.shape[-1]), dtype=dtype)
    lse = torch.empty(shape, dtype=dtype)
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
    output, lse, grad_output, grad_lse = upstream
    dtype = lse_dtype(problem.dtype)
    rows = [None if t is None else _rows(t, dtype) for t in inputs[:5]]
    given = (*rows, _rows(output, dtype), lse, _rows(grad_output, dtype), grad_lse)
    plan = _plan(problem, "backward", tile, given)
    query, *others = rows
    assert query is not None
    grads = [torch.empty(query.shape, dtype=dtype)]
    several = () if plan.parts == 1 else (plan.parts,)
    parts = [None if t is None else torch.empty((*several, *t.shape), dtype=dtype) for t in others]
    _run(problem, "backward", plan, (*given, *grads, *parts))
    found = [*grads, *(p.sum(0) if several and p is not None else p for p in parts)]
    widths = [0 if t is None else t.shape[-1] for t in inputs]
    narrow = [
        _narrow(g, width, problem.dtype) if g is not None and is_wanted else None
        for g, width, is_wanted in zip(found, widths, wanted)
    ]
    return Inputs(*narrow)  # type: ignore[arg-type]


def _plan(problem: Problem, direction: Direction, tile: tuple[int, ...], given: tuple[Tensor | None, ...]) -> CallPlan:
    strides = tuple([None if t is None else t.stride() for t in given])
    return call_plan(problem, direction, tile, strides, torch.get_num_threads())


def _run(problem: Problem, direction: Direction, plan: CallPlan, tensors: tuple[Tensor | None, ...]) -> None:
    numbers = plan.numbers.copy()
    numbers[c.ADDRESS : c.ADDRESS + len(tensors)] = [0 if t is None else t.data_ptr() for t in tensors]
    numbers[c.SCRATCH] = SCRATCH.take(plan.threads * plan.scratch)
    threads.run(kernel(direction, DTYPES[lse_dtype(problem.dtype)]), numbers.ctypes.data, plan.threads)


def _rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype` with contiguous rows of whole vectors: itself, or a copy with zeros after each row."""
    spare = -tensor.shape[-1] % LANES
    if not spare and tensor.stride(-1) == 1 and tensor.dtype == dtype:
        return tensor
    with torch.no_grad():
        tensor = tensor.to(dtype)
        return pad(tensor, (0, spare)) if spare else tensor.contiguous()


def _narrow(tensor: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The first `width` channels in `dtype`, contiguous."""
    if tensor.shape[-1] == width and tensor.dtype == dtype:
        return tensor
    return tensor[..., :width].to(dtype).contiguous()


class Scratch(local):
    """Memory that calls from one Python thread reuse."""

    def __init__(self) -> None:
        self._memory = np.zeros(0, np.uint8)

    def take(self, size: int) -> int:
        """The address of so many bytes, in whole cache lines; the last ones are lost."""
        if self._memory.size < size + 64:
            self._memory = np.zeros(size + 64, np.uint8)
        address = self._memory.ctypes.data
        return address + -address % 64


SCRATCH = Scratch()
