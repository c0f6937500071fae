"""What a part of the backward pass is: a kernel or two, what they write, and which gradients that makes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from vicinal.backends.gpu.run import Run
from vicinal.problem import Inputs, Upstream


class Call(NamedTuple):
    """What the parts of one call have in common.

    Attributes:
        inputs: as kernels read them (`vicinal.backends.triton.launch.readable`).
        upstream: contiguous.
        delta: `[B, *X, H]`, `grad_output . output - grad_lse`, which the first part writes; None where nobody needs it.
    """

    inputs: Inputs
    upstream: Upstream
    delta: Tensor | None


class Part(Protocol):
    """Prepared for a problem; called for its tensors."""

    def __call__(self, run: Run, call: Call) -> dict[str, Tensor | None]:
        """The gradients that it makes, by the inputs' names; None where they are not wanted."""
        ...
