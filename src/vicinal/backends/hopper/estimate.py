"""What the Hopper kernels take on a problem, estimated by arithmetic: enough to tell when the portable ones are faster.

A warpgroup takes a fixed time per query tile (queries in, output out, barriers) and a time per step of 64 queries
against 64 keys, both growing with the head dim; a multiprocessor holds one pair of warpgroups; launches take their
turns. Tiles differ where windows or a key's queries do, and where all run at once the longest decides. The constants
are fits to timings on H200s of 5 us to 119 ms: forward 50 of 42 problems, half of them met within 5%, backward 331 of
300 problems, among them the paper's sweep's, half of them met within 7%.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from operator import mul

from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.gpu.shapes import sampled_walks
from vicinal.backends.hopper.config import BackwardConfig, HopperConfig
from vicinal.backends.hopper.layout import subproblems
from vicinal.backends.hopper.runs import runs_of
from vicinal.backends.hopper.tilings import (
    ROWS,
    WARPGROUPS,
    doubled,
    kernel_dims,
    one_pass_steps,
    pairs_of,
    steps,
    walked,
)
from vicinal.backends.protocol import Direction
from vicinal.problem import Problem


@dataclass(frozen=True)
class Rates:
    """Nanoseconds of one warpgroup, beside another; `d` is the mean of head dim and value dim.

    Attributes:
        step: per step, as `max(step[0] + step[1] * d, step[2])`.
        tile: per query tile, as `tile[0] + tile[1] * d`.
        launch: per launch of all kernels of the pass.
    """

    step: tuple[float, float, float]
    tile: tuple[float, float]
    launch: float


RATES: Mapping[Direction, Rates] = {
    "forward": Rates((183.0, 1.77, 321.0), (106.0, 9.8), 3740.0),
    "backward": Rates((601.0, 5.82, 0.0), (976.0, 54.1), 9320.0),
}
PRODUCTS = (3, 4)  # of a step, in the backward's passes: the query gradient's, and those of key and value


COPIED = 2 * 4 / 3.0e12  # seconds per element of 16 bits of what is read and written again


def seconds(problem: Problem, direction: Direction, config: HopperConfig) -> float:
    """The estimate for one tiling of a pass."""
    every = runs_of(problem) if problem.per_head else ()
    if len(every) > 1:  # and what copies their results together
        width = problem.heads * problem.value_dim + (problem.kv_heads * problem.head_dim) * (direction == "backward")
        copied = COPIED * problem.batch * prod(problem.lengths) * width
        return copied + sum(seconds(run.problem, direction, config) for run in every)
    if isinstance(config, BackwardConfig) and config.one_pass:
        return _one_pass(problem, config)
    rates = RATES[direction]
    each, tiles = steps(problem, config)
    d = sum(kernel_dims(problem)) / 2
    walk = each * max(rates.step[0] + rates.step[1] * d, rates.step[2])
    ends = rates.tile[0] + rates.tile[1] * d
    launches = len(subproblems(problem))
    turns = WARPGROUPS * ceil(tiles / launches / (WARPGROUPS * gpu_of(problem.device).processors))
    mean, longest = (1.0, 0.0) if direction == "forward" else _both_passes(problem, config)
    walks = max(turns * mean, WARPGROUPS * longest) * walk
    return 1e-9 * launches * (walks + (turns - 1) * ends + rates.launch)


# Nanoseconds of the one-pass backward: of a program's step and of the rest of a program, as `x[0] + x[1] * d`; of all
# launches of a subproblem. Fits to 10 problems on an H100, met within 13%.
STEP, PROGRAM, LAUNCHES = (440.0, 13.75), (2000.0, 64.0), 14_000.0
SPREAD = 1.2  # on three axes a walk's queries, and the sums of their gradients, outgrow the cache
BESIDE = 10 / 4.0e12  # seconds per element of float32 dQ: cleared, read, written in 16 bits


def _one_pass(problem: Problem, config: BackwardConfig) -> float:
    """The estimate of the backward in one pass: a program has a multiprocessor for itself."""
    d, _ = kernel_dims(problem, one_pass=True)
    steps, longest = one_pass_steps(problem, config)
    _, axes = sampled_walks(problem, True)[0]
    programs = problem.batch * problem.kv_heads * pairs_of(axes, config.key_tile, config.split)
    mean = steps * problem.batch * problem.heads / programs
    turns = ceil(programs / gpu_of(problem.device).processors)
    step = (STEP[0] + STEP[1] * d) * (SPREAD if problem.rank == 3 else 1.0)
    walks = max(turns * mean, longest * problem.group_size) * step
    ends = turns * (PROGRAM[0] + PROGRAM[1] * d)
    if problem.additional:  # programs of its own, which share the queries
        pairs = ceil(problem.additional / (WARPGROUPS * ROWS)) * ceil(prod(problem.lengths) / ROWS)
        walks += pairs * problem.batch * problem.heads / gpu_of(problem.device).processors * step
        ends += PROGRAM[0] + PROGRAM[1] * d
    elements = problem.batch * prod(problem.lengths) * problem.heads * problem.head_dim
    return 1e-9 * (walks + ends + LAUNCHES * len(subproblems(problem))) + BESIDE * elements


def _both_passes(problem: Problem, config: HopperConfig) -> tuple[float, float]:
    """Steps of a tile on average, and of the longest, of both passes of the backward by their products.

    In units of the query gradient's average: near borders a key has more queries than a query has keys.
    """
    means, longest = [], []
    for inverse in (False, True):
        _, axes = sampled_walks(problem, inverse)[0]
        tile, other = (config.key_tile, config.query_tile) if inverse else (config.query_tile, config.key_tile)
        mean, most = walked(axes, doubled(tile, config.split), other)
        means.append(mean)
        longest.append(most)
    unit = means[0] * sum(PRODUCTS)
    return sum(map(mul, PRODUCTS, means)) / unit, sum(map(mul, PRODUCTS, longest)) / unit
