"""Which backend runs a problem: of an ordered list the first that can, unless another's estimate is clearly shorter.

Where a problem's class was measured on this device, the tuning table says instead what runs it, and how. The forward
and the backward pass are chosen for each.

Plans are made once and cached. `plan` raises with a reason; `explain` tells every backend's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from importlib import import_module
from math import inf
from typing import Any, NamedTuple, get_args

import torch

from vicinal.backends.gpu.devices import current
from vicinal.backends.protocol import Backend, Config, Direction
from vicinal.compiling import Job
from vicinal.problem import Inputs, Problem, Wanted
from vicinal.tuning.cache import kept_plans, look_up
from vicinal.warning import warn

BACKENDS: dict[str, str] = {  # name -> module; in order of preference, imported when first asked for
    "hopper": "vicinal.backends.hopper",
    "triton": "vicinal.backends.triton",
    "numba": "vicinal.backends.numba",
    "torch": "vicinal.backends.torch",
    "unfused": "vicinal.backends.unfused",
}
LIKELY = 1.15  # of the estimated time of the estimate's choice, up to which that of a class near by is taken
CLEARLY = 0.95  # of the preferred backend's estimated time, below which another's counts as shorter
AUTOMATIC = ("hopper", "triton", "numba", "torch")  # the unfused one runs only when named


@dataclass(frozen=True)
class Plan:
    """How one problem is run; made once, applied many times, each part when first asked for.

    Attributes:
        able: the backends that can run the problem and may be chosen, in order of preference.
        backend, gradients: of these, what runs the forward pass, and the backward pass.
        forward, backward: their configurations.
    """

    problem: Problem
    able: tuple[Backend[Any], ...]

    @cached_property
    def _forward(self) -> tuple[Backend[Any], Config]:
        return _choice(self, "forward")

    @cached_property
    def _backward(self) -> tuple[Backend[Any], Config]:
        return _choice(self, "backward")

    @property
    def backend(self) -> Backend[Any]:
        return self._forward[0]

    @property
    def forward(self) -> Config:
        return self._forward[1]

    @property
    def gradients(self) -> Backend[Any]:
        return self._backward[0]

    @property
    def backward(self) -> Config:
        return self._backward[1]


class Verdict(NamedTuple):
    """One backend's answer about a problem.

    Attributes:
        reason: why it cannot run it, or None.
        configs: its configurations for each pass, where it can.
        seconds: an estimate of the first of them, where it has one.
    """

    name: str
    reason: str | None
    configs: dict[Direction, list[Config]]
    seconds: dict[Direction, float | None]


@cache
def backend(name: str) -> Backend[Any]:
    """The backend of that name.

    Raises:
        ValueError: no backend has that name, or it cannot be imported here.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    try:
        module = import_module(BACKENDS[name])
    except ImportError as error:
        raise ValueError(f"backend {name!r} cannot be loaded here: {error}") from error
    return module.BACKEND


@lru_cache(maxsize=4096)
def plan(problem: Problem, name: str | None = None) -> Plan:
    """The plan for `problem`: with the backend named, or the first that can run it.

    Raises:
        ValueError: the named backend is unknown or cannot run the problem, or none can; with the reasons.
    """
    if name is not None:
        chosen = backend(name)
        reason = chosen.unsupported(problem)
        if reason is not None:
            raise ValueError(f"backend {name!r} cannot run this problem: {reason}")
        return Plan(problem, (chosen,))
    reasons = {candidate: unsupported(candidate, problem) for candidate in AUTOMATIC}
    able = tuple(backend(candidate) for candidate, reason in reasons.items() if reason is None)
    if not able:
        words = "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items())
        raise ValueError(f"no backend can run this problem: {words}")
    if able[0].name == "torch":
        _warn_slow(problem.device.type, reasons)
    return Plan(problem, able)


kept_plans(plan.cache_clear)

chosen_by: list[Callable[[Plan, Direction], None]] = []  # told of every choice that a plan makes


