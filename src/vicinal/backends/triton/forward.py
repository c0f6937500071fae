"""The forward pass of `vicinal.backends.triton`: its launches.

Everything that does not depend on the tensors is computed once per problem and cached by the backend.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vicinal.backends.gpu.arguments import precision_of
from vicinal.backends.gpu.devices import current
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.gpu.strides import aligned
from vicinal.backends.gpu.tables import in_use
from vicinal.backends.triton.bias import BiasTiles
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.kernels.forward import forward_kernel
from vicinal.backends.triton.launch import Prepared, like, readable, tiles_of
from vicinal.backends.triton.steps import Steps
from vicinal.compiling import Job
from vicinal.problem import Inputs, Problem, lse_dtype


class Forward:
    """The forward pass of one problem, tiling and set of strides."""

    def __init__(self, prepared: Prepared, config: Tiling, copies: bool = False) -> None:
        """`copies`: the inputs need copying before the kernels can read them (`readable`)."""
        problem = prepared.problem
        self._copies = copies
        self._shape = (problem.batch, *problem.lengths, problem.heads, problem.value_dim)
        self._lse_dtype = lse_dtype(problem.dtype)
        self._empty = problem.batch == 0
        programs = tiles_of(problem, config)
        self._table = prepared.table
        self._bias = BiasTiles.of(prepared, config)
        self._steps = Steps.of(prepared, config)
        self._launch = Launch(
            forward_kernel,
            (problem.batch * problem.heads * programs, 1, 1),
            (
                prepared.scale,
                problem.heads,
                problem.group_size,
                problem.additional,
                programs,
                0 if self._steps is None else self._steps.room,
                None if self._bias is None else self._bias.classes,
                *prepared.arguments(config.unfolded),
                config.query_tile,
                config.key_tile,
                prepared.vector,
                prepared.flags(config),
                problem.scale <= 0,
                precision_of(problem.dtype),
            ),
            prepared.options(config, "forward"),
        )

    @classmethod
    def of(cls, problem: Problem, config: Tiling, inputs: Inputs) -> Forward:
        """For inputs of these strides."""
        read = readable(inputs)
        return cls(Prepared.of(problem, read), config, any(a is not b for a, b in zip(inputs[:5], read[:5])))

    def __call__(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        if self._copies or any(t is not None for t in inputs[5:]):
            inputs = readable(inputs)
        query = inputs.query
        output = query.new_empty(self._shape)
        lse = query.new_empty(self._shape[:-1], dtype=self._lse_dtype)
        if not self._empty:
            with current(query.device):
                if self._table is not None:
                    in_use(self._table)
                ok = aligned(inputs)
                if self._bias is not None and inputs.rpb is not None:
                    inputs = inputs._replace(rpb=self._bias(inputs.rpb, ok))
                steps = None
                if self._steps is not None and inputs.key_mask is not None:
                    steps = self._steps(inputs.key_mask, self._table, ok)
                self._launch((*inputs, self._table, steps, output, lse), ok)
        return output, lse

    def kernels(self, inputs: Inputs) -> list[Job]:
        """What compiles the kernels that a call launches; see `vicinal.backends.protocol.Backend.forward_kernels`."""
        if self._empty:
            return []
        jobs: list[Job] = []
        stand_ins = Inputs(*map(like, inputs))  # type: ignore[arg-type]
        if self._bias is not None:
            jobs.append(self._bias.kernel(inputs.rpb))
            stand_ins = stand_ins._replace(rpb=like(inputs.rpb, torch.float32))
        steps = None
        if self._steps is not None:
            jobs.append(self._steps.kernel(self._table))
            steps = like(inputs.query, torch.int32)
        results = like(inputs.query), like(inputs.query, self._lse_dtype)
        jobs.append(partial(self._launch.compile, (*stand_ins, like(self._table), steps, *results)))
        return jobs
