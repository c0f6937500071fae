"""Which tilings the Hopper kernels can run, by arithmetic on shared memory, ranked by the work they would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from heapq import nsmallest
from itertools import product
from math import prod
from typing import TypeVar

from vicinal.backends.gpu.hardware import ARCHITECTURES
from vicinal.backends.hopper.config import BackwardConfig, ForwardConfig, HopperConfig
from vicinal.geometry.count import count, count_pairs, full_steps
from vicinal.geometry.neighborhood import Axis
from vicinal.problem import Problem

Config = TypeVar("Config", ForwardConfig, BackwardConfig)

SHARED_MEMORY = ARCHITECTURES["sm_90"].shared
BARRIERS = 1024  # bytes, generously
ROWS = 64  # queries of a warpgroup: the M of a wgmma
WARPGROUPS = 2
MASK_COST = 0.12  # of a masked tile, in unmasked ones
STAGES = (2, 3, 4)
CHUNK = 64  # keys of a chunk: half a key tile
CHUNKS_LOST = 1.0  # per warpgroup's query tile, by rounding up to pairs
CHUNK_COST = 1.03  # of a tile of two chunks, in tiles of one
SPLIT_LAST_COST = 1.04  # warpgroups side by side along the last axis measured 0.4 to 14% slower than along another
FAR_STEPS_COST = 1.25  # of walks that go fastest along the first of three axes: what they read has left the cache
PERSISTENT_TILES = 32  # key tiles per query tile, up to which persistent programs were seen to win
PACKED_COST = 1.03  # so that heads are only packed where that saves more than noise
BACKWARD_STAGES = 3
HEAD_DIMS = (32, 64, 96, 128, 192, 256)  # that kernels are compiled for
ONE_PASS_DIMS = {64: 4, 128: 2}  # likewise, and slots of its rings: powers of two take fewer registers
ONE_PASS_FROM = 33  # head dims: below, what fills 64 columns would be for nothing
LEAST_SCALE = 1e-30  # below, scores are scaled before they are masked: infinity times it may be no infinity
KEPT = 8  # configs listed
COMPACT = 5  # shapes of a warpgroup's own tiles that are tried
LIKELY = 28  # tilings whose steps are counted


# --- what fits ---------------------------------------------------------------------------------------------


def kernel_dims(problem: Problem, one_pass: bool = False) -> tuple[int, int]:
    """Head dim and value dim of the kernels that run a problem: its own, or the next that there are."""
    dims = problem.head_dim, problem.value_dim
    if one_pass:
        both = next(d for d in ONE_PASS_DIMS if d >= max(dims))
        return both, both
    d, dv = (next(n for n in HEAD_DIMS if n >= dim) for dim in dims)
    return d, dv


def is_padded(problem: Problem, one_pass: bool = False) -> bool:
    """Whether kernels have more columns than heads."""
    return kernel_dims(problem, one_pass) != (problem.head_dim, problem.value_dim)


def piece(columns: int) -> int:
    """Columns per buffer: all of them, or the largest power of two that divides them (tensors in Gluon are that)."""
    return columns & -columns


def forward_shared(keys: int, head_dim: int, value_dim: int, stages: int, own_output: bool) -> int:
    """Bytes of shared memory of the forward kernel."""
    queries = WARPGROUPS * ROWS
    elements = queries * head_dim + stages * keys * (head_dim + value_dim) + own_output * queries * value_dim
    return 2 * elements + BARRIERS


def shares_keys(head_dim: int, value_dim: int) -> bool:
    """Whether dK and dV of 64 keys are too many registers for one warpgroup: two make one each then."""
    return head_dim + value_dim > 256


def fewer_keys(key_tile: tuple[int, int, int], head_dim: int, value_dim: int) -> tuple[int, int, int]:
    """The key tile of the query gradient: half of it, where two stages would not fit in shared memory."""
    if head_dim + value_dim <= 448:
        return key_tile
    axis = max(range(3), key=lambda a: key_tile[a])
    halved = [n // 2 if a == axis else n for a, n in enumerate(key_tile)]
    return halved[0], halved[1], halved[2]


def backward_shared(head_dim: int, value_dim: int, stages: int) -> int:
    """Bytes of shared memory of the backward, of the pass that takes more."""
    pair = head_dim + value_dim
    rows = 2 * ROWS * 4  # log-sum-exp and delta of a tile of queries
    keys = 2 * pair * ROWS * ((1 if shares_keys(head_dim, value_dim) else WARPGROUPS) + stages) + stages * rows
    queries = 2 * pair * (WARPGROUPS * ROWS + stages * prod(fewer_keys((1, 1, ROWS), head_dim, value_dim)))
    return max(keys, queries) + BARRIERS


# --- what is tried -----------------------------------------------------------------------------------------


def forward_configs(problem: Problem) -> list[ForwardConfig]:
    """Tilings of the forward, best guess first."""
    costs = {config: _cost(problem, config) for config in _likely(problem, _forward_candidates(problem))}
    best = sorted(costs, key=lambda c: (costs[c], c.query_tile, c.key_tile, c.split, c.paired, c.heads))[:KEPT]
    return [replace(c, persistent=_tiles_each(problem, c, costs[c]) <= PERSISTENT_TILES) for c in best]


def backward_configs(problem: Problem) -> list[BackwardConfig]:
    """Tilings of the backward, best guess first: tiles of 64 queries and of 64 keys, in both of its passes."""
    costs = {config: _scores(problem, config) for config in _likely(problem, _backward_candidates(problem))}
    return sorted(costs, key=lambda c: (costs[c], c.query_tile, c.key_tile, c.split))[:KEPT]


def one_pass_configs(problem: Problem) -> list[BackwardConfig]:
    """Tilings of the one-pass backward, best guess first; none where its kernel does not take the problem."""
    if not ONE_PASS_FROM <= max(problem.head_dim, problem.value_dim) <= max(ONE_PASS_DIMS):
        return []
    if problem.scale < LEAST_SCALE:  # sums begin with log-sum-exps divided by it
        return []
    stages = ONE_PASS_DIMS[kernel_dims(problem, one_pass=True)[0]]
    candidates = _likely(problem, _backward_candidates(problem, stages, one_pass=True))
    costs = {config: _one_pass_cost(problem, config) for config in candidates}
    return sorted(costs, key=lambda c: (costs[c], c.query_tile, c.key_tile, c.split))[:KEPT]


def boxes_of(tokens: int, rank: int) -> Iterator[tuple[int, ...]]:
    """Boxes of `tokens` tokens (a power of two) over `rank` axes, whose sides are powers of two."""
    sides = [1 << i for i in range(tokens.bit_length())]
    for x in product(sides, repeat=rank - 1):
        rest = tokens
        for n in x:
            rest //= n
        if rest:
            yield (*x, rest)


def _forward_candidates(problem: Problem) -> Iterator[ForwardConfig]:
    d, dv = kernel_dims(problem)
    keys = 128 if max(d, dv) <= 128 else 64
    stages = max(n for n in STAGES if n == 2 or forward_shared(keys, d, dv, n, True) <= SHARED_MEMORY)
    for paired in (False, True) if d == dv == piece(d) and keys == 2 * CHUNK else (False,):
        for heads in _packings(problem):
            boxes = _compact(problem, ROWS // heads), boxes_of(CHUNK if paired else keys, problem.rank)
            for q, k, split in product(*boxes, range(problem.rank)):
                yield ForwardConfig(q, k, split, stages, heads, paired)


def _backward_candidates(
    problem: Problem, stages: int | None = None, one_pass: bool = False
) -> Iterator[BackwardConfig]:
    d, dv = kernel_dims(problem)
    if stages is None:
        stages = max(n for n in (2, BACKWARD_STAGES) if n == 2 or backward_shared(d, dv, n) <= SHARED_MEMORY)
    # TMA moves at least 16 bytes of the log-sum-exp along the last axis.
    every = list(boxes_of(ROWS, problem.rank))
    queries = [box for box in every if box[-1] >= 4] if one_pass else _compact(problem, ROWS, least=4)
    keys = _compact(problem, ROWS) if one_pass else every
    for q, k, split in product(queries, keys, range(problem.rank)):
        yield BackwardConfig(q, k, split, stages, one_pass)


def _compact(problem: Problem, tokens: int, least: int = 1) -> list[tuple[int, ...]]:
    """The boxes of so many tokens that compute the least, a few: by what their windows cover, and by what they cover.

    `least`: along the last axis.
    """
    axes = list(zip(problem.neighborhoods[0].axes, problem.lengths))

    def computed(box: tuple[int, ...]) -> int:
        return prod(_reach(*of, n) * -(-_group(*of) // n) * n for of, n in zip(axes, box))

    return nsmallest(COMPACT, (box for box in boxes_of(tokens, problem.rank) if box[-1] >= least), key=computed)


def _likely(problem: Problem, candidates: Iterator[Config]) -> list[Config]:
    """Of the candidates, those that are counted: the best by what tiles away from the borders walk."""
    axes = list(zip(problem.neighborhoods[0].axes, problem.lengths))
    along: dict[tuple[int, int, int, int | None], float] = {}

    def rough(config: Config) -> float:
        own, step = config.query_tile, config.key_tile
        if isinstance(config, BackwardConfig) and config.one_pass:
            own, step = step, own
        total, passes = _measured(problem, config), config.stages - 1
        if isinstance(config, ForwardConfig):
            total *= prod(step) / config.heads
            passes = prod(own) if config.paired else passes
        elif config.one_pass:
            passes = 0
        for a, of in enumerate(axes):
            aside = passes if a == config.split else None
            key = (a, own[a], step[a], aside)
            if key not in along:
                along[key] = _rough_steps(*of, own[a], step[a], aside)
            total *= along[key]
        return total

    return nsmallest(LIKELY, candidates, key=rough)


def _rough_steps(axis: Axis, length: int, own: int, step: int, passes: int | None) -> float:
    """Steps along an axis of tiles away from the borders; with `passes`, side by side, each passing over so many."""
    walked, pair = -(-_reach(axis, length, own) // step), own
    if passes is not None:
        pair = WARPGROUPS * own
        walked = max(walked, -(-_reach(axis, length, pair) // step) - passes)
    return walked * -(-_group(axis, length) // pair) * pair / own


def _reach(axis: Axis, length: int, tokens: int) -> int:
    """Of a tile of `tokens` along an axis, away from the borders: the keys of its windows, or the queries."""
    assert axis.window is not None
    moved = (tokens - 1) // axis.stride * axis.stride
    return min(_group(axis, length), axis.window + moved)


def _group(axis: Axis, length: int) -> int:
    """Tokens of the longest dilation group."""
    return -(-length // axis.dilation)


def _packings(problem: Problem) -> list[int]:
    """Numbers of query heads that a tile can hold of each token: of one key head, all with one window."""
    if problem.per_head or is_padded(problem):  # a descriptor has no dimension left for them then
        return [1]
    return [h for h in (1, 2, 4, 8, 16) if problem.group_size % h == 0]


# --- how they are ranked -----------------------------------------------------------------------------------


def steps(problem: Problem, config: HopperConfig) -> tuple[float, int]:
    """Of all heads, what the warpgroups do.

    Returns:
        (64 queries, 64 keys) pairs per query tile, partial ones counted as more; and the number of query tiles.
    """
    each = _query_tiles(problem, config)
    rows = each * problem.heads // (config.heads if isinstance(config, ForwardConfig) else 1)
    return _scores(problem, config) / (ROWS * CHUNK) / each, rows * problem.batch


def one_pass_steps(problem: Problem, config: BackwardConfig) -> tuple[float, float]:
    """Steps of 64 queries that all programs of one head take together, and the most that one of them takes."""
    pair = tuple(n * WARPGROUPS if a == config.split else n for a, n in enumerate(config.key_tile))
    neighborhoods = set(problem.neighborhoods)
    steps, longest = 0, 0
    for neighborhood in neighborhoods:
        along = zip(neighborhood.axes, problem.lengths, pair, config.query_tile)
        counted = [count(*each, inverse=True) for each in along]
        steps += prod(axis.steps for axis in counted)
        longest = max(longest, prod(axis.longest for axis in counted))
    return steps / len(neighborhoods), longest


def _one_pass_cost(problem: Problem, config: BackwardConfig) -> float:
    return one_pass_steps(problem, config)[0] * _measured(problem, config)


def _cost(problem: Problem, config: ForwardConfig) -> float:
    return _scores(problem, config) / config.heads * _measured(problem, config)


def _measured(problem: Problem, config: HopperConfig) -> float:
    """What the measured times of tilings were, of what their steps (scores, of one head) say."""
    if isinstance(config, ForwardConfig):
        packed = PACKED_COST if config.heads > 1 else 1.0
        return packed * (SPLIT_LAST_COST if 0 < config.split == problem.rank - 1 else 1.0)
    return FAR_STEPS_COST if config.one_pass and problem.rank == 3 and config.split == 0 else 1.0


def _scores(problem: Problem, config: HopperConfig) -> float:
    """Scores computed, all heads of one neighborhood each, plus what masking them costs, in scores."""
    paired = isinstance(config, ForwardConfig) and config.paired
    passes = None if paired else config.stages - 1  # steps that a warpgroup may pass over in a row
    total = 0.0
    neighborhoods = dict.fromkeys(problem.neighborhoods)  # in order: sums of floats depend on it
    for neighborhood in neighborhoods:
        walked = full = 1
        along = zip(neighborhood.axes, problem.lengths, config.query_tile, config.key_tile)
        for a, each in enumerate(along):
            if a == config.split:
                pairs = count_pairs(*each, passes)
                walked, full = walked * pairs.steps, full * pairs.full
            else:
                walked, full = walked * count(*each).steps, full * full_steps(*each)
        total += walked + MASK_COST * (walked - full)
    total /= len(neighborhoods)
    if paired:  # each of a warpgroup's two lists of chunks is rounded up to pairs
        total = CHUNK_COST * (total + CHUNKS_LOST * _query_tiles(problem, config))
    keys = prod(config.key_tile)
    total *= ROWS * keys
    if problem.additional:
        step = keys * (2 if paired else 1)
        total += _query_tiles(problem, config) * ROWS * -(-problem.additional // step) * step
    return total


def _tiles_each(problem: Problem, config: ForwardConfig, cost: float) -> float:
    """Key tiles per query tile, as costs count them."""
    keys = prod(config.key_tile) * (2 if config.paired else 1)
    return cost * config.heads / (ROWS * keys) / _query_tiles(problem, config)


def _query_tiles(problem: Problem, config: HopperConfig) -> int:
    """Query tiles of all dilation groups of one head, in pairs along the axis that is split."""
    total = 1
    axes = zip(problem.neighborhoods[0].axes, problem.lengths, config.query_tile, config.key_tile)
    for a, (axis, length, tile, step) in enumerate(axes):
        if a == config.split:
            total *= WARPGROUPS * count_pairs(axis, length, tile, step, 0).pairs
        else:
            total *= count(axis, length, tile, step).tiles
    return total
