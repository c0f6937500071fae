"""Which tilings the Hopper kernels can run, by arithmetic on shared memory, ranked by the work they would do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from math import prod
from operator import itemgetter

from vicinal.backends.gpu.hardware import ARCHITECTURES
from vicinal.backends.gpu.shapes import Kind, Shape, every_shape, kind_of, sampled_walks, tile_shapes
from vicinal.backends.hopper.config import BackwardConfig, ForwardConfig, HopperConfig
from vicinal.backends.hopper.kernels.arguments import block_of
from vicinal.backends.hopper.layout import three
from vicinal.geometry.walks import TILES, Walks
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
UNITS = (1, 2, 16)  # of most blocks of queries along three axes
ALONE = 0.8  # of a step of the one-pass backward in which only one of the two warpgroups has scores
FAR_STEPS_COST = 1.25  # of walks that go fastest along the first of three axes: what they read has left the cache
PERSISTENT_TILES = 32  # key tiles per query tile, up to which persistent programs were seen to win
PACKED_COST = 1.03  # so that heads are only packed where that saves more than noise
BACKWARD_STAGES = 3
HEAD_DIMS = (32, 64, 96, 128, 192, 256)  # that kernels are compiled for
ONE_PASS_DIMS = {64: 4, 128: 2}  # likewise, and slots of its rings: powers of two take fewer registers
ONE_PASS_FROM = 33  # head dims: below, what fills 64 columns would be for nothing
LEAST_SCALE = 1e-30  # below, scores are scaled before they are masked: infinity times it may be no infinity
KEPT = 8  # configs listed
WIDE = 4  # tokens along the last axis: TMA moves at least 16 bytes of the log-sum-exp
COMPACT = 4  # shapes of a warpgroup's own tiles that are tried
LIKELY = 6  # tilings whose walks are looked at
MOST_HEADS = 16  # in a tile


# --- what fits ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def kernel_dims(problem: Problem, one_pass: bool = False) -> tuple[int, int]:
    """Head dim and value dim of the kernels that run a problem: its own, or the next that there are."""
    if one_pass:
        both = next(d for d in ONE_PASS_DIMS if d >= max(problem.head_dim, problem.value_dim))
        return both, both
    return _kernel_dim(problem.head_dim), _kernel_dim(problem.value_dim)


@cache
def _kernel_dim(dim: int) -> int:
    return next(n for n in HEAD_DIMS if n >= dim)


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


def forward_configs(problem: Problem, most: int = KEPT) -> list[ForwardConfig]:
    """Tilings of the forward, best guess first; so many of them."""
    costed = [(_forward_cost(problem, *fields), fields) for fields in _forward_candidates(problem)]
    costed.sort(key=itemgetter(0))
    return [ForwardConfig(*fields, _is_persistent(problem, cost, *fields)) for cost, fields in costed[:most]]


def backward_configs(problem: Problem, most: int = KEPT) -> list[BackwardConfig]:
    """Tilings of the backward, best guess first: tiles of 64 queries and of 64 keys, in both of its passes."""
    d, dv = kernel_dims(problem)
    stages = max(n for n in (2, BACKWARD_STAGES) if n == 2 or backward_shared(d, dv, n) <= SHARED_MEMORY)
    tried = _tried(kind_of(problem, False), ROWS, ROWS, stages - 1, least=WIDE)
    costed = [(_scores(problem, *own, stages - 1), own) for own in tried]
    costed.sort(key=itemgetter(0))
    return [BackwardConfig(*own, stages) for _, own in costed[:most]]


def one_pass_configs(problem: Problem, most: int = KEPT) -> list[BackwardConfig]:
    """Tilings of the one-pass backward, best guess first; none where its kernel does not take the problem."""
    if not ONE_PASS_FROM <= max(problem.head_dim, problem.value_dim) <= max(ONE_PASS_DIMS):
        return []
    if problem.scale < LEAST_SCALE:  # sums begin with log-sum-exps divided by it
        return []
    stages = ONE_PASS_DIMS[kernel_dims(problem, one_pass=True)[0]]
    tried = _tried(kind_of(problem, True), ROWS, ROWS, None, least_step=WIDE)
    costed = [(_one_pass_cost(problem, step, tile, split), (step, tile, split)) for tile, step, split in tried]
    costed.sort(key=itemgetter(0))
    return [BackwardConfig(*own, stages, one_pass=True) for _, own in costed[:most]]


def _forward_candidates(problem: Problem) -> Iterator[tuple[Shape, Shape, int, int, int, bool]]:
    """What `ForwardConfig`s are made of."""
    d, dv = kernel_dims(problem)
    keys = 128 if max(d, dv) <= 128 else 64
    stages = max(n for n in STAGES if n == 2 or forward_shared(keys, d, dv, n, True) <= SHARED_MEMORY)
    kind = kind_of(problem, False)
    may_pair = d == dv == piece(d) and keys == 2 * CHUNK and not problem.has_key_mask
    for paired in (False, True) if may_pair else (False,):
        for heads in _packings(problem):
            passes = ROWS // heads if paired else stages - 1
            rows, columns = ROWS // heads, CHUNK if paired else keys
            tried = _tried(kind, rows, columns, passes)
            if _is_dense(problem):  # no shape computes less; whole rows measured 2.5% faster at head dim 64
                first = (1,) * (problem.rank - 1)
                tried = [((*first, rows), (*first, columns), 0), *tried]
            for own in tried:
                yield *own, stages, heads, paired


def _is_dense(problem: Problem) -> bool:
    """Whether every query has all keys."""
    axes = zip(problem.neighborhoods[0].axes, problem.lengths)
    return not problem.is_part and all(a.window is not None and a.window >= n and not a.causal for a, n in axes)


@lru_cache(maxsize=1024)
def _tried(
    kind: Kind, rows: int, columns: int, passes: int | None, least: int = 1, least_step: int = 1
) -> list[tuple[Shape, Shape, int]]:
    """Shapes of a tile, shapes of a step, and the axis along which two lie side by side: those that compute the least.

    Of the first neighborhood, borders apart; tiles are of queries, or of keys if the kind is.

    Args:
        kind: see `vicinal.backends.gpu.shapes.kind_of`.
        passes: steps that each of the two may pass over; None: both walk all, from multiples of a block.
        least, least_step: tokens along the last axis of a tile, of a step.
    """
    axes = kind[0][1]
    units, steps = UNITS[-len(axes) :], every_shape(columns, len(axes), least_step)
    found = []
    tiles = [tile for _, tile in tile_shapes(kind, rows, columns) if tile[-1] >= least]
    for tile in tiles[:COMPACT]:
        if passes is None:
            sides = list(zip(axes, tile, units))
            alone = [_aligned(axis, n, columns, unit) for axis, n, unit in sides]
            beside = [_aligned_pair(axis, n, columns, unit) for axis, n, unit in sides]
        else:
            alone = [axis.middle[n, columns] for axis, n in zip(axes, tile)]
            beside = [_side_by_side(axis, n, columns, passes) for axis, n in zip(axes, tile)]
        counts = [axis.tiles[n].number for axis, n in zip(axes, tile)]
        every = prod(counts)
        for split, (cost, step) in enumerate(steps.the_cheapest(alone, beside)):
            pairs = every // counts[split] * axes[split].tiles[WARPGROUPS * tile[split]].number
            found.append((pairs * cost, (tile, step, split)))
    found.sort(key=itemgetter(0))
    return [own for _, own in found[:LIKELY]]


@lru_cache(maxsize=4096)
def _side_by_side(axis: Walks, tile: int, columns: int, passes: int) -> list[int]:
    """Steps of 1, 2, 4, ... `columns` keys of a warpgroup whose tile lies beside another's."""
    aside = axis.tiles[WARPGROUPS * tile].reach - axis.tiles[tile].reach  # keys that only the other needs
    both = axis.middle[WARPGROUPS * tile, columns]
    passed = [aside >> i for i in range(len(both))]
    return [n - (own if own < passes else passes) for n, own in zip(both, passed)]


