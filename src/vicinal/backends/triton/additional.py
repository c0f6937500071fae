"""The gradients of additional keys and values: their launch and scratch.

See `vicinal.backends.triton.kernels.additional`.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from vicinal.backends.gpu.arguments import precision_of
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.run import Run
from vicinal.backends.gpu.strides import empty
from vicinal.backends.triton.estimate import LONG_ROW, row_bytes
from vicinal.backends.triton.kernels.additional import additional_gradient_kernel
from vicinal.backends.triton.launch import Prepared
from vicinal.backends.triton.parts import Call
from vicinal.problem import Problem, Wanted

ENOUGH_PROGRAMS = 1024  # fill a GPU, where work is split to no other end


class AdditionalGradients:
    """Of all queries; programs share them, and each has a partial gradient."""

    def __init__(self, prepared: Prepared, wanted: Wanted) -> None:
        problem = prepared.problem
        self._wanted = wanted
        tokens = prod(problem.lengths)
        tile, step, stages = _tiling(problem)
        tiles = -(-problem.additional // tile)
        programs = problem.batch * problem.kv_heads * tiles
        steps = -(-tokens // step)
        slices = min(steps, -(-ENOUGH_PROGRAMS // programs), 65535)
        slice_size = -(-steps // slices) * step
        axes, *rest = prepared.arguments()
        arguments = (
            prepared.scale,
            problem.heads,
            problem.group_size,
            problem.additional,
            tiles,
            slice_size,
            axes._replace(lengths=problem.lengths, parts=None),  # the queries', of which every one attends
            *rest,
            tile,
            step,
            prepared.vector,
            problem.has_key_mask,
            precision_of(problem.dtype),
        )
        grid = (programs, -(-tokens // slice_size), 1)
        self._launch = Launch(additional_gradient_kernel, grid, arguments, options_of(4, stages))

    def __call__(self, run: Run, call: Call) -> dict[str, Tensor | None]:
        query, given = call.inputs.query, call.inputs[3:5]
        wanted = self._wanted.additional_keys, self._wanted.additional_values
        partial = [
            empty(query, (self._launch.grid[1], *t.shape), torch.float32) if t is not None and wants else None
            for t, wants in zip(given, wanted)
        ]
        upstream = call.upstream
        run.launch(self._launch, query, *given, upstream.lse, upstream.grad_output, call.delta, *partial)
        keys, values = (None if t is None else t.sum(0).to(query.dtype) for t in partial)
        return {"additional_keys": keys, "additional_values": values}


def _tiling(problem: Problem) -> tuple[int, int, int]:
    """Additional keys of a program, queries of a step, stages.

    Of long rows 32 by 32 spill up to 18 kB a thread, and in float32 need more shared memory than an A100 has.
    """
    row = row_bytes(problem)
    return (32, 32, 2) if row <= LONG_ROW else (16, 16, 2 if row <= 2 * LONG_ROW else 1)
