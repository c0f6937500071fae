"""The numba backend: kernels compiled for this CPU when first used.

A tile is 16 queries, a vector's lanes; keys and values are read where they lie, weights stay in registers and the
nearest cache, so that little but matrix products is left. Heads may differ in their neighborhoods: those of one
neighborhood are a set with tiles of its own. Half precision is computed in float32. Every result is deterministic for
a number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

from torch import Tensor

from vicinal.backends.numba.config import LARGEST_OWN, NumbaConfig, configs
from vicinal.backends.protocol import Backend, Direction
from vicinal.compiling import Job
from vicinal.extras import install
from vicinal.problem import DTYPES, Inputs, Problem, Upstream, Wanted, lse_dtype


class NumbaBackend(Backend[NumbaConfig]):
    """See `vicinal.backends.protocol.Backend`."""

    name = "numba"

    def unsupported(self, problem: Problem) -> str | None:
        """A reason in words, or None."""
        if problem.device.type != "cpu":
            return f"the tensors are on {problem.device}, not on a CPU"
        if problem.dtype not in DTYPES.values():
            return f"{problem.dtype} is not one of {', '.join(map(str, DTYPES.values()))}"
        if problem.has_window_sizes and max(k or 0 for n in problem.neighborhoods for k in n.window) > LARGEST_OWN:
            return f"windows per token must be at most {LARGEST_OWN}"
        if problem.goes_around:
            return "it reads no keys around a circle"
        return missing()

    def configs(self, problem: Problem, direction: Direction) -> Sequence[NumbaConfig]:
        """Tiles by the keys that they meet."""
        return configs(problem)

    def forward(self, problem: Problem, config: NumbaConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        from vicinal.backends.numba import launch

        return launch.forward(problem, config, inputs)

    def backward(
        self,
        problem: Problem,
        config: NumbaConfig,
        inputs: Inputs,
        upstream: Upstream,
        wanted: Wanted,
    ) -> Inputs:
        """The gradients that are wanted."""
        from vicinal.backends.numba import launch

        return launch.backward(problem, config, inputs, upstream, wanted)

    def forward_kernels(self, problem: Problem, config: NumbaConfig, inputs: Inputs) -> Sequence[Job]:
        return _compilations(problem, ("spread", "biased forward") if problem.has_rpb else ("forward",))

    def backward_kernels(self, problem: Problem, config: NumbaConfig, inputs: Inputs, wanted: Wanted) -> Sequence[Job]:
        return _compilations(problem, ("spread", "biased backward", "gather") if problem.has_rpb else ("backward",))


def _compilations(problem: Problem, names: Sequence[str]) -> list[Job]:
    from vicinal.backends.numba.compiled import compiled
    from vicinal.backends.numba.launch import DTYPES

    return [partial(compiled, name, DTYPES[lse_dtype(problem.dtype)]) for name in names]


@cache
def missing() -> str | None:
    """Why numba cannot be used here, or None. Imports it."""
    try:
        import vicinal.backends.numba.compiled  # noqa: F401
    except Exception as error:  # not there, too old, or at odds with another package: numba raises what it likes
        return f"it needs numba: {install('cpu')} ({error})"
    return None


BACKEND = NumbaBackend()
