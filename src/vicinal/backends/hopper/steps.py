"""The lists of steps that programs take under a key mask: their launches and scratch.

See `vicinal.backends.hopper.kernels.steps`.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from vicinal.backends.gpu.answered import Answered
from vicinal.backends.gpu.run import ALIGNED
from vicinal.backends.hopper.arguments import extent_of, groups_of, options_of, token_strides
from vicinal.backends.hopper.kernels.arguments import ENTRY, HEADER, LISTS, Constants, Lists, Scalars
from vicinal.backends.hopper.launch import Launcher
from vicinal.backends.hopper.layout import RANK, Strided, Subproblem, describe, packed
from vicinal.caching import Cache
from vicinal.compiling import Job
from vicinal.geometry.walks import walks
from vicinal.problem import Inputs, Problem


class Steps(NamedTuple):
    """The lists of one launch.

    Attributes:
        launch: writes them.
        size: 32-bit integers of all lists.
        lists: what the kernel that takes them is told.
    """

    launch: Launcher
    size: int
    lists: Lists

    @classmethod
    def of(cls, problem: Problem, part: Subproblem, constants: Constants, scalars: Scalars) -> Steps | None:
        """For the kernel that has these constants and scalars; None without a mask."""
        if not problem.has_key_mask:
            return None
        from vicinal.backends.hopper.kernels.steps import list_steps

        tokens = describe(problem, part, Strided.contiguous(problem.batch, *problem.lengths, 1, 1))
        lists = Lists(1 + most_steps(problem, constants))  # an entry is read ahead
        own = Scalars(scalars.axes, scalars.grid, (token_strides(tokens),) * 2, scalars.scale)
        programs = prod(scalars.grid.tiles) * prod(part.groups) * part.batch
        launch = Launcher(
            list_steps,
            (tokens.offset, tokens.offset, 0),
            (own, groups_of(part), lists, constants),
            (programs,),
            options_of(constants.chained, num_warps=1),
        )
        return cls(launch, programs * (HEADER + LISTS * ENTRY * lists.room), lists)

    def __call__(self, walked: Tensor, own: Tensor) -> Tensor:
        """The lists, of bytes `[B, *X]` that say which of the tokens walked, and of own tokens, may be read."""
        lists = walked.new_empty(self.size, dtype=torch.int32)
        self.launch(walked, own, lists)
        return lists

    def like(self, tensor: Tensor) -> Tensor:
        """What stands for the lists where kernels are compiled."""
        return tensor.new_empty(1, dtype=torch.int32)

    def compiled(self, lists: Tensor) -> Job:
        """What compiles the kernel that writes them."""
        states = lists.new_empty(1, dtype=torch.uint8)
        return partial(self.launch.compile, states, states, lists)


class Walking(NamedTuple):
    """A kernel that walks, and the lists that it takes in the place of the table of heads under a key mask."""

    launch: Launcher
    steps: Steps | None

    def table(self, walked: Tensor, own: Tensor, heads: Tensor) -> Tensor:
        """What it is given for a table: lists, of what `Steps` makes them, or else that of `heads`."""
        return heads if self.steps is None else self.steps(walked, own)


def bytes_of(key_mask: Tensor) -> Tensor:
    """A mask as kernels read it."""
    return packed(key_mask.contiguous().view(torch.uint8))


def masks_of(problem: Problem, inputs: Inputs, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Of a backward that walks queries: which of them have an answer, and which keys are there; any, without a mask."""
    if inputs.key_mask is None:
        return lse, lse
    return answered_of(problem)(ALIGNED, lse), bytes_of(inputs.key_mask)


answered_of = Cache[Answered](1024).memoize(Answered.of)


def most_steps(problem: Problem, constants: Constants) -> int:
    """Of any program's walk, at most; those over queries begin before what they need."""
    before = 1 if constants.inverse else 0
    axes, first = problem.neighborhood.axes, RANK - problem.rank
    own, step = extent_of(constants)[first:], constants.step[first:]
    each = (walks(axis, n, constants.inverse).walk[t, s] for axis, n, t, s in zip(axes, problem.lengths, own, step))
    return prod(walk.longest + before for walk in each)
