"""Calling the numba backend's kernels on tensors: rows of whole vectors, results, addresses."""

from __future__ import annotations

from math import inf
from threading import local

import numpy as np
import torch
from torch import Tensor
from torch.utils import deterministic

from vicinal.backends.numba import threads
from vicinal.backends.numba.compiled import compiled
from vicinal.backends.numba.config import NumbaConfig
from vicinal.backends.numba.cuts import cuts
from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.vectors import LANES
from vicinal.backends.numba.plan import KernelCall, kernel_call
from vicinal.backends.protocol import Direction
from vicinal.problem import Inputs, Problem, Upstream, Wanted, lse_dtype

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
ALL_KEYS = np.full(1, -1, np.int16)  # a mask of one key, that stands for every one
ALL_KEYS_ADDRESS = ALL_KEYS.ctypes.data
NOBODY = Wanted(*[False] * len(Wanted._fields))
NOTHING = Inputs(*[None] * len(Inputs._fields))  # type: ignore[arg-type]


Given = tuple[Tensor | None, ...]


def forward(problem: Problem, config: NumbaConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, contiguous."""
    dtype = lse_dtype(problem.dtype)
    given = tuple([None if t is None else _rows(t, dtype) for t in inputs[:5]])
    call = call_of(problem, "forward", config, given, NOBODY)
    shape = inputs.query.shape[:-1]
    output = _empty((*shape, _whole(problem.value_dim)), dtype)
    lse = _empty(shape, dtype)
    running = _Running(call, dtype, (*given, output, lse), problem, inputs)
    if inputs.rpb is None:
        running.run("forward", call.threads)
    else:
        running.spread(inputs.rpb)
        running.run_next("biased forward", call.threads)
    if inputs.key_mask is not None and not problem.is_part:  # a masked token's query may be no number
        silent = ~(inputs.key_mask[..., None] | (lse < inf))
        if silent.any():
            output.masked_fill_(silent[..., None], 0.0)
            lse.masked_fill_(silent, -inf)
    return _narrow(output, problem.value_dim, problem.dtype), lse


def backward(
    problem: Problem,
    config: NumbaConfig,
    inputs: Inputs,
    upstream: Upstream,
    wanted: Wanted,
) -> Inputs:
    """The gradients that are wanted, contiguous."""
    if not any(wanted):
        return NOTHING
    output, lse, grad_output, grad_lse = upstream
    if inputs.key_mask is not None and (without := lse == -inf).any():
        # Of queries without keys neither what they ask nor what comes from above need be numbers.
        inputs = inputs._replace(query=inputs.query.masked_fill(without[..., None], 0.0))
        grad_output = grad_output.masked_fill(without[..., None], 0.0)
        grad_lse = None if grad_lse is None else grad_lse.masked_fill(without, 0.0)
    dtype = lse_dtype(problem.dtype)
    rows = [None if t is None else _rows(t, dtype) for t in inputs[:5]]
    sums = (_numbers(lse, dtype), None if grad_lse is None else _numbers(grad_lse, dtype))
    given = (*rows, _rows(output, dtype), sums[0], _rows(grad_output, dtype), sums[1])
    call = call_of(problem, "backward", config, given, wanted)
    parts = () if call.parts == 1 else (call.parts,)
    made: list[Tensor | None] = []
    for place, (t, computed) in enumerate(zip(inputs[:5], call.computed)):
        if t is None or not computed:
            made.append(None)
        else:
            made.append(_empty((*(() if place == 0 else parts), *t.shape[:-1], _whole(t.shape[-1])), dtype))
    running = _Running(call, dtype, (*given, *made), problem, inputs)
    grad_bias: Tensor | None = None
    if inputs.rpb is None:
        running.run("backward", call.threads)
    else:
        running.spread(inputs.rpb)
        grad_bias = running.biased_backward(inputs.rpb)
    found: list[Tensor | None] = []
    for t, grad, is_wanted in zip(inputs[:5], made, wanted):
        if t is None or grad is None or not is_wanted:
            found.append(None)
        else:
            if grad.ndim > t.ndim:
                grad = torch.sum(grad, 0, out=_empty(grad.shape[1:], dtype))
            found.append(_narrow(grad, t.shape[-1], problem.dtype))
    found.append(None if grad_bias is None else grad_bias.to(problem.dtype))
    return Inputs(*found)  # type: ignore[arg-type]


def call_of(problem: Problem, direction: Direction, config: NumbaConfig, given: Given, wanted: Wanted) -> KernelCall:
    """The call for tensors with rows of whole vectors, in its order."""
    layouts = tuple([None if t is None else (*t.stride(), t.shape[-1]) for t in given])
    return kernel_call(problem, direction, config.tiles, layouts, wanted, torch.get_num_threads())


class _Running:
    """A call with its memory: kernels run one after the other."""

    def __init__(self, call: KernelCall, dtype: torch.dtype, tensors: Given, problem: Problem, inputs: Inputs) -> None:
        self.call, self.dtype = call, dtype
        self.numbers = call.numbers[:]
        for place, tensor in enumerate(tensors, c.ADDRESS):
            if tensor is not None:
                self.numbers[place] += tensor.data_ptr()
        self.numbers[c.SCRATCH] = SCRATCH.take(call.threads * call.scratch)
        self.kept: list[Tensor] = []
        if inputs.window_sizes is not None:
            self.kept.append(cuts(problem, inputs.window_sizes))
            self.numbers[c.ADDRESS + c.CUTS] += self.kept[-1].data_ptr()
        if inputs.key_mask is None:
            self.numbers[c.ADDRESS + c.KEY_MASK] = ALL_KEYS_ADDRESS
        else:
            self.kept.append(-inputs.key_mask.contiguous().to(torch.int16))
            self.numbers[c.ADDRESS + c.KEY_MASK] += self.kept[-1].data_ptr()

    def run(self, kernel: str, count: int) -> None:
        """Run a kernel on `count` threads, and wait."""
        threads.run(compiled(kernel, DTYPES[self.dtype]).address, self.numbers.buffer_info()[0], count)

    def run_next(self, kernel: str, count: int) -> None:
        """Run another kernel."""
        self.numbers[c.NEXT_TASK] = self.numbers[c.NEXT_THREAD] = 0
        self.run(kernel, count)

    def spread(self, rpb: Tensor) -> None:
        """Make the biases by lanes."""
        bias = _contiguous(rpb, self.dtype)
        self._hold({c.BIAS: bias, c.LANE_BIAS: _empty((self.call.lane_biases,), self.dtype)})
        self.run("spread", self.call.bias_threads)

    def biased_backward(self, rpb: Tensor) -> Tensor | None:
        """Run the backward pass; the gradient of the bias, if it is computed."""
        if not self.call.computed.rpb:
            self.run_next("biased backward", self.call.threads)
            return None
        grad = _empty(rpb.shape, self.dtype)
        by_lanes = _empty((self.call.slots, self.call.lane_biases), self.dtype)
        self._hold({c.GRAD_BIAS: grad, c.GRAD_LANE_BIAS: by_lanes})
        self.run_next("biased backward", self.call.threads)
        self.run_next("gather", self.call.bias_threads)
        return grad

    def _hold(self, tensors: dict[int, Tensor]) -> None:
        for place, tensor in tensors.items():
            self.kept.append(tensor)
            self.numbers[place] = tensor.data_ptr()


def _rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype` with contiguous rows of whole vectors: itself, or a copy with zeros after each row.

    What else its memory looks like does not matter: `kernel_call` reads the strides, and checks what kernels rely on.
    """
    width = tensor.shape[-1]
    whole = _whole(width)
    if width == whole and tensor.stride(-1) == 1 and tensor.dtype == dtype and not tensor.is_neg():
        return tensor
    rows = _empty((*tensor.shape[:-1], whole), dtype)
    with torch.no_grad():
        rows[..., :width].copy_(tensor.resolve_neg())  # torch's copy from float16 to float32 forgets the sign
        rows[..., width:].zero_()
    return rows


def _numbers(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype` with its numbers in memory, in any strides."""
    if tensor.dtype == dtype and not tensor.is_neg():
        return tensor
    return _empty(tensor.shape, dtype).copy_(tensor.detach().resolve_neg())


def _contiguous(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype == dtype and tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return _empty(tensor.shape, dtype).copy_(tensor.detach().resolve_neg())


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
        self._address = self._size = 0  # of what is in whole cache lines

    def take(self, size: int) -> int:
        """The address of so many bytes, in whole cache lines; the last ones are lost."""
        if self._size < size:
            self._memory = np.empty(size + 64, np.uint8)
            address = self._memory.ctypes.data
            self._address, self._size = address + -address % 64, size
        if torch.are_deterministic_algorithms_enabled() and deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
            self._memory.fill(0xFF)
        return self._address


SCRATCH = Scratch()
