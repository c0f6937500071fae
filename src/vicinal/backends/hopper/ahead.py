"""Compiles the kernels of a pass before it is called: what launchers compile, on stand-ins for tensors."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vicinal.backends.gpu.run import Ahead, without_memory
from vicinal.backends.hopper import backward, forward, onepass
from vicinal.backends.hopper.additional import readable
from vicinal.backends.hopper.config import BackwardConfig, ForwardConfig
from vicinal.backends.hopper.layout import described
from vicinal.backends.hopper.steps import Steps, answered_of
from vicinal.compiling import Job
from vicinal.problem import Inputs, Problem, Wanted


class _StandIns(NamedTuple):
    """Tensors of a call, as they lie in memory, on the meta device."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    lse: Tensor
    table: Tensor
    more: tuple[Tensor, ...]  # additional keys and values

    @classmethod
    def of(cls, problem: Problem, inputs: Inputs) -> _StandIns:
        stand_ins = without_memory(inputs)
        query, key, value = described(stand_ins)
        output = _empty(*query.shape[:-1], problem.value_dim, dtype=query.dtype)
        lse = _empty(*query.shape[:-1])
        table = _empty(problem.heads, 9, dtype=torch.int32) if problem.per_head else lse
        return cls(query, key, value, output, lse, table, readable(problem, stand_ins))

    @property
    def strides(self) -> backward.TensorStrides:
        return tuple(t.stride() for t in (self.query, self.key, self.value, *self.more))


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def forward_kernels(problem: Problem, config: ForwardConfig, inputs: Inputs) -> list[Job]:
    """See `vicinal.backends.protocol.Backend`."""
    tensors = _StandIns.of(problem, inputs)
    jobs: list[Job] = []
    for part in forward.launchers(problem, config, tensors.strides):
        table = _with_steps(part.steps, tensors.lse, tensors.table, jobs)
        jobs.append(partial(part.launch.compile, *tensors[:5], table, *tensors.more))
    return jobs


def _with_steps(steps: Steps | None, lse: Tensor, table: Tensor, jobs: list[Job]) -> Tensor:
    """What a kernel is given for a table: lists, where it takes any, whose kernel is a job more."""
    if steps is None:
        return table
    lists = steps.like(lse)
    jobs.append(steps.compiled(lists))
    return lists


def _answering(problem: Problem, lse: Tensor) -> list[Job]:
    """What says which queries have an answer, under a key mask."""
    run = Ahead()
    if problem.has_key_mask:
        answered_of(problem)(run, lse)
    return run.jobs


def two_pass_kernels(problem: Problem, config: BackwardConfig, inputs: Inputs, wanted: Wanted) -> list[Job]:
    """Of `backward.backward`."""
    if not any(wanted[:5]):
        return []
    tensors = _StandIns.of(problem, inputs)
    query, key, value, output, lse, table, more = tensors
    passes = backward.Passes(*wanted[:5])
    jobs = _answering(problem, lse)
    for part in backward.launchers(problem, config, tensors.strides, passes):
        rows = _empty(part.rows)
        jobs.append(partial(part.prepare.compile, output, output, lse, lse, rows, rows, rows))
        read = (query, output, rows, rows, key, value)
        if part.keys is not None:
            own = _with_steps(part.keys.steps, lse, table, jobs)
            jobs.append(partial(part.keys.launch.compile, *read, key, value, own))
        if part.queries is not None:
            own = _with_steps(part.queries.steps, lse, table, jobs)
            jobs.append(partial(part.queries.launch.compile, *read, query, own, *more))
        if part.more is not None:
            sums = _empty(1)
            jobs.append(partial(part.more.launch.compile, *read[:4], *more, sums, sums, table))
    return jobs


def one_pass_kernels(problem: Problem, config: BackwardConfig, inputs: Inputs) -> list[Job]:
    """Of `onepass.backward`."""
    tensors = _StandIns.of(problem, inputs)
    query, key, value, output, lse, table, more = tensors
    jobs = _answering(problem, lse)
    for part in onepass.launchers(problem, config, tensors.strides, has_grad_lse=False):
        rows, addends = _empty(part.rows), _empty(part.addends)
        jobs.append(partial(part.prepare.compile, output, output, lse, lse, rows, rows, rows))
        read = (query, output, rows, rows, key, value)
        own = _with_steps(part.gradients.steps, lse, table, jobs)
        jobs.append(partial(part.gradients.launch.compile, *read, key, value, addends, addends, addends, own))
        if part.more is not None:
            sums = _empty(1)
            jobs.append(
                partial(part.more.launch.compile, *read[:4], *more, sums, sums, addends, addends, addends, table)
            )
        jobs.append(partial(part.finish.compile, addends, query))
    return jobs
