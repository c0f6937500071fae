"""Which tilings the Hopper kernels can run, by arithmetic on shared memory, ranked by the work they would do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product

from vicinal.backends.hopper_layout import three
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import common_interval, groups, key_interval, tiles
from vicinal.problem import Problem
from vicinal.tuning.config import TileConfig

SHARED_MEMORY = 227 * 1024  # bytes a program may use on compute capability 9.0
BARRIERS = 1024  # bytes, generously
ROWS = 64  # queries of a warpgroup: the M of a wgmma
WARPGROUPS = 2
MASK_COST = 0.12  # of a masked tile, in unmasked ones
STAGES = (2, 3, 4)
BACKWARD_STAGES = 3
KEPT = 8  # configs listed


def piece(columns: int) -> int:
    """Columns per buffer: all of them, or the largest power of two that divides them (tensors in Gluon are that)."""
    return columns & -columns


def forward_shared(keys: int, head_dim: int, value_dim: int, stages: int, own_output: bool) -> int:
    """Bytes of shared memory of the forward kernel."""
    queries = WARPGROUPS * ROWS
    elements = queries * head_dim + stages * keys * (head_dim + value_dim) + own_output * queries * value_dim
    return 2 * elements + BARRIERS


def forward_configs(problem: Problem) -> list[TileConfig]:
    """Tilings of the forward, best guess first.

    `variant` is the axis along which warpgroups split ("0" to "2"), then "p" for persistent programs and "t" for
    warpgroups that take turns.
    """
    d, dv = problem.head_dim, problem.value_dim
    keys = 128 if max(d, dv) <= 128 else 64
    stages = max(n for n in STAGES if n == 2 or forward_shared(keys, d, dv, n, True) <= SHARED_MEMORY)
    ranked = sorted(
        (_cost(problem, q, k, split, stages), q, k, split)
        for q in boxes_of(ROWS, problem.rank)
        for k in boxes_of(keys, problem.rank)
        for split in range(3 - problem.rank, 3)
    )
    skip = 3 - problem.rank
    return [TileConfig(q[skip:], k[skip:], 12, stages, str(split)) for _, q, k, split in ranked[:KEPT]]


def backward_configs(problem: Problem) -> list[TileConfig]:
    """Tilings of the backward, best guess first: tiles of 64 queries and of 64 keys, in both of its passes."""
    ranked = sorted(
        (_cost(problem, q, k, split, BACKWARD_STAGES), q, k, split)
        for q in boxes_of(ROWS, problem.rank)
        if q[2] >= 4  # TMA moves at least 16 bytes of the log-sum-exp along the last axis
        for k in boxes_of(ROWS, problem.rank)
        for split in range(3 - problem.rank, 3)
    )
    skip = 3 - problem.rank
    return [TileConfig(q[skip:], k[skip:], 12, BACKWARD_STAGES, str(split)) for _, q, k, split in ranked[:KEPT]]


def boxes_of(tokens: int, rank: int) -> Iterator[tuple[int, int, int]]:
    """Boxes of `tokens` tokens (a power of two) whose sides are powers of two, over the last `rank` of three axes."""
    sides = [1 << i for i in range(tokens.bit_length())]
    for x in product(sides, repeat=rank - 1):
        rest = tokens
        for n in x:
            rest //= n
        if rest:
            yield three((*x, rest), 1)


def _cost(problem: Problem, query_tile: tuple[int, ...], key_tile: tuple[int, ...], split: int, stages: int) -> float:
    """Scores computed by the heads' average, plus what masking them costs, in scores."""
    total = 0.0
    lengths = three(problem.lengths, 1)
    skip = 3 - problem.rank
    for neighborhood in set(problem.neighborhoods):
        axes = (Axis(1),) * skip + neighborhood.axes
        walked = full = 1
        for a in range(3):
            n, f = _axis_tiles(axes[a], lengths[a], query_tile[a], key_tile[a], WARPGROUPS if a == split else 1, stages)
            walked *= n
            full *= f
        total += walked + MASK_COST * (walked - full)
    return total * ROWS * key_tile[0] * key_tile[1] * key_tile[2]


@lru_cache(maxsize=65536)
def _axis_tiles(
    axis: Axis, length: int, query_tile: int, key_tile: int, warpgroups: int, stages: int
) -> tuple[int, int]:
    """Over an axis: (query tile, key tile) pairs that warpgroups walk, and those of them that need no mask."""
    walked = full = 0
    lengths = [g.length for g in groups(axis, length)]
    for n in set(lengths):
        for start, stop in tiles(n, query_tile * warpgroups):
            first, last = key_interval(axis, n, (start, stop))
            line = -(-(last - first) // key_tile)
            for w in range(warpgroups):
                mine = (min(start + w * query_tile, n - 1), max(min(start + (w + 1) * query_tile, n), start + 1))
                mine = (mine[0], max(mine[1], mine[0] + 1))
                low, high = key_interval(axis, n, mine)
                skipped = line - -(-(high - first) // key_tile) if w == 0 else (low - first) // key_tile
                low, high = common_interval(axis, n, mine)
                walked += lengths.count(n) * (line - min(skipped, stages - 1 if warpgroups > 1 else 0))
                full += lengths.count(n) * max((high - first) // key_tile - -(-(low - first) // key_tile), 0)
    return walked, full
