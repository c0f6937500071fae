"""Additional keys and values on Hopper: how kernels read them, and what launches of their gradients take."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.gpu.shapes import shapes_of
from vicinal.backends.hopper.arguments import Tensors, constants_of, is_one_pass, more_keys
from vicinal.backends.hopper.config import BackwardConfig, HopperConfig
from vicinal.backends.hopper.kernels.arguments import Constants, Grid, GroupAxes, More
from vicinal.backends.hopper.launch import Block
from vicinal.backends.hopper.layout import Descriptor, Strided, Subproblem, Triple, by_units, describable, three
from vicinal.backends.hopper.tilings import ROWS, WARPGROUPS, is_padded, kernel_dims, piece, shares_keys
from vicinal.problem import Inputs, Problem, Wanted

MOST_PARTS = 128  # programs that share the walk of a tile of additional keys over all queries
BUSY = 0.9  # share of a launch's time in which multiprocessors are to have work


def readable(problem: Problem, inputs: Inputs) -> tuple[Tensor, ...]:
    """Additional keys and values as kernels read them, or nothing: copies, filled up with zeros, where they must be."""
    if not problem.additional:
        return ()
    beyond = more_keys(problem) - problem.additional
    tensors = (inputs.additional_keys, inputs.additional_values)
    return tuple(describable(pad(t, (0, 0, 0, 0, 0, beyond)) if beyond else t) for t in tensors if t is not None)


class Following(NamedTuple):
    """What a kernel is given so that tiles of additional keys follow its walk, or so that none do."""

    blocks: tuple[Block, ...]  # the last of its tensors
    absent: tuple[None, ...]  # in their place
    more: More | None

    @classmethod
    def of(
        cls, problem: Problem, config: HopperConfig, part: Subproblem, tensors: Tensors, key: Block, value: Block
    ) -> Following:
        """`key`, `value`: blocks of what the walk is over. Tile `i` is at `(i * step[0], 0, 0)`."""
        if not problem.additional:
            return cls((), (None, None), None)
        along = key.block[2] * key.block[3]
        sides = (more_keys(problem) // along, key.block[2], key.block[3])
        k, v = (_box(problem, config, part, t, sides) for t in tensors.additional)
        return cls((Block(k, key.block), Block(v, value.block)), (), More(problem.additional, k.steps, v.steps, 0))


def _box(problem: Problem, config: HopperConfig, part: Subproblem, tensor: Strided, sides: Triple) -> Descriptor:
    """Tokens one after the other, as a box with these sides."""
    _, x1, x2 = sides
    token = tensor.strides[1]
    description = Descriptor(
        (part.batch, *sides, tensor.width),
        (tensor.batch, x1 * x2 * token, x2 * token, token, 1),
        part.first_batch * tensor.batch,
        0,
    )
    return by_units(description, tensor) if is_padded(problem, is_one_pass(config)) else description


# --- their gradients ---------------------------------------------------------------------------------------


class Walks(NamedTuple):
    """Of a launch over tiles of additional keys: each walks all queries of a dilation group.

    Attributes:
        constants: what kernels are compiled for.
        queries: of a step.
        axes, grid, more: what kernels are told.
        sums: shape of their results but for columns: (batch, groups times parts, keys, heads).
    """

    constants: Constants
    queries: Triple
    axes: GroupAxes
    grid: Grid
    more: More
    key: Block
    value: Block
    sums: tuple[int, int, int, int]

    @classmethod
    def of(cls, problem: Problem, config: BackwardConfig, part: Subproblem, tensors: Tensors) -> Walks:
        dims = kernel_dims(problem, config.one_pass)
        shared = not config.one_pass and shares_keys(*dims)
        queries = three(config.query_tile, 1) if config.one_pass else _queries(problem, part)
        k, v = (_box(problem, config, part, t, (1, 1, more_keys(problem))) for t in tensors.additional)
        own_tile = (1, 1, ROWS)
        keys = ROWS * (1 if shared else WARPGROUPS)
        tiles = more_keys(problem) // keys
        own = tiles * problem.kv_heads * prod(part.groups) * part.batch
        cut, parts, chunk = _parts(part.lengths, queries, own, gpu_of(problem.device).processors)
        constants = constants_of(problem, config, own_tile, queries)._replace(
            split=2, cut=cut, inverse=True, shared=shared, per_head=False, strided=False, moded=False
        )
        axes = GroupAxes(part.lengths, part.lengths, (1, 1, 1), (0, 0, 0))
        grid = Grid((parts, 1, tiles), problem.heads, problem.kv_heads, problem.group_size, own * parts)
        sums = (part.batch, prod(part.groups) * parts, more_keys(problem), problem.kv_heads)
        more = More(problem.additional, k.steps, v.steps, chunk)
        key, value = (Block(t, (1, *own_tile, piece(n))) for t, n in zip((k, v), dims))
        return cls(constants, queries, axes, grid, more, key, value, sums)

    def new(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Memory for the sums of dK and of dV, on the device of a tensor."""
        made = (
            like.new_empty((*self.sums, d), dtype=torch.float32)
            for d in (self.constants.head_dim, self.constants.value_dim)
        )
        return next(made), next(made)


