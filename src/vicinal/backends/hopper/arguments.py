"""Arguments that the Hopper kernels take alike: the axes, what is counted over them, the table of heads that differ."""

from __future__ import annotations

from functools import lru_cache
from math import e, log2, prod
from typing import NamedTuple

from torch import Tensor

from vicinal.backends.gpu.devices import chains
from vicinal.backends.gpu.tables import in_use, table_of
from vicinal.backends.hopper.config import BackwardConfig, HopperConfig
from vicinal.backends.hopper.kernels.arguments import Constants, Grid, GroupAxes, Groups, TokenStrides
from vicinal.backends.hopper.layout import (
    LEADING,
    RANK,
    Descriptor,
    Reach,
    Strided,
    Subproblem,
    Triple,
    by_units,
    describe,
    three,
)
from vicinal.backends.hopper.tilings import LEAST_SCALE, WARPGROUPS, is_padded, kernel_dims
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.window import SHIFT, mode
from vicinal.problem import Problem

LOG2E = log2(e)  # kernels take exponentials in base 2


TILE = 128  # kernels are given additional keys in multiples of so many: of every tile of theirs


def more_keys(problem: Problem) -> int:
    """Additional keys, and what they are filled up with."""
    return -(-problem.additional // TILE) * TILE


class Tensors(NamedTuple):
    """A problem's tensors as they lie in memory: results, and their gradients, are contiguous."""

    query: Strided
    key: Strided
    value: Strided
    output: Strided
    lse: Strided
    additional: tuple[Strided, ...] = ()  # keys and values, where there are any

    @classmethod
    def of(cls, problem: Problem, strides: tuple[tuple[int, ...], ...]) -> Tensors:
        """`strides`: of query, key and value, and of additional keys and values as `additional.readable` makes them."""
        x, y = (problem.batch, *problem.lengths), (problem.batch, *problem.key_lengths)
        query, key, value, *more = strides
        shape = (problem.batch, more_keys(problem), problem.kv_heads)
        dims = (problem.head_dim, problem.value_dim)
        return cls(
            Strided((*x, problem.heads, problem.head_dim), query),
            Strided((*y, problem.kv_heads, problem.head_dim), key, keys=True),
            Strided((*y, problem.kv_heads, problem.value_dim), value, keys=True),
            Strided.contiguous(*x, problem.heads, problem.value_dim),
            Strided.contiguous(*x, problem.heads, 1),
            tuple(Strided((*shape, d), own) for d, own in zip(dims, more)),
        )


def moved(problem: Problem, config: HopperConfig, part: Subproblem, tensor: Strided) -> Descriptor:
    """The descriptor by which kernels move tiles of a tensor's part."""
    description = describe(problem, part, tensor)
    return by_units(description, tensor) if is_padded(problem, is_one_pass(config)) else description


def reach_of(
    problem: Problem, config: HopperConfig, tensors: tuple[Strided, ...], packed: tuple[Strided, ...] = ()
) -> Reach:
    """How far their descriptors reach; `packed`: those of them that are described `with_heads`."""
    return Reach.of(tensors, tensors if is_padded(problem, is_one_pass(config)) else packed)


def axes_of(problem: Problem, part: Subproblem) -> GroupAxes:
    """The three axes (of the first head)."""
    lengths: tuple[int, ...] = part.lengths
    if part.extent is not None:
        e = part.extent
        lengths = (*e.lengths, *e.query_starts, *part.lengths, *e.key_starts, *e.key_lengths)
    return GroupAxes(lengths, *_rule(problem, problem.neighborhoods[0]))


def grid_of(problem: Problem, part: Subproblem, constants: Constants, heads: int) -> Grid:
    """What work items are counted over: `heads` times the tiles of one."""
    own = part.of_keys if constants.inverse else part
    tiles = tuple(-(-length // size) for length, size in zip(own.lengths, extent_of(constants)))
    items = prod(tiles) * heads * prod(part.groups) * part.batch
    return Grid(tiles, heads, problem.kv_heads, problem.group_size, items)


def extent_of(constants: Constants) -> Triple:
    """Tokens of a program's own tiles along each axis."""
    sides = 1 if constants.shared else WARPGROUPS
    x0, x1, x2 = (size * (sides if a == constants.split else 1) for a, size in enumerate(constants.tile))
    return x0, x1, x2


def is_ragged(part: Subproblem, constants: Constants) -> bool:
    """Whether some tiles may pass the end of an axis; dilation groups need not be of one length."""
    own = part.of_keys if constants.inverse else part
    return constants.grouped or any(n % size for n, size in zip(own.lengths, extent_of(constants)))


def groups_of(part: Subproblem) -> Groups:
    """Dilation groups along each axis, and tokens of the whole problem along the last two."""
    return Groups(part.groups, part.spread)


def token_strides(description: Descriptor) -> TokenStrides:
    """Strides of a tensor that kernels read or write through pointers."""
    return TokenStrides(description.strides[0], description.token_columns, description.strides[1:4])


def is_one_pass(config: HopperConfig) -> bool:
    """Whether it is a tiling of the backward in one pass, whose kernels have head dims of their own."""
    return isinstance(config, BackwardConfig) and config.one_pass


def constants_of(problem: Problem, config: HopperConfig, tile: Triple, step: Triple) -> Constants:
    """What every kernel is compiled for, that has own tiles `tile` and walks tiles `step`."""
    head_dim, value_dim = kernel_dims(problem, is_one_pass(config))
    strided, moded = _features(problem)
    return Constants(
        head_dim=head_dim,
        value_dim=value_dim,
        tile=tile,
        step=step,
        split=config.split + RANK - problem.rank,
        stages=config.stages,
        rank=problem.rank,
        strided=strided,
        moded=moded,
        per_head=problem.per_head,
        grouped=dilated(problem),
        chained=chains(problem.device),
        padded=is_padded(problem, is_one_pass(config)),
        parts=problem.is_part,
        scaled=problem.scale < LEAST_SCALE,
        masked=problem.has_key_mask,
    )


@lru_cache(maxsize=1024)
def _features(problem: Problem) -> tuple[bool, bool]:
    """Whether some axis is strided, or has windows that do not shift."""
    axes = [a for n in problem.neighborhoods for a in n.axes]
    return any(a.stride > 1 for a in axes), any(mode(a) != SHIFT for a in axes)


def options_of(chained: bool, **options: int) -> dict[str, int]:
    """Compile options; `chained`: the kernel awaits the one ahead before it touches memory."""
    return options | {"launch_pdl": True} if chained else options


def dilated(problem: Problem) -> bool:
    """Whether there are dilation groups."""
    return any(d > 1 for d in problem.neighborhoods[0].dilation)


def head_table(problem: Problem) -> Tensor | None:
    """`[H, 9]` int32: `_rule` of every head, for launches on the current stream; None where all heads are alike."""
    if not problem.per_head:
        return None

    def rows() -> list[list[int]]:
        each = [[n for values in _rule(problem, own) for n in values] for own in problem.neighborhoods]
        return each * (problem.heads // len(each))

    key = ("hopper", problem.neighborhoods, problem.lengths, problem.heads)
    table = table_of(key, problem.device, rows)
    in_use(table)
    return table


@lru_cache(maxsize=1024)
def _rule(problem: Problem, neighborhood: Neighborhood) -> tuple[Triple, Triple, Triple]:
    """Windows, strides and modes of three axes, in 32 bits: what is more than twice the length acts like that."""
    axes = (*(LEADING,) * (RANK - problem.rank), *neighborhood.axes)
    whole = tuple(axis.whole_length(n) for axis, n in zip(neighborhood.axes, problem.lengths))
    most = [2 * n for n in three(whole, 1)]
    windows = tuple(min(axis.window or 1, n) for axis, n in zip(axes, most))
    strides = tuple(min(axis.stride, n) for axis, n in zip(axes, most))
    return three(windows, 1), three(strides, 1), three(tuple(map(mode, axes)), SHIFT)
