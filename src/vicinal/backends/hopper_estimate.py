"""What the Hopper kernels take on a problem, estimated by arithmetic: enough to tell when the portable ones are faster.

A warpgroup takes a fixed time per query tile (queries in, output out, barriers) and a time per step of 64 queries
against 64 keys, both growing with the head dim; a multiprocessor holds one pair of warpgroups; launches take their
turns. The constants are fits to 99 timings of 42 problems on H200s, of 5 us to 119 ms: half of them are met within 5%.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from vicinal.backends.hopper_layout import launches
from vicinal.backends.hopper_tiles import WARPGROUPS, steps
from vicinal.backends.protocol import Direction
from vicinal.problem import Problem
from vicinal.tuning.config import TileConfig
from vicinal.tuning.cost import gpu_of


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
    "backward": Rates((577.0, 6.26, 0.0), (2370.0, 25.8), 5580.0),
}


def seconds(problem: Problem, direction: Direction, config: TileConfig) -> float:
    """The estimate for one tiling of a pass."""
    rates = RATES[direction]
    each, tiles = steps(problem, config)
    d = (problem.head_dim + problem.value_dim) / 2
    walk = each * max(rates.step[0] + rates.step[1] * d, rates.step[2])
    ends = rates.tile[0] + rates.tile[1] * d
    count = len(launches(problem))
    turns = WARPGROUPS * ceil(tiles / count / (WARPGROUPS * gpu_of(problem).processors))
    return 1e-9 * count * (turns * walk + (turns - 1) * ends + rates.launch)
