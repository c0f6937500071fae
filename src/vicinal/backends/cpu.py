"""The CPU backend: torch operations only, no compiler. Runs every problem whose tensors are on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vicinal.backends.protocol import Direction
from vicinal.differentiable import QUERIES_PER_TILE, attend
from vicinal.problem import Inputs, Problem
from vicinal.tuning.config import TileConfig

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class CpuBackend:
    """See `vicinal.backends.protocol.Backend`."""

    name = "cpu"

    def unsupported(self, problem: Problem) -> str | None:
        """A reason in words, or None."""
        if problem.device.type != "cpu":
            return f"the tensors are on {problem.device}, not on a CPU"
        if problem.dtype not in DTYPES:
            return f"{problem.dtype} is not one of {', '.join(map(str, DTYPES))}"
        return None

    def configs(self, problem: Problem, direction: Direction) -> Sequence[TileConfig]:
        """One tiling."""
        tile = QUERIES_PER_TILE[problem.rank]
        return [TileConfig(tile, tile, variant="tiles")]

    def forward(self, problem: Problem, config: TileConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        with torch.no_grad():
            output, lse = attend(inputs, problem.neighborhoods, problem.scale)
        return output.contiguous(), lse.contiguous()

    def backward(
        self,
        problem: Problem,
        config: TileConfig,
        inputs: Inputs,
        output: Tensor,
        lse: Tensor,
        grad_output: Tensor,
        grad_lse: Tensor | None,
    ) -> Inputs:
        """Gradients of all inputs."""
        with torch.enable_grad():
            own = Inputs(*(None if t is None else t.detach().requires_grad_() for t in inputs))  # type: ignore[arg-type]
            results = attend(own, problem.neighborhoods, problem.scale)
            tensors = [t for t in own if t is not None]
            count = 1 if grad_lse is None else 2
            grads = iter(torch.autograd.grad(results[:count], tensors, [grad_output, grad_lse][:count]))
        return Inputs(*(None if t is None else next(grads).contiguous() for t in own))  # type: ignore[arg-type]


BACKEND = CpuBackend()
