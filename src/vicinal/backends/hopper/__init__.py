"""The `hopper` backend: TMA and wgmma kernels in Gluon, for compute capability 9.0.

Launching only: kernels are in `vicinal.backends.hopper.kernels`, tilings in `tilings`, descriptors in `layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from vicinal.backends.gpu import hardware
from vicinal.backends.gpu.arguments import placed
from vicinal.backends.gpu.devices import capability, current
from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.hopper import ahead, backward, estimate, forward, onepass, runs
from vicinal.backends.hopper.additional import readable
from vicinal.backends.hopper.arguments import head_table
from vicinal.backends.hopper.config import BackwardConfig, ForwardConfig, HopperConfig
from vicinal.backends.hopper.layout import LARGEST, described
from vicinal.backends.hopper.steps import Walking, bytes_of
from vicinal.backends.hopper.tilings import (
    HEAD_DIMS,
    KEPT,
    backward_configs,
    forward_configs,
    one_pass_configs,
)
from vicinal.backends.protocol import Backend, Direction
from vicinal.caching import Cache
from vicinal.compiling import Job
from vicinal.problem import Inputs, Problem, Upstream, Wanted

CAPABILITY = (9, 0)


class HopperBackend(Backend[Any]):
    """See `vicinal.backends.protocol.Backend`."""

    name = "hopper"

    def unsupported(self, problem: Problem) -> str | None:
        if hardware.named is not None:
            if hardware.named.architecture.name != "sm_90":
                return f"it needs sm_90, not {hardware.named.architecture.name}"
            return unsupported_anywhere(problem)
        if problem.device.type != "cuda":
            return f"it needs a CUDA device, the tensors are on {problem.device}"
        found = capability(problem.device)
        if found is None:
            return f"it needs an NVIDIA GPU, {problem.device} is another"
        if found != CAPABILITY:
            return f"it needs compute capability 9.0, {problem.device} has {found}"
        return unsupported_anywhere(problem)

    def seconds(self, problem: Problem, direction: Direction, config: HopperConfig) -> float:
        return estimate.seconds(problem, direction, config)

    def best(self, problem: Problem, direction: Direction) -> tuple[HopperConfig, float]:
        found = ((kind[0], self.seconds(problem, direction, kind[0])) for kind in _kinds(problem, direction, 1))
        return min(found, key=itemgetter(1))

    def configs(self, problem: Problem, direction: Direction) -> Sequence[HopperConfig]:
        kinds = sorted(_kinds(problem, direction, KEPT), key=lambda kind: self.seconds(problem, direction, kind[0]))
        return [config for kind in kinds for config in kind]

    def forward(self, problem: Problem, config: ForwardConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
        if problem.per_head and len(runs.runs_of(problem)) > 1:
            return runs.forward(problem, inputs, lambda part, own: self.forward(part, config, own))
        query, key, value = described(inputs)
        more = readable(problem, inputs)
        output = query.new_empty((*query.shape[:-1], problem.value_dim))
        lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
        strides = tuple(t.stride() for t in (query, key, value, *more))
        with current(problem.device):
            table = head_table(problem)
            heads = lse if table is None else table
            key_mask = lse if inputs.key_mask is None else bytes_of(inputs.key_mask)
            for part in _forward_launchers(problem, config, strides):
                part.launch(query, key, value, output, lse, part.table(key_mask, key_mask, heads), *more)
        return output, lse

    def backward(
        self,
        problem: Problem,
        config: BackwardConfig,
        inputs: Inputs,
        upstream: Upstream,
        wanted: Wanted,
    ) -> Inputs:
        config = _possible(problem, config, wanted)
        if problem.per_head and len(runs.runs_of(problem)) > 1:
            return runs.backward(
                problem, inputs, upstream, lambda part, own, above: self.backward(part, config, own, above, wanted)
            )
        with current(problem.device):
            if config.one_pass:
                return onepass.backward(problem, config, inputs, upstream)
            return backward.backward(problem, config, inputs, upstream, wanted)

    def forward_kernels(self, problem: Problem, config: ForwardConfig, inputs: Inputs) -> Sequence[Job]:
        every = runs.runs_of(problem)
        return [job for run in every for job in ahead.forward_kernels(run.problem, config, run.inputs(inputs))]

    def backward_kernels(
        self, problem: Problem, config: BackwardConfig, inputs: Inputs, wanted: Wanted
    ) -> Sequence[Job]:
        config = _possible(problem, config, wanted)
        jobs: list[Job] = []
        for run in runs.runs_of(problem):
            own = run.inputs(inputs)
            if config.one_pass:
                jobs += ahead.one_pass_kernels(run.problem, config, own)
            else:
                jobs += ahead.two_pass_kernels(run.problem, config, own, wanted)
        return jobs


def _possible(problem: Problem, config: BackwardConfig, wanted: Wanted) -> BackwardConfig:
    """The configuration, or one in two passes: one makes all gradients, and adds in any order."""
    every = all(wanted[: 5 if problem.additional else 3])
    if config.one_pass and not (every and not torch.are_deterministic_algorithms_enabled()):
        return two_passes(problem)
    return config


def unsupported_anywhere(problem: Problem) -> str | None:
    """Why these kernels cannot compute `problem` on any device; None when they can."""
    missing = _gluon_missing()
    if missing is not None:
        return missing
    if problem.dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 and bfloat16, not {problem.dtype}"
    dims = (problem.head_dim, problem.value_dim)
    if any(d % 8 or not 8 <= d <= max(HEAD_DIMS) for d in dims):
        return f"head_dim and value_dim must be multiples of 8 from 8 to {max(HEAD_DIMS)}, got {dims}"
    if problem.has_rpb:
        return "it has no relative positional bias"
    if problem.has_key_mask and (reason := mask_unsupported(problem)) is not None:
        return reason
    if problem.has_window_sizes:
        return "it has no windows per token"
    if problem.goes_around:
        return "it reads no keys around a circle"
    if problem.is_part and (reason := part_unsupported(problem)) is not None:
        return reason
    if problem.batch == 0:
        return "the batch is empty"
    if prod(problem.lengths) * max(problem.heads, 4) > LARGEST:  # numbers of log-sum-exps, which come in fours
        return "a batch element has 2**31 or more log-sum-exps"
    return None


def mask_unsupported(problem: Problem) -> str | None:
    """Why these kernels do not take a problem's key mask."""
    if problem.additional:
        return "it has no key mask beside additional keys"
    if problem.per_head:
        return "it has no key mask where heads have neighborhoods of their own"
    if problem.is_part:
        return "it has no key mask for spans"
    return None


