"""The portable GPU backend: fused neighborhood attention in Triton, forward and backward, for NVIDIA and AMD.

Inputs are read in place at any strides, except that a last dimension that is not contiguous is copied first, as is a
`grad_output` that is not contiguous. Forward allocates its results only. Backward allocates, besides its results,
delta (`[B, *X, H]`, float32) and, where the problem has them: partial sums for the gradients of additional keys and
values and of the bias table; one float32 gradient of key and value per query head when heads have neighborhoods of
their own and share key heads. Nothing is atomic: the same bits every run. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor

from vicinal.backends.gpu.arguments import precision_of
from vicinal.backends.gpu.devices import current
from vicinal.backends.protocol import Direction
from vicinal.backends.triton.backward import Backward
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.estimate import seconds
from vicinal.backends.triton.launch import Forward, Prepared, readable, tiles_of
from vicinal.backends.triton.tilings import tilings
from vicinal.problem import Inputs, Problem, Upstream, Wanted

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 256
MAX_PROGRAMS = 2**31 - 1
MAX_CACHED = 4096  # prepared launches; all are dropped when there are more

_interpreting = False


@contextmanager
def interpreting() -> Iterator[None]:
    """Within it the backend takes CPU tensors; for tests, where TRITON_INTERPRET=1 was set before the import."""
    global _interpreting
    before, _interpreting = _interpreting, True
    try:
        yield
    finally:
        _interpreting = before


class TritonBackend:
    """See `vicinal.backends.protocol.Backend`."""

    name = "triton"

    def __init__(self) -> None:
        self._forward: dict[Any, Forward] = {}
        self._backward: dict[Any, Backward] = {}

    def unsupported(self, problem: Problem) -> str | None:
        if problem.device.type == "cpu":
            if not _interpreting:
                return "tensors are on the CPU"
            if problem.dtype == torch.bfloat16:
                return "Triton's interpreter cannot multiply bfloat16"
        elif problem.device.type != "cuda":
            return f"tensors are on device {problem.device.type!r}, not on a CUDA or ROCm GPU"
        elif not torch.version.hip and torch.cuda.get_device_capability(problem.device) < (8, 0):
            return "the GPU's compute capability is below 8.0"
        if problem.dtype not in DTYPES:
            return f"dtype {problem.dtype} is not float16, bfloat16 or float32"
        if max(problem.head_dim, problem.value_dim) > MAX_HEAD_DIM:
            return f"head_dim and value_dim must be at most {MAX_HEAD_DIM}"
        if problem.has_rpb and len({n.window for n in problem.neighborhoods}) > 1:
            return "a relative positional bias needs the same kernel_size in every head"
        if _exceeds_grid(problem):
            return "more tiles than a GPU's grid can hold"
        return None

    def seconds(self, problem: Problem, direction: Direction, config: Tiling | GradientTilings) -> float:
        return seconds(problem, direction, config)

    def configs(self, problem: Problem, direction: Direction) -> Sequence[Tiling] | Sequence[GradientTilings]:
        return tilings(problem, direction)

    def forward(self, problem: Problem, config: Tiling, inputs: Inputs) -> tuple[Tensor, Tensor]:
        # Every microsecond here is one of each eager call's: look up, allocate, launch.
        key = _key(problem, config, inputs)
        launch = self._forward.get(key)
        if launch is None:
            read = readable(inputs)
            copied = any(a is not b for a, b in zip(inputs, read))
            launch = Forward(Prepared.of(problem, read), config, copied)
            _remember(self._forward, key, launch)
        return launch(inputs)

    def backward(
        self,
        problem: Problem,
        config: GradientTilings,
        inputs: Inputs,
        upstream: Upstream,
        wanted: Wanted,
    ) -> Inputs:
        output, lse, grad_output, grad_lse = upstream
        if lse.numel() == 0:
            return Inputs(*(None if t is None else torch.zeros_like(t) for t in inputs))  # type: ignore[arg-type]
        inputs = readable(inputs)
        key = (grad_lse is None, *_key(problem, config, inputs))
        launch = self._backward.get(key)
        if launch is None:
            launch = Backward(Prepared.of(problem, inputs), config)
            _remember(self._backward, key, launch)
        with current(inputs.query.device):
            return launch(
                inputs,
                output.contiguous(),
                lse.contiguous(),
                grad_output.contiguous(),
                None if grad_lse is None else grad_lse.contiguous(),
            )


def _exceeds_grid(problem: Problem) -> bool:
    """Whether there are more programs than may be launched; nearly always answered without choosing tilings."""
    slices = problem.batch * problem.heads
    most = max(prod(map(max, problem.lengths, n.dilation)) for n in set(problem.neighborhoods))
    if slices * most <= MAX_PROGRAMS:  # even if every tile were a token
        return False
    return slices * tiles_of(problem, tilings(problem, "forward")[0]) > MAX_PROGRAMS


def _key(problem: Problem, config: Tiling | GradientTilings, inputs: Inputs) -> tuple[object, ...]:
    """What a prepared launch depends on."""
    query, key, value, extra_keys, extra_values, _ = inputs
    found: tuple[object, ...] = (problem, config, query.stride(), key.stride(), value.stride())
    if extra_keys is not None and extra_values is not None:
        found += (extra_keys.stride(), extra_values.stride())
    return (*found, precision_of(problem.dtype)) if problem.dtype == torch.float32 else found


def _remember(cache: dict[Any, Any], key: Any, value: Any) -> None:
    if len(cache) >= MAX_CACHED:
        cache.clear()
    cache[key] = value


BACKEND = TritonBackend()
