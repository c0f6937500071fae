"""Which queries have an answer, for backward passes that walk queries under a key mask: its launch."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from vicinal.backends.gpu.devices import chains
from vicinal.backends.gpu.kernels.answered import answered_kernel
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.run import Run
from vicinal.backends.gpu.strides import empty
from vicinal.problem import Problem

ROWS = 128  # of log-sum-exps, per program


class Answered(NamedTuple):
    """Which queries have a log-sum-exp, of some heads or all: bytes `[B, *X]`: 0 of none, 1 of all, else 2."""

    launch: Launch

    @classmethod
    def of(cls, problem: Problem) -> Answered:
        rows, chained = problem.batch * prod(problem.lengths), chains(problem.device)
        arguments = (rows, problem.heads, ROWS, chained)
        return cls(Launch(answered_kernel, (-(-rows // ROWS), 1, 1), arguments, options_of(4, 1, chained)))

    def __call__(self, run: Run, lse: Tensor) -> Tensor:
        """Of a contiguous log-sum-exp."""
        states = empty(lse, lse.shape[:-1], torch.uint8)
        run.launch(self.launch, lse, states)
        return states
