"""The forward pass of `vicinal.backends.triton`: its launches.

Everything that does not depend on the tensors is computed once per problem and cached by the backend.
"""

from __future__ import annotations

from torch import Tensor

from vicinal.backends.gpu.arguments import precision_of
from vicinal.backends.gpu.devices import current
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.run import Ahead, Run, run_of
from vicinal.backends.gpu.strides import empty
from vicinal.backends.triton.classes import TURNS_OF_HEADS, is_ahead, takes_heads, turns_of
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.kernels.classes import Alike, forward_of_classes_kernel
from vicinal.backends.triton.kernels.forward import forward_kernel
from vicinal.backends.triton.launch import Prepared, readable, tiles_of
from vicinal.backends.triton.lines import REGISTERS, WARPS, WINDOW, has_lines, kernel_of_lines, programs_of
from vicinal.backends.triton.walking import Boxes, OfClasses, walk_of
from vicinal.compiling import Job
from vicinal.problem import Inputs, Problem, lse_dtype


class Forward:
    """The forward pass of one problem, tiling and set of strides."""

    def __init__(self, prepared: Prepared, config: Tiling, copies: bool = False) -> None:
        """`copies`: the inputs need copying before the kernels can read them (`readable`)."""
        problem = prepared.problem
        self._copies = copies
        self._shape = (problem.batch, *problem.lengths, problem.heads, problem.value_dim)
        self._lse_dtype = lse_dtype(problem.dtype)
        self._empty = problem.batch == 0
        self._table = prepared.table
        self._walk = walk_of(prepared, config, "forward")
        self._launch = _launch(prepared, config, self._walk)
        self._lines = lines_launch(prepared, prepared.flags(config).wide) if config.of_classes else None

    @classmethod
    def of(cls, problem: Problem, config: Tiling, inputs: Inputs) -> Forward:
        """For inputs of these strides."""
        read = readable(inputs)
        return cls(Prepared.of(problem, read), config, any(a is not b for a, b in zip(inputs[:5], read[:5])))

    def __call__(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        if self._copies or any(t is not None for t in inputs[5:]):
            inputs = readable(inputs)
        with current(inputs.query.device):
            return self._results(run_of(inputs), inputs)

    def kernels(self, inputs: Inputs) -> list[Job]:
        """What compiles the kernels that a call launches, of `readable` inputs without memory.

        See `vicinal.backends.protocol.Backend.forward_kernels`.
        """
        either = [Ahead(), Ahead(aligned=False)] if self._lines is not None else [Ahead()]
        for run in either:
            self._results(run, inputs)
        return [job for run in either for job in run.jobs]

    def _results(self, run: Run, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of `readable` inputs."""
        query = inputs.query
        output = empty(query, self._shape)
        lse = empty(query, self._shape[:-1], self._lse_dtype)
        if self._empty:
            return output, lse
        if self._lines is not None and run.aligned:
            run.launch(self._lines, *inputs[:3], output, lse)
            return output, lse
        if self._table is not None:
            run.in_use(self._table)
        walk = self._walk
        if isinstance(walk, OfClasses):
            starts, kept = walk(run, inputs, inputs.key_mask)
            run.launch(self._launch, *inputs[:5], starts, inputs.key_mask, kept, None, output, lse)
        else:
            run.launch(self._launch, *inputs[:5], *walk(run, inputs, inputs.key_mask), output, lse)
        return output, lse


def _launch(prepared: Prepared, config: Tiling, walk: Boxes | OfClasses) -> Launch:
    problem = prepared.problem
    programs = tiles_of(problem, config)
    numbers = prepared.scale, problem.heads, problem.group_size, problem.additional, programs
    tiled = *prepared.arguments(config.unfolded), config.tile, config.step
    flags, precision = prepared.flags(config), precision_of(problem.dtype)
    entries, heads = problem.batch, problem.heads
    if isinstance(walk, Boxes):
        arguments = (*numbers, walk.room, *tiled, prepared.vector, flags, problem.scale <= 0, precision)
        kernel, turns = forward_kernel, 1
    else:
        kernel, starts = forward_of_classes_kernel, walk.starts
        turns = turns_of(entries * heads * programs, entries, starts.classes)
        by_heads = takes_heads(problem, config, programs, starts.classes)
        if by_heads:
            entries, heads, turns = entries * heads, 1, TURNS_OF_HEADS
        more = entries, turns, starts.classes
        # Where four warps have 128 registers, rows that are kept for values are spilled: along two axes 3.5% more time
        # (H200, head dim 64), but 2 to 4% less with scores a step ahead; along three, where they take more to compute,
        # 2.4% less.
        ahead = is_ahead(starts.classes, config, starts.masks and not problem.has_key_mask)
        alike = prepared.alike if config.warps == 1 or ahead or problem.rank == 3 else Alike(False, False)
        rest = starts.masks, problem.group_size > 1, alike, by_heads, ahead, precision
        arguments = (*numbers, *more, *tiled, config.warps, prepared.vector, flags, *rest)
    grid = (-(-entries // turns) * heads * programs, 1, 1)
    return Launch(kernel, grid, arguments, prepared.options(config, "forward"))


def lines_launch(prepared: Prepared, wide: bool) -> Launch | None:
    """Of small windows, see `vicinal.backends.triton.kernels.lines`; None where it is not taken.

    `wide`: offsets within a tile may need 64 bits.
    """
    problem = prepared.problem
    if not has_lines(problem) or wide or prepared.vector * problem.dtype.itemsize != 16:
        return None
    strides = [s // prepared.vector for each in prepared.strides[:3] for s in each]
    numbers = (prepared.scale, problem.heads, problem.group_size, *problem.lengths, WINDOW)
    arguments = (*numbers, *strides, WINDOW, problem.head_dim)
    options = options_of(WARPS, 1) | {"maxnreg": REGISTERS[problem.head_dim]}
    return Launch(kernel_of_lines(), (programs_of(problem), 1, 1), arguments, options)