@lru_cache(maxsize=4096)
def _aligned(axis: Walks, tile: int, columns: int, unit: int) -> list[int]:
    """Hundredths of steps of 1, 2, 4, ... `columns` queries, from multiples of `unit`, or of themselves."""
    return [round(100 * n) for n in axis.aligned[tile, TILES[: columns.bit_length()], unit]]


@lru_cache(maxsize=4096)
def _aligned_pair(axis: Walks, tile: int, columns: int, unit: int) -> list[int]:
    """Likewise of two tiles side by side."""
    pair = _aligned(axis, WARPGROUPS * tile, columns, unit)
    return [round(together(*each)) for each in zip(pair, _aligned(axis, tile, columns, unit))]


def _packings(problem: Problem) -> list[int]:
    """Numbers of query heads that a tile can hold of each token: one, or as many as share a key head and a window.

    Of padded heads, one: a descriptor has no dimension left for them.
    """
    most = problem.group_size & -problem.group_size
    if problem.has_key_mask:  # its bits are of tiles of 64 tokens
        return [1]
    return [1] if problem.per_head or is_padded(problem) or most == 1 else [1, min(most, MOST_HEADS)]


# --- how they are ranked -----------------------------------------------------------------------------------


def steps(problem: Problem, config: HopperConfig) -> tuple[float, int]:
    """Of all heads, what the warpgroups do.

    Returns:
        (64 queries, 64 keys) pairs per query tile, partial ones counted as more; and the number of query tiles.
    """
    each = _query_tiles(problem, config.query_tile, config.split)
    heads, paired = (config.heads, config.paired) if isinstance(config, ForwardConfig) else (1, False)
    passes = None if paired else config.stages - 1
    scores = _scores(problem, config.query_tile, config.key_tile, config.split, passes)
    return scores / (ROWS * CHUNK) / each, each * problem.heads // heads * problem.batch


