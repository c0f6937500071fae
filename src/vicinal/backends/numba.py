"""The numba backend: kernels compiled for this CPU when first used.

A tile is 16 queries, a vector's lanes; keys and values are read where they lie, weights stay in registers and the
nearest cache, so that little but matrix products is left. Which tiles, keys and masks: `numba_plan`. Half precision is
computed in float32. Every result is deterministic for a number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from torch import Tensor

from vicinal.backends.cpu import unsupported_tensors
from vicinal.backends.protocol import Direction
from vicinal.problem import Inputs, Problem
from vicinal.tuning.config import TileConfig

LISTED = 8  # configs


class NumbaBackend:
    """See `vicinal.backends.protocol.Backend`."""

    name = "numba"

    def unsupported(self, problem: Problem) -> str | None:
        """A reason in words, or None."""
        reason = unsupported_tensors(problem)
        if reason is not None:
            return reason
        if problem.has_rpb:
            return "it has no relative positional bias"
        if problem.per_head:
            return "it has one neighborhood for all heads"
        return missing()

    def declines(self, problem: Problem, direction: Direction) -> str | None:
        return None

    def configs(self, problem: Problem, direction: Direction) -> Sequence[TileConfig]:
        """Tiles by the keys that they meet."""
        from vicinal.backends.numba_plan import tilings

        found = tilings(problem.neighborhood.axes, problem.lengths)[:LISTED]
        return [TileConfig(t.tile, t.box, 1, 1) for t in found]

    def forward(self, problem: Problem, config: TileConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        from vicinal.backends import numba_launch

        return numba_launch.forward(problem, config.query_tile, inputs)

    def backward(
        self,
        problem: Problem,
        config: TileConfig,
        inputs: Inputs,
        output: Tensor,
        lse: Tensor,
        grad_output: Tensor,
        grad_lse: Tensor | None,
    ) -> Inputs:
        """Gradients of all inputs."""
        from vicinal.backends import numba_launch

        return numba_launch.backward(problem, config.query_tile, inputs, output, lse, grad_output, grad_lse)


@cache
def missing() -> str | None:
    """Why numba cannot be used here, or None. Imports it."""
    try:
        import vicinal.kernels.numba.compiled  # noqa: F401
    except Exception as error:  # not there, too old, or at odds with another package: numba raises what it likes
        return f"it needs numba: pip install vicinal[numba] ({error})"
    return None


BACKEND = NumbaBackend()
