"""Which backend runs a problem: an ordered list, the first that can. Plans are made once and cached.

`plan` raises with a reason; `explain` tells every backend's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib import import_module

from vicinal.backends.protocol import Backend, Direction
from vicinal.problem import Problem
from vicinal.tuning.config import TileConfig

BACKENDS: dict[str, str] = {  # name -> module; in order of preference, imported when first asked for
    "hopper": "vicinal.backends.hopper",
    "triton": "vicinal.backends.triton",
    "cpu": "vicinal.backends.cpu",
    "unfused": "vicinal.backends.unfused",
}
AUTOMATIC = ("hopper", "triton", "cpu")  # the unfused one runs only when named


@dataclass(frozen=True)
class Plan:
    """How one problem is run; made once, applied many times."""

    problem: Problem
    backend: Backend

    @cached_property
    def forward(self) -> TileConfig:
        return self.backend.configs(self.problem, "forward")[0]

    @cached_property
    def backward(self) -> TileConfig:
        return self.backend.configs(self.problem, "backward")[0]


@dataclass(frozen=True)
class Verdict:
    """One backend's answer about a problem: a reason why not, or None and its tilings."""

    name: str
    reason: str | None
    configs: dict[Direction, list[TileConfig]]


@cache
def backend(name: str) -> Backend:
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
        return Plan(problem, chosen)
    reasons = []
    for candidate in AUTOMATIC:
        reason = unsupported(candidate, problem)
        if reason is None:
            return Plan(problem, backend(candidate))
        reasons.append(f"{candidate}: {reason}")
    raise ValueError("no backend can run this problem: " + "; ".join(reasons))


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
        configs: dict[Direction, list[TileConfig]] = {}
        if reason is None:
            chosen = backend(name)
            configs = {
                "forward": list(chosen.configs(problem, "forward")),
                "backward": list(chosen.configs(problem, "backward")),
            }
        verdicts.append(Verdict(name, reason, configs))
    return verdicts
