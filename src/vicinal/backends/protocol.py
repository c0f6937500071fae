"""What a backend is: a reason why it cannot run a problem, its configurations, a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from torch import Tensor

from vicinal.compiling import Job
from vicinal.geometry.work import waste
from vicinal.problem import Inputs, Problem, Upstream, Wanted

Direction = Literal["forward", "backward"]


DERIVED = {"derived": True}  # metadata of a configuration's field that follows from the others and the problem


class Config(Protocol):
    """How a backend runs one pass of a problem: its own frozen dataclass, hashable.

    Its fields are numbers, words, tuples or such dataclasses: tuning tables keep them.
    `str` names it in one line, without the backend's name; how a pass runs with it: `Backend.described`.
    """

    @property
    def query_tile(self) -> tuple[int, ...]:
        """Queries of a tile along each axis; of a backward in two kernels, those of the query gradient's."""
        ...

    @property
    def key_tile(self) -> tuple[int, ...]:
        """Keys of a step along each axis."""
        ...

    @property
    def unfolded(self) -> int | None:
        """The axis that tiles see as two (`vicinal.geometry.unfold`): they have one more then."""
        ...


C = TypeVar("C", bound=Config)


class Described(NamedTuple):
    """How a pass runs, for people to read.

    Attributes:
        words: one line, without the backend's name.
        waste: scores that are computed over useful ones, the mean over heads: 1.0 is perfect.
    """

    words: str
    waste: float


def settings(config: Config) -> dict[str, Any]:
    """What there is to choose in a configuration, as JSON; what follows from the problem (`DERIVED`) is left out."""
    return {name: _plain(getattr(config, name)) for name in _choices(type(config))}


@cache
def _choices(kind: Any) -> tuple[str, ...]:
    """The fields of a kind of configuration, a dataclass as all are, that are chosen."""
    return tuple(f.name for f in fields(kind) if not f.metadata.get("derived"))


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    if hasattr(value, "__dataclass_fields__"):
        return settings(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def listed(configs: Sequence[C], given: Mapping[str, Any]) -> C | None:
    """Of these the configuration of the settings that are given."""
    return next((config for config in configs if _has(config, given)), None)


def _has(config: Config, given: Mapping[str, Any]) -> bool:
    """Whether these are its settings; most differ in the first."""
    names = _choices(type(config))
    return given.keys() == set(names) and all(_plain(getattr(config, name)) == given[name] for name in names)


class Backend(Protocol[C]):
    """Launching only: geometry comes from `vicinal.geometry`, kernels from `vicinal.backends.*.kernels`.

    Backends inherit from it: what has a body here is right for one without estimates that compiles nothing.
    """

    name: str

    def unsupported(self, problem: Problem) -> str | None:
        """Why this backend cannot run `problem`, in words; None when it can. Takes microseconds."""
        ...

    def best(self, problem: Problem, direction: Direction) -> tuple[C, float | None]:
        """The best guess for a supported problem, and its `seconds`.

        By arithmetic, in a fraction of a millisecond, no device work.
        """
        return self.configs(problem, direction)[0], None

    def configs(self, problem: Problem, direction: Direction) -> Sequence[C]:
        """Those worth measuring for a supported problem: all valid, the best guess first."""
        ...

    def configured(self, problem: Problem, direction: Direction, given: Mapping[str, Any]) -> C | None:
        """The configuration of these `settings`; None where it is not one for this problem, or none at all."""
        return listed(self.configs(problem, direction), given)

    def seconds(self, problem: Problem, direction: Direction, config: C) -> float | None:
        """An estimate of a pass, to compare backends by; None where this one has none. No device work."""
        return None

    def described(self, problem: Problem, direction: Direction, config: C) -> Described:
        """How a pass of a supported problem runs with a configuration; a backend that may run it otherwise says so."""
        tiles = config.query_tile, config.key_tile, config.unfolded
        each = [waste(n, problem.lengths, *tiles) for n in problem.neighborhoods]
        return Described(str(config), sum(each) / len(each))

    def forward(self, problem: Problem, config: C, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output `[B, *X, H, Dv]` in the inputs' dtype, log-sum-exp `[B, *X, H]` in `lse_dtype`; contiguous."""
        ...

    def backward(
        self,
        problem: Problem,
        config: C,
        inputs: Inputs,
        upstream: Upstream,
        wanted: Wanted,
    ) -> Inputs:
        """Gradients of the inputs that are `wanted`, each in its input's shape and dtype, contiguous; None elsewhere.

        Tensors may have any strides.
        """
        ...

    def forward_kernels(self, problem: Problem, config: C, inputs: Inputs) -> Sequence[Job]:
        """Compilations that `forward` would wait for, to be called in any order and from any threads.

        Nothing is launched or read: `inputs` may be meta tensors, of the strides that are meant. On a GPU's thread,
        the problem's device must be the current one.
        """
        return ()

    def backward_kernels(self, problem: Problem, config: C, inputs: Inputs, wanted: Wanted) -> Sequence[Job]:
        """Likewise for `backward`, where nothing depends on the log-sum-exp."""
        return ()
