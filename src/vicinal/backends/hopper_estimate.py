"""What the Hopper kernels take on a problem, estimated by arithmetic: enough to tell when the portable ones are faster.

A warpgroup takes a fixed time per query tile (queries in, output out, barriers) and a time per step of 64 queries
against 64 keys, both growing with the head dim; a multiprocessor holds one pair of warpgroups; launches take their
turns. The constants are fits to 12 problems timed on H200s (`docs/performance.md`), which they meet within 15%.
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
    "forward": Rates((180.0, 1.97, 270.0), (900.0, 0.0), 3000.0),
    "backward": Rates((306.0, 8.06, 700.0), (4400.0, 25.0), 9000.0),
}


def seconds(problem: Problem, direction: Direction, config: TileConfig) -> float:
    """The estimate for one tiling of a pass."""
    rates = RATES[direction]
    each, tiles = steps(problem, config)
    d = (problem.head_dim + problem.value_dim) / 2
    tile = each * max(rates.step[0] + rates.step[1] * d, rates.step[2]) + rates.tile[0] + rates.tile[1] * d
    count = len(launches(problem))
    waves = ceil(tiles / count / (WARPGROUPS * gpu_of(problem).processors))
    return 1e-9 * count * (waves * WARPGROUPS * tile + rates.launch)
