"""Which tilings the Hopper kernels can run, by arithmetic on shared memory, ranked by the work they would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod

from vicinal.backends.gpu.hardware import ARCHITECTURES
from vicinal.backends.hopper.config import BackwardConfig, ForwardConfig, HopperConfig
from vicinal.geometry.count import count, count_pairs, full_steps
from vicinal.problem import Problem

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
ONE_PASS_DIMS = {64: 4, 128: 2}  # head dims, and slots of its rings: powers of two take fewer registers
KEPT = 8  # configs listed


# --- what fits ---------------------------------------------------------------------------------------------


def piece(columns: int) -> int:
    """Columns per buffer: all of them, or the largest power of two that divides them (tensors in Gluon are that)."""
    return columns & -columns


def forward_shared(keys: int, head_dim: int, value_dim: int, stages: int, own_output: bool) -> int:
    """Bytes of shared memory of the forward kernel."""
    queries = WARPGROUPS * ROWS
    elements = queries * head_dim + stages * keys * (head_dim + value_dim) + own_output * queries * value_dim
    return 2 * elements + BARRIERS


def shares_keys(head_dim: int) -> bool:
    """Whether dK and dV of 64 keys are too many registers for one warpgroup: two make one each then."""
    return head_dim > 128


def fewer_keys(key_tile: tuple[int, int, int], head_dim: int) -> tuple[int, int, int]:
    """The key tile of the query gradient: half of it, where two stages would not fit in shared memory."""
    if head_dim <= 192:
        return key_tile
    axis = max(range(3), key=lambda a: key_tile[a])
    halved = [n // 2 if a == axis else n for a, n in enumerate(key_tile)]
    return halved[0], halved[1], halved[2]


def backward_shared(head_dim: int, value_dim: int, stages: int) -> int:
    """Bytes of shared memory of the backward, of the pass that takes more."""
    pair = head_dim + value_dim
    rows = 2 * ROWS * 4  # log-sum-exp and delta of a tile of queries
    keys = 2 * pair * ROWS * ((1 if shares_keys(head_dim) else WARPGROUPS) + stages) + stages * rows
    queries = 2 * pair * (WARPGROUPS * ROWS + stages * prod(fewer_keys((1, 1, ROWS), head_dim)))
    return max(keys, queries) + BARRIERS


# --- what is tried -----------------------------------------------------------------------------------------


def forward_configs(problem: Problem) -> list[ForwardConfig]:
    """Tilings of the forward, best guess first."""
    costs = {config: _cost(problem, config) for config in _forward_candidates(problem)}
    best = sorted(costs, key=lambda c: (costs[c], c.query_tile, c.key_tile, c.split, c.paired, c.heads))[:KEPT]
    return [replace(c, persistent=_tiles_each(problem, c, costs[c]) <= PERSISTENT_TILES) for c in best]


def backward_configs(problem: Problem) -> list[BackwardConfig]:
    """Tilings of the backward, best guess first: tiles of 64 queries and of 64 keys, in both of its passes."""
    costs = {config: _scores(problem, config) for config in _backward_candidates(problem)}
    return sorted(costs, key=lambda c: (costs[c], c.query_tile, c.key_tile, c.split))[:KEPT]


def one_pass_configs(problem: Problem) -> list[BackwardConfig]:
    """Tilings of the one-pass backward, best guess first; none where its kernel does not take the head dims."""
    if problem.head_dim != problem.value_dim or problem.head_dim not in ONE_PASS_DIMS:
        return []
    stages = ONE_PASS_DIMS[problem.head_dim]
    candidates = {replace(c, stages=stages, one_pass=True) for c in _backward_candidates(problem)}
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
    d, dv = problem.head_dim, problem.value_dim
    keys = 128 if max(d, dv) <= 128 else 64
    stages = max(n for n in STAGES if n == 2 or forward_shared(keys, d, dv, n, True) <= SHARED_MEMORY)
    for paired in (False, True) if d == dv == piece(d) and keys == 2 * CHUNK else (False,):
        for heads in _packings(problem):
            boxes = boxes_of(ROWS // heads, problem.rank), boxes_of(CHUNK if paired else keys, problem.rank)
            for q, k, split in product(*boxes, range(problem.rank)):
                yield ForwardConfig(q, k, split, stages, heads, paired)


def _backward_candidates(problem: Problem) -> Iterator[BackwardConfig]:
    d, dv = problem.head_dim, problem.value_dim
    stages = max(n for n in (2, BACKWARD_STAGES) if n == 2 or backward_shared(d, dv, n) <= SHARED_MEMORY)
    for q, k in product(boxes_of(ROWS, problem.rank), repeat=2):
        if q[-1] >= 4:  # TMA moves at least 16 bytes of the log-sum-exp along the last axis
            yield from (BackwardConfig(q, k, split, stages) for split in range(problem.rank))


def _packings(problem: Problem) -> list[int]:
    """Numbers of query heads that a tile can hold of each token: of one key head, all with one window."""
    if problem.per_head:
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
    """Steps, and what was measured that they do not say."""
    steps, _ = one_pass_steps(problem, config)
    return steps * (FAR_STEPS_COST if problem.rank == 3 and config.split == 0 else 1.0)


def _cost(problem: Problem, config: ForwardConfig) -> float:
    """Scores of one head, and what was measured that they do not say."""
    packed = PACKED_COST / config.heads if config.heads > 1 else 1.0
    split = SPLIT_LAST_COST if 0 < config.split == problem.rank - 1 else 1.0
    return _scores(problem, config) * (packed * split)


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
    return total * ROWS * prod(config.key_tile)


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