def pairs_of(axes: Sequence[Walks], tile: Shape, split: int) -> int:
    """Pairs of tiles, in all dilation groups."""
    return prod([axis.tiles[n].number for axis, n in zip(axes, doubled(tile, split))])


def walked(axes: Sequence[Walks], tile: Shape, step: Shape) -> tuple[float, int]:
    """Steps of a tile, on average and at most."""
    mean, longest = 1.0, 1
    for axis, n, taken in zip(axes, tile, step):
        walk = axis.walk[n, taken]
        mean, longest = mean * walk.steps, longest * walk.longest
    return mean, longest


def doubled(tile: Shape, split: int) -> Shape:
    """Two tiles side by side as one."""
    return tuple([WARPGROUPS * n if a == split else n for a, n in enumerate(tile)])


def together(both: float, own: float) -> float:
    """Steps of two warpgroups that walk `both`, where each has scores in `own` of them."""
    return both - (1 - ALONE) * 2 * (both - own)


def one_pass_steps(problem: Problem, query_tile: Shape, key_tile: Shape, split: int) -> tuple[float, float]:
    """Steps of 64 queries that all programs of one head take together, and the most that one of them takes."""
    pair, units = doubled(key_tile, split), _units(query_tile)
    total, longest, heads = 0.0, 0, 0
    for count, axes in sampled_walks(problem, True):
        mean, most = 1.0, 1
        for a, (axis, tile, step, unit) in enumerate(zip(axes, pair, query_tile, units)):
            (steps,) = axis.aligned[tile, (step,), unit]
            mean *= together(steps, *axis.aligned[key_tile[a], (step,), unit]) if a == split else steps
            most *= axis.walk[tile, step].longest
        total += count * mean * pairs_of(axes, key_tile, split)
        longest, heads = max(longest, most), heads + count
    return total / heads, longest


@lru_cache(maxsize=256)
def _units(step: Shape) -> Shape:
    """Of what along each axis walks of steps of this shape begin at multiples."""
    return block_of(three(step, 1))[-len(step) :]


def _one_pass_cost(problem: Problem, query_tile: Shape, key_tile: Shape, split: int) -> float:
    """Steps, with what measured times of tilings were of what steps say."""
    far = FAR_STEPS_COST if problem.rank == 3 and split == 0 else 1.0
    return one_pass_steps(problem, query_tile, key_tile, split)[0] * far


def _forward_cost(
    problem: Problem, tile: Shape, step: Shape, split: int, stages: int, heads: int, paired: bool
) -> float:
    """Likewise, in scores of one head."""
    packed = PACKED_COST if heads > 1 else 1.0
    aside = SPLIT_LAST_COST if 0 < split == problem.rank - 1 else 1.0
    return _scores(problem, tile, step, split, None if paired else stages - 1) / heads * (packed * aside)


def _scores(problem: Problem, tile: Shape, step: Shape, split: int, passes: int | None) -> float:
    """Scores computed, of one head, plus what masking them costs, in scores.

    `passes`: steps that a warpgroup may pass over in a row; None where steps are two chunks, and any may be.
    """
    total, all_heads, first = 0.0, 0, 0  # `first`: query tiles of a head of the first kind
    for heads, axes in sampled_walks(problem, False):
        steps, full, tiles = 1.0, 1.0, WARPGROUPS
        for a, (axis, n, taken) in enumerate(zip(axes, tile, step)):
            number, each, _, own_full = axis.walk[n, taken]
            if a == split:
                number, each = axis.tiles[WARPGROUPS * n].number, axis.pair[n, taken, passes]
            steps, full, tiles = steps * each, full * own_full, tiles * number
        total += heads * tiles * steps * (1 + MASK_COST * (1 - full))
        all_heads, first = all_heads + heads, first or tiles
    total /= all_heads
    if passes is None:  # each of a warpgroup's two lists of chunks is rounded up to pairs
        total = CHUNK_COST * (total + CHUNKS_LOST * first)
    keys = prod(step)
    total *= ROWS * keys
    if problem.additional:
        more = keys * (2 if passes is None else 1)
        total += first * ROWS * -(-problem.additional // more) * more
    return total


def _is_persistent(
    problem: Problem, cost: float, tile: Shape, step: Shape, split: int, stages: int, heads: int, paired: bool
) -> bool:
    """Whether key tiles per query tile, as costs count them, are few."""
    keys = prod(step) * (2 if paired else 1)
    return cost * heads / (ROWS * keys) / _query_tiles(problem, tile, split) <= PERSISTENT_TILES


def _query_tiles(problem: Problem, tile: Shape, split: int) -> int:
    """Query tiles of all dilation groups of one head, in pairs along the axis that is split."""
    _, axes = sampled_walks(problem, False)[0]
    return WARPGROUPS * pairs_of(axes, tile, split)
