"""What a backend is: a reason why it cannot run a problem, the tilings it would use, a forward and a backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor

from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.tuning.config import TileConfig

Direction = Literal["forward", "backward"]


class Backend(Protocol):
    """Launching only: geometry comes from `vicinal.geometry`, kernels from `vicinal.backends.*.kernels`."""

    name: str

    def unsupported(self, problem: Problem) -> str | None:
        """Why this backend cannot run `problem`, in words; None when it can."""
        ...

    def declines(self, problem: Problem, direction: Direction) -> str | None:
        """Why the next backend should run a supported `problem` when none is named; None when this one should."""
        ...

    def configs(self, problem: Problem, direction: Direction) -> Sequence[TileConfig]:
        """Valid tilings of a supported problem, best guess first, never empty; by arithmetic, cheap, no device work."""
        ...

    def forward(self, problem: Problem, config: TileConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output `[B, *X, H, Dv]` in the inputs' dtype, log-sum-exp `[B, *X, H]` in `lse_dtype`; contiguous."""
        ...

    def backward(
        self,
        problem: Problem,
        config: TileConfig,
        inputs: Inputs,
        upstream: Upstream,
        wanted: Wanted,
    ) -> Inputs:
        """Gradients of the inputs that are `wanted`, each in its input's shape and dtype, contiguous; None elsewhere.

        Tensors may have any strides.
        """
        ...
