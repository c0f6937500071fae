"""Which queries have an answer, for backward passes that walk queries under a key mask: its launch."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from vicinal.backends.gpu.devices import chains
from vicinal.backends.gpu.kernels.answered import answered_kernel
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.compiling import Job
from vicinal.problem import Problem, lse_dtype

ROWS = 128  # of log-sum-exps, per program


class Answered(NamedTuple):
    """Which queries have a log-sum-exp, of some heads or all: bytes `[B, *X]`: 0 of none, 1 of all, else 2."""

    launch: Launch
    dtype: torch.dtype

    @classmethod
    def of(cls, problem: Problem) -> Answered:
        rows, chained = problem.batch * prod(problem.lengths), chains(problem.device)
        arguments = (rows, problem.heads, ROWS, chained)
        launch = Launch(answered_kernel, (-(-rows // ROWS), 1, 1), arguments, options_of(4, 1, chained))
        return cls(launch, lse_dtype(problem.dtype))

    def __call__(self, lse: Tensor, aligned: bool) -> Tensor:
        """Of a contiguous log-sum-exp; `aligned`: it starts at a multiple of 16 bytes."""
        states = lse.new_empty(lse.shape[:-1], dtype=torch.uint8)
        self.launch((lse, states), aligned)
        return states

    def kernel(self) -> Job:
        """What compiles it."""
        lse, states = (torch.empty(1, dtype=t, device="meta") for t in (self.dtype, torch.uint8))
        return partial(self.launch.compile, (lse, states))
