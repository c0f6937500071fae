"""What the Hopper kernels take on a problem, estimated by arithmetic: enough to tell when the portable ones are faster.

A warpgroup takes a fixed time per query tile (queries in, output out, barriers) and a time per step of 64 queries
against 64 keys, both growing with the head dim; a multiprocessor holds one pair of warpgroups; launches take their
turns. Tiles differ where windows or a key's queries do, and where all run at once the longest decides. The `Constants`
are fits to timings on H200s of 5 us to 119 ms: forward 50 of 42 problems, half of them met within 5%, backward 331 of
300 problems, among them the paper's sweep's, half of them met within 7%; of the backward in one pass 10 on an H100, met
within 13%. `vicinal.tuning.fit` refits them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from operator import mul
from typing import NamedTuple

from vicinal.backends.gpu.hardware import Gpu, constants_of, gpu_of
from vicinal.backends.gpu.shapes import sampled_walks
from vicinal.backends.hopper.config import BackwardConfig, HopperConfig
from vicinal.backends.hopper.layout import count_of
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


class Constants(NamedTuple):
    """What is fitted to timings of a GPU: nanoseconds of one warpgroup, beside another.

    `d` is the mean of head dim and value dim.

    Attributes:
        forward_step, forward_step_d, forward_step_least: per step of the forward, as the first plus `d` times the
            second, at least the third.
        forward_tile, forward_tile_d: per query tile, likewise.
        forward_launch: per launch.
        backward_step, backward_step_d, backward_tile, backward_tile_d, backward_launch: likewise of both passes of the
            backward.
        one_pass_step, one_pass_step_d: of the backward in one pass, of a program's step.
        one_pass_program, one_pass_program_d: of the rest of a program.
        one_pass_launch: of all launches of a subproblem.
        one_pass_beside: per 1000 elements of float32 dQ: cleared, read, written in 16 bits; and `prepare`.
    """

    forward_step: float = 183.0
    forward_step_d: float = 1.77
    forward_step_least: float = 321.0
    forward_tile: float = 106.0
    forward_tile_d: float = 9.8
    forward_launch: float = 3740.0
    backward_step: float = 601.0
    backward_step_d: float = 5.82
    backward_tile: float = 976.0
    backward_tile_d: float = 54.1
    backward_launch: float = 9320.0
    one_pass_step: float = 534.0
    one_pass_step_d: float = 12.44
    one_pass_program: float = 500.0
    one_pass_program_d: float = 63.0
    one_pass_launch: float = 14_000.0
    one_pass_beside: float = 3.6

    def step(self, direction: Direction, d: float) -> float:
        """Of a step."""
        if direction == "forward":
            return max(self.forward_step + self.forward_step_d * d, self.forward_step_least)
        return self.backward_step + self.backward_step_d * d

    def tile(self, direction: Direction, d: float) -> float:
        """Of a query tile."""
        if direction == "forward":
            return self.forward_tile + self.forward_tile_d * d
        return self.backward_tile + self.backward_tile_d * d

    def launch(self, direction: Direction) -> float:
        """Of all kernels of the pass."""
        return self.forward_launch if direction == "forward" else self.backward_launch


# How much longer steps take than that, by the larger of the kernels' head dims: tiles are smaller, and where two
# warpgroups make dK and dV of the same keys both compute the scores. Measured at window 33 on an H200.
WIDE: Mapping[Direction, Mapping[int, float]] = {
    "forward": {192: 1.28, 256: 1.17},
    "backward": {192: 1.17, 256: 1.34},
}
KEY_MASK = 1.5  # of the forward, under one: 0.88 to 1.7 of the time of Triton's boxes, by how much a mask leaves whole
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
    gpu = gpu_of(problem.device)
    c = fitted(gpu)
    each, tiles = steps(problem, config)
    dims = kernel_dims(problem)
    d = sum(dims) / 2
    walk = each * c.step(direction, d) * WIDE[direction].get(max(dims), 1.0)
    masked = KEY_MASK if problem.has_key_mask and direction == "forward" else 1.0
    ends = c.tile(direction, d)
    launches = count_of(problem)
    turns = WARPGROUPS * ceil(tiles / launches / (WARPGROUPS * gpu.processors))
    mean, longest = (1.0, 0.0) if direction == "forward" else _both_passes(problem, config)
    walks = max(turns * mean, WARPGROUPS * longest) * walk
    return 1e-9 * launches * masked * (walks + (turns - 1) * ends + c.launch(direction))


def fitted(gpu: Gpu) -> Constants:
    """The constants of a GPU."""
    return constants_of(gpu, Constants, "hopper")


def _one_pass(problem: Problem, config: BackwardConfig) -> float:
    """The estimate of the backward in one pass: a program has a multiprocessor for itself."""
    gpu = gpu_of(problem.device)
    c = fitted(gpu)
    d, _ = kernel_dims(problem, one_pass=True)
    steps, longest = one_pass_steps(problem, config.query_tile, config.key_tile, config.split)
    _, axes = sampled_walks(problem, True)[0]
    programs = problem.batch * problem.kv_heads * pairs_of(axes, config.key_tile, config.split)
    mean = steps * problem.batch * problem.heads / programs
    turns = ceil(programs / gpu.processors)
    longest *= problem.group_size
    step = c.one_pass_step + c.one_pass_step_d * d
    program = c.one_pass_program + c.one_pass_program_d * d
    # Where walks differ, the last ones to begin are anything up to the longest; along one axis they are the shortest.
    last = longest / 2 if problem.rank > 1 else 0.0
    walks = max(turns * mean, longest, programs / gpu.processors * mean + last) * step
    ends = turns * program
    if problem.additional:  # programs of its own, which share the queries
        pairs = ceil(problem.additional / (WARPGROUPS * ROWS)) * ceil(prod(problem.lengths) / ROWS)
        walks += pairs * problem.batch * problem.heads / gpu.processors * step
        ends += program
    elements = problem.batch * prod(problem.lengths) * problem.heads * problem.head_dim
    beside = c.one_pass_beside * elements / 1000
    return 1e-9 * (walks + ends + c.one_pass_launch * count_of(problem) + beside)


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