def _choice(plan: Plan, direction: Direction) -> tuple[Backend[Any], Config]:
    """What runs a pass: what the tuning table has seen to be fastest, or else what is estimated to be."""
    for told in chosen_by:
        told(plan, direction)
    problem, able = plan.problem, plan.able
    measured = next(_measured(able, problem, direction), None)
    if measured is not None:
        return measured
    return preferred(able, problem, direction)


def _measured(
    able: Sequence[Backend[Any]], problem: Problem, direction: Direction
) -> Iterator[tuple[Backend[Any], Config]]:
    """Of the configurations that were measured for its class, or one near, those that the problem can take.

    The fastest first. Of a class that is only near, what is estimated to take much longer here is left out.
    """
    found = look_up(problem, direction)
    if found is None:
        return
    names = {each.name: each for each in able}
    most = inf
    if found.distance:
        best, guess = preferred(able, problem, direction)
        most = LIKELY * (best.seconds(problem, direction, guess) or inf)
    for timed in found.entry.timings:
        each = names.get(timed.backend)
        config = None if each is None else each.configured(problem, direction, timed.config)
        if each is not None and config is not None and (each.seconds(problem, direction, config) or 0.0) <= most:
            yield each, config


def ranked(chosen: Backend[Any], problem: Problem, direction: Direction) -> list[Config]:
    """A backend's configurations: those measured, the fastest first, then the others as estimated."""
    measured = [config for _, config in _measured((chosen,), problem, direction)]
    return measured + [config for config in chosen.configs(problem, direction) if config not in measured]


_KERNELS = {"cpu": "numba", "cuda": "triton"}  # by device: the backend whose kernels take most problems
_warned: set[str] = set()


def _warn_slow(device: str, reasons: Mapping[str, str | None]) -> None:
    """One warning, per kind of device that there are kernels for, that none of them runs a problem."""
    if device in _KERNELS and device not in _warned:
        _warned.add(device)
        kernels = _KERNELS[device]
        warn(
            f"vicinal computes with plain torch operations, slowly, where its kernels cannot run; "
            f"backend {kernels!r}: {reasons[kernels]}"
        )


def preferred(able: Sequence[Backend[Any]], problem: Problem, direction: Direction) -> tuple[Backend[Any], Config]:
    """Of backends that can run `problem`, in order: the first, unless another is estimated to be clearly faster.

    With its best guess.
    """
    config, shortest = able[0].best(problem, direction)
    chosen = able[0], config
    if shortest is None:
        return chosen
    shortest *= CLEARLY
    for other in able[1:]:
        if other.name == "torch":  # has no estimate: it runs what nothing else can, and tiles of its take long to find
            continue
        config, theirs = other.best(problem, direction)
        if theirs is not None and theirs < shortest:
            shortest, chosen = theirs, (other, config)
    return chosen


def compilations(chosen: Plan, inputs: Inputs, wanted: Wanted | None) -> list[Job]:
    """Of the forward pass's kernels, or of those of the backward that makes what is `wanted`; for any thread."""
    problem, device = chosen.problem, chosen.problem.device
    if wanted is None:
        jobs = chosen.backend.forward_kernels(problem, chosen.forward, inputs)
    else:
        jobs = chosen.gradients.backward_kernels(problem, chosen.backward, inputs, wanted)
    return [partial(_on, device, job) for job in jobs]


def _on(device: torch.device, job: Job) -> None:
    with current(device):
        job()


def unsupported(name: str, problem: Problem) -> str | None:
    """Why the named backend cannot run `problem`; None when it can."""
    try:
        return backend(name).unsupported(problem)
    except ValueError as error:
        return str(error)


def explain(problem: Problem) -> list[Verdict]:
    """Every backend's verdict on `problem`, in order of preference."""
    verdicts = []
    for name in BACKENDS:
        reason = unsupported(name, problem)
        configs: dict[Direction, list[Config]] = {}
        seconds: dict[Direction, float | None] = {}
        if reason is None:
            chosen = backend(name)
            for direction in get_args(Direction):
                configs[direction] = ranked(chosen, problem, direction)
                seconds[direction] = chosen.seconds(problem, direction, configs[direction][0])
        verdicts.append(Verdict(name, reason, configs, seconds))
    return verdicts