class Sums:
    """Gradients of additional keys and values, over subproblems."""

    def __init__(self, problem: Problem, inputs: Inputs) -> None:
        self._problem = problem
        self._like = inputs.additional_keys, inputs.additional_values
        self._totals: list[Tensor | None] = [None, None]

    def add(self, part: Subproblem, sums: tuple[Tensor, Tensor]) -> None:
        """What programs have written for a subproblem."""
        batch = slice(part.first_batch, part.first_batch + part.batch)
        for i, (own, like) in enumerate(zip(sums, self._like)):
            assert like is not None
            own = own.sum(1)[:, : like.shape[1], :, : like.shape[-1]]
            total = self._totals[i]
            if total is None and part.batch == self._problem.batch:
                self._totals[i] = own
                continue
            if total is None:
                total = self._totals[i] = own.new_zeros(like.shape)
            total[batch] += own

    def gradients(self, wanted: Wanted) -> Iterator[Tensor | None]:
        """Those that are wanted, in the dtype of the inputs, contiguous."""
        for total, needed in zip(self._totals, (wanted.additional_keys, wanted.additional_values)):
            if total is None or not needed:
                yield None
            else:
                yield total.to(self._problem.dtype).contiguous()


def _queries(problem: Problem, part: Subproblem) -> Triple:
    """The box of queries of a step that covers all of them with the least beyond the ends, long along the last axis."""

    def covered(box: tuple[int, ...]) -> tuple[int, int]:
        return prod(-(-n // b) * b for n, b in zip(part.lengths, three(box, 1))), -box[-1]

    # TMA moves at least 16 bytes of the log-sum-exp along the last axis.
    return three(min((box for box in shapes_of(ROWS, problem.rank) if box[-1] >= 4), key=covered), 1)


def _parts(lengths: Triple, step: Triple, programs: int, processors: int) -> tuple[int, int, int]:
    """The axis along which parts share a walk, how many they are, and their queries along it."""
    steps = [-(-n // s) for n, s in zip(lengths, step)]
    cut = max(range(3), key=lambda a: steps[a])
    most = min(steps[cut], MOST_PARTS)

    def busy(parts: int) -> float:
        each = -(-steps[cut] // parts)  # of the longest
        turns = -(-programs * parts // processors)
        return programs * steps[cut] / (turns * each * processors)

    least = next((n for n in range(1, most + 1) if busy(n) >= BUSY), None) or max(range(1, most + 1), key=busy)
    each = -(-steps[cut] // least)
    return cut, -(-steps[cut] // each), each * step[cut]