def part_unsupported(problem: Problem) -> str | None:
    """Why parts of axes are not what these kernels take."""
    if problem.additional:
        return "it has no additional keys for spans"
    if max(span.length for span in placed(problem.neighborhoods, problem.lengths)) > LARGEST // 4:
        return "an axis is too long"
    dilations = problem.neighborhoods[0].dilation
    if any(d > 1 and n < d for d, n in zip(dilations, problem.lengths)):
        return "a span has fewer queries than there are dilation groups"
    if max(dilations) > 1 and problem.lengths[1:] != problem.key_lengths[1:]:
        return "dilated, it takes spans along the first axis only"
    return None


# --- kept --------------------------------------------------------------------------------------------------


@Cache[tuple[Walking, ...]](1024).memoize
def _forward_launchers(
    problem: Problem, config: ForwardConfig, strides: tuple[tuple[int, ...], ...]
) -> tuple[Walking, ...]:
    programs = gpu_of(problem.device).processors if config.persistent else None
    return forward.launchers(problem, config, strides, programs)


@Cache[Sequence[Sequence[HopperConfig]]](4096).memoize
def _kinds(problem: Problem, direction: Direction, most: int) -> Sequence[Sequence[HopperConfig]]:
    """Configurations, `most` of every kind, the best guess of each first."""
    if len(runs.runs_of(problem)) > 1:
        problem = runs.likeness(problem)
    if direction == "forward":
        return [forward_configs(problem, most)]
    return [kind for kind in (backward_configs(problem, most), one_pass_configs(problem, most)) if kind]


def two_passes(problem: Problem) -> BackwardConfig:
    """The best guess of those that add nothing in memory."""
    config = _kinds(problem, "backward", 1)[0][0]
    assert isinstance(config, BackwardConfig)
    assert not config.one_pass
    return config


@cache
def _gluon_missing() -> str | None:
    try:
        import vicinal.backends.hopper.kernels.compat  # noqa: F401
    except Exception as error:  # whatever a Triton without this Gluon raises
        return f"the installed Triton has no Gluon for Hopper: {error}"
    return None


BACKEND = HopperBackend()
