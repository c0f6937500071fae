"""How the kernels of a pass are told what to walk: boxes of tokens step by step, or tiles of classes token by token."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vicinal.backends.gpu.run import Run
from vicinal.backends.triton.classes import Kept, Starts
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.estimate import Kernel
from vicinal.backends.triton.launch import Prepared
from vicinal.backends.triton.steps import Steps
from vicinal.problem import Inputs


class Boxes(NamedTuple):
    """For a kernel that walks boxes.

    Attributes:
        table: of heads, where they differ.
        steps: the lists of those that it takes under a key mask.
    """

    table: Tensor | None
    steps: Steps | None

    @property
    def room(self) -> int:
        """Entries of a list."""
        return 0 if self.steps is None else self.steps.room

    def __call__(self, run: Run, inputs: Inputs, states: Tensor | None) -> tuple[Tensor | None, ...]:
        """Bias table, key mask, window sizes, table of heads, steps, as these kernels take them one after the other.

        `states`: under a key mask, of the tokens walked: the mask, or which queries have an answer.
        """
        steps = None if self.steps is None or states is None else self.steps(run, states, self.table)
        return inputs.rpb, inputs.key_mask, inputs.window_sizes, self.table, steps


class OfClasses(NamedTuple):
    """For a kernel of tiles of classes.

    Attributes:
        starts: what its scores start from.
        kept: the tokens that are there under a key mask.
    """

    starts: Starts
    kept: Kept | None

    def __call__(self, run: Run, inputs: Inputs, states: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What scores start from, and tokens that are there; `states`: as of `Boxes`."""
        starts = self.starts(run, inputs.rpb, inputs.query)
        return starts, None if self.kept is None or states is None else self.kept(run, states)


def walk_of(prepared: Prepared, config: Tiling, kernel: Kernel) -> Boxes | OfClasses:
    """Of the kernel that is tiled so."""
    if not config.of_classes:
        return boxes_of(prepared, config, inverse=kernel == "key_value")
    return classes_of(prepared, config, kernel)


def boxes_of(prepared: Prepared, config: Tiling, inverse: bool = False) -> Boxes:
    """`inverse`: tiles hold keys and walk queries."""
    return Boxes(prepared.table, Steps.of(prepared, config, inverse))


def classes_of(prepared: Prepared, config: Tiling, kernel: Kernel) -> OfClasses:
    """Of a tiling of classes."""
    starts = Starts.of(prepared, config, kernel)
    return OfClasses(starts, Kept.of(prepared, config, starts.classes, inverse=kernel == "key_value"))
