"""Calling the numba backend's kernels on tensors: rows of whole vectors, results, addresses."""

from __future__ import annotations

from threading import local

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vicinal.backends import numba_threads
from vicinal.backends.numba_plan import LANES, CallPlan, call_plan
from vicinal.backends.protocol import Direction
from vicinal.kernels.numba import call as c
from vicinal.kernels.numba.compiled import kernel
from vicinal.problem import Inputs, Problem

DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def forward(problem: Problem, tile: tuple[int, ...], inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, contiguous."""
    query, key, value = _rows(inputs.query), _rows(inputs.key), _rows(inputs.value)
    strides = query.stride(), key.stride(), value.stride()
    plan = call_plan(problem, "forward", tile, strides, torch.get_num_threads())
    shape = query.shape[:-1]
    output, lse = query.new_empty((*shape, value.shape[-1])), query.new_empty(shape)
    _run(problem, "forward", plan, (query, key, value, output, lse))
    return _narrow(output, problem.value_dim), lse


def backward(
    problem: Problem,
    tile: tuple[int, ...],
    inputs: Inputs,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    grad_lse: Tensor | None,
) -> Inputs:
    """Gradients of query, key and value, contiguous."""
    query, key, value = _rows(inputs.query), _rows(inputs.key), _rows(inputs.value)
    given = query, key, value, _rows(output), lse, _rows(grad_output), grad_lse
    strides = tuple(None if t is None else t.stride() for t in given)
    plan = call_plan(problem, "backward", tile, strides, torch.get_num_threads())
    grad_query = query.new_empty(query.shape)
    grad_key, grad_value = key.new_zeros((plan.parts, *key.shape)), value.new_zeros((plan.parts, *value.shape))
    _run(problem, "backward", plan, (*given, grad_query, grad_key, grad_value))
    if plan.parts > 1:
        grad_key, grad_value = grad_key.sum(0, keepdim=True), grad_value.sum(0, keepdim=True)
    return Inputs(
        _narrow(grad_query, problem.head_dim),
        _narrow(grad_key[0], problem.head_dim),
        _narrow(grad_value[0], problem.value_dim),
    )


def _run(problem: Problem, direction: Direction, plan: CallPlan, tensors: tuple[Tensor | None, ...]) -> None:
    numbers = plan.numbers.copy()
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    numbers[c.ADDRESS : c.ADDRESS + len(addresses)] = addresses
    numbers[c.SCRATCH] = SCRATCH.take(plan.threads * plan.scratch)
    numba_threads.run(kernel(direction, DTYPES[problem.dtype]), numbers.ctypes.data, plan.threads)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with contiguous rows of whole vectors: itself, or a copy with zeros after each row."""
    spare = -tensor.shape[-1] % LANES
    if spare:
        return pad(tensor, (0, spare))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _narrow(tensor: Tensor, width: int) -> Tensor:
    return tensor if tensor.shape[-1] == width else tensor[..., :width].contiguous()


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
