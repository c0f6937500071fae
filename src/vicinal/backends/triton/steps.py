"""The lists of steps that a tile takes under a key mask: their launches and scratch.

See `vicinal.backends.triton.kernels.steps`.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.run import Run
from vicinal.backends.gpu.strides import empty
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.kernels.steps import steps_kernel
from vicinal.backends.triton.launch import Prepared, tiles_of
from vicinal.geometry.unfold import parts
from vicinal.geometry.walks import walks
from vicinal.problem import Problem


class Steps(NamedTuple):
    """The lists of one kernel.

    Attributes:
        launch: writes them.
        room: entries of a list.
        size: of all lists, in 32-bit integers.
    """

    launch: Launch
    room: int
    size: int

    @classmethod
    def of(cls, prepared: Prepared, config: Tiling, inverse: bool = False) -> Steps | None:
        """None without a mask; `inverse`: tiles hold keys and walk queries."""
        problem = prepared.problem
        if not problem.has_key_mask:
            return None
        programs, lists = tiles_of(problem, config, inverse), problem.heads if problem.per_head else 1
        room = 1 + most_steps(problem, config, inverse)  # an entry is read ahead
        axes, flags = prepared.arguments(config.unfolded)[0], prepared.flags(config, inverse)
        arguments = (programs, lists, room, axes, config.tile, config.step, flags, inverse)
        grid = (problem.batch * lists * programs, 1, 1)
        launch = Launch(steps_kernel, grid, arguments, options_of(4, 1, prepared.chained))
        return cls(launch, room, grid[0] * (2 + len(config.tile) * room))

    def __call__(self, run: Run, states: Tensor, table: Tensor | None) -> Tensor:
        """The lists, of a mask's bytes, or of `Answered`."""
        steps = empty(states, (self.size,), torch.int32)
        run.launch(self.launch, states, table, steps)
        return steps


def most_steps(problem: Problem, config: Tiling, inverse: bool) -> int:
    """That some tile takes, at most."""
    return max(
        prod(
            walks(axis, length, inverse).walk[tile, step].longest
            for axis, length, tile, step in zip(part.neighborhood.axes, part.lengths, config.tile, config.step)
        )
        for neighborhood in set(problem.neighborhoods)
        for part in parts(neighborhood, problem.lengths, config.unfolded)
    )
