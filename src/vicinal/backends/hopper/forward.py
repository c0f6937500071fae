"""Launchers of the Hopper forward (`vicinal.backends.hopper.kernels.forward`)."""

from __future__ import annotations

from math import prod

from vicinal.backends.hopper.additional import Following
from vicinal.backends.hopper.arguments import (
    LOG2E,
    Tensors,
    axes_of,
    constants_of,
    grid_of,
    groups_of,
    moved,
    options_of,
    reach_of,
    token_strides,
)
from vicinal.backends.hopper.config import ForwardConfig
from vicinal.backends.hopper.kernels.arguments import Constants, ForwardStrides, Scalars
from vicinal.backends.hopper.launch import Block, Launcher
from vicinal.backends.hopper.layout import Subproblem, describe, subproblems, three, with_heads
from vicinal.backends.hopper.steps import Steps, Walking
from vicinal.backends.hopper.tilings import SHARED_MEMORY, forward_shared, kernel_dims, piece
from vicinal.problem import Problem

MOST_TURNS = 200  # of a persistent program: up to 125 it was seen to win, from 251 on to lose, up to 30%
FEW_TURNS = 4


def launchers(
    problem: Problem, config: ForwardConfig, strides: tuple[tuple[int, ...], ...], programs: int | None = None
) -> tuple[Walking, ...]:
    """The forward kernel's launchers, one per subproblem.

    Args:
        problem: a supported problem.
        config: one of `tilings.forward_configs`.
        strides: of query, key and value, and of additional keys and values.
        programs: how many run at once, where they take turns with the items (persistent programs).
    """
    tensors = Tensors.of(problem, strides)
    packed = (tensors.query, tensors.output) if config.heads > 1 else ()
    reach = reach_of(problem, config, (*tensors[:4], *tensors.additional), packed)
    return tuple(_launcher(problem, config, tensors, part, programs) for part in subproblems(problem, reach))


def _launcher(
    problem: Problem, config: ForwardConfig, tensors: Tensors, part: Subproblem, programs: int | None
) -> Walking:
    from vicinal.backends.hopper.kernels.forward import forward

    constants = _constants(problem, config)
    q, k, v, o = _blocks(problem, config, part, tensors, constants)
    lse = describe(problem, part, tensors.lse)
    columns = [each.description.steps for each in (q, k, v, o)]
    batches = (q.description.batch_columns, o.description.batch_columns)
    moves = ForwardStrides._make((*columns, *batches, token_strides(lse)))
    grid = grid_of(problem, part, constants, problem.heads // constants.heads)
    scalars = Scalars(axes_of(problem, part), grid, moves, problem.scale * LOG2E)
    following = Following.of(problem, config, part, tensors, k, v)
    steps = Steps.of(problem, part, constants, scalars)
    launch = Launcher(
        forward,
        (q, k, v, o, lse.offset, 0, *following.blocks),
        (*following.absent, scalars, groups_of(part), steps.lists if steps else following.more, constants),
        (_programs(grid.items, programs),),
        options_of(constants.chained, num_warps=4, maxnreg=168),
    )
    return Walking(launch, steps)


def _programs(items: int, at_once: int | None) -> int:
    """One for each item, or as many persistent ones as run `at_once`.

    Over very many turns those drift apart, until keys that neighboring items share have left the cache in between: then
    each takes a few items, and the hardware's queue keeps them in order.
    """
    if at_once is None:
        return items
    return -(-items // FEW_TURNS) if items > MOST_TURNS * at_once else min(items, at_once)


def _constants(problem: Problem, config: ForwardConfig) -> Constants:
    d, dv = kernel_dims(problem)
    step = three(config.key_tile, 1)
    keys = prod(step) * (2 if config.paired else 1)
    return constants_of(problem, config, three(config.query_tile, 1), step)._replace(
        own_output=forward_shared(keys, d, dv, config.stages, True) <= SHARED_MEMORY,
        additional=problem.additional > 0,
        paired=config.paired,
        heads=config.heads,
    )


def _blocks(
    problem: Problem, config: ForwardConfig, part: Subproblem, tensors: Tensors, constants: Constants
) -> list[Block]:
    """Of query, key, value and output."""
    d, dv = constants.head_dim, constants.value_dim
    q, k, v, o = (moved(problem, config, part, t) for t in tensors[:4])
    qd, vd = piece(d), piece(dv)
    kd = min(d, 64) if constants.paired else qd  # a chunk is loaded in columns of 128 bytes
    own: tuple[int, ...] = (1, *constants.tile)
    if constants.heads > 1:
        q, o = with_heads(q, tensors.query), with_heads(o, tensors.output)
        own = (*constants.tile, constants.heads)
    step = (1, *constants.step)
    return [
        Block(q, (*own, qd)),
        Block(k, (*step, kd)),
        Block(v, (*step, kd if constants.paired else vd)),
        Block(o, (*own, vd)),
    ]
