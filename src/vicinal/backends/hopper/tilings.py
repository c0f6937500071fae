"""Which tilings the Hopper kernels can run, by arithmetic on shared memory, ranked by the work they would do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from vicinal.backends.hopper.layout import three
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import alike, common_interval, key_interval, tiles
from vicinal.problem import Problem
from vicinal.tuning.config import TileConfig

SHARED_MEMORY = 227 * 1024  # bytes a program may use on compute capability 9.0
BARRIERS = 1024  # bytes, generously
ROWS = 64  # queries of a warpgroup: the M of a wgmma
WARPGROUPS = 2
MASK_COST = 0.12  # of a masked tile, in unmasked ones
STAGES = (2, 3, 4)
CHUNK = 64  # keys of a chunk: half a key tile
CHUNKS_LOST = 1.0  # per warpgroup's query tile, by rounding up to pairs
CHUNK_COST = 1.03  # of a tile of two chunks, in tiles of one
SPLIT_LAST_COST = 1.04  # warpgroups side by side along the last axis measured 0.4 to 14% slower than along another
PERSISTENT_TILES = 32  # key tiles per query tile, up to which persistent programs were seen to win
PACKED_COST = 1.03  # so that heads are only packed where that saves more than noise
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

    `variant` is the axis along which warpgroups split ("0" to "2"), then "c" for key tiles of two chunks, each of the
    config's `key_tile`, "h2" and so on for that many query heads of a key head as rows of each token,
    "p" for persistent programs.
    """
    d, dv = problem.head_dim, problem.value_dim
    keys = 128 if max(d, dv) <= 128 else 64
    stages = max(n for n in STAGES if n == 2 or forward_shared(keys, d, dv, n, True) <= SHARED_MEMORY)
    chunks = (False, True) if d == dv == piece(d) and keys == 2 * CHUNK else (False,)
    ranked = sorted(
        (_cost(problem, _Walk(q, k, split, stages, chunked)) * _factor(problem, split, h), q, k, split, chunked, h)
        for h in _packings(problem)
        for chunked in chunks
        for q in boxes_of(ROWS // h, problem.rank)
        for k in boxes_of(CHUNK if chunked else keys, problem.rank)
        for split in range(3 - problem.rank, 3)
    )
    skip = 3 - problem.rank
    configs = []
    for cost, q, k, split, chunked, h in ranked[:KEPT]:
        tiles_each = cost * h / (ROWS * keys) / _warpgroup_tiles(problem, q, split)
        variant = f"{split}{'c' * chunked}{f'h{h}' if h > 1 else ''}{'p' * (tiles_each <= PERSISTENT_TILES)}"
        configs.append(TileConfig(q[skip:], k[skip:], 12, stages, variant))
    return configs


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


def backward_configs(problem: Problem) -> list[TileConfig]:
    """Tilings of the backward, best guess first: tiles of 64 queries and of 64 keys, in both of its passes."""
    d, dv = problem.head_dim, problem.value_dim
    stages = max(n for n in (2, BACKWARD_STAGES) if n == 2 or backward_shared(d, dv, n) <= SHARED_MEMORY)
    ranked = sorted(
        (_cost(problem, _Walk(q, k, split, stages)), q, k, split)
        for q in boxes_of(ROWS, problem.rank)
        if q[2] >= 4  # TMA moves at least 16 bytes of the log-sum-exp along the last axis
        for k in boxes_of(ROWS, problem.rank)
        for split in range(3 - problem.rank, 3)
    )
    skip = 3 - problem.rank
    return [TileConfig(q[skip:], k[skip:], 12, stages, str(split)) for _, q, k, split in ranked[:KEPT]]


def steps(problem: Problem, config: TileConfig) -> tuple[float, int]:
    """Of all heads, what the warpgroups of one of `backward_configs` or `forward_configs` do.

    Returns:
        (64 queries, 64 keys) pairs per query tile, partial ones counted as more; and the number of query tiles.
    """
    queries, keys = three(config.query_tile, 1), three(config.key_tile, 1)
    split = int(config.variant[0])
    walk = _Walk(queries, keys, split, config.stages, "c" in config.variant)
    each = _warpgroup_tiles(problem, queries, split)
    rows = each * problem.heads // heads_together(config)
    return _cost(problem, walk) / (ROWS * CHUNK) / each, rows * problem.batch


def boxes_of(tokens: int, rank: int) -> Iterator[tuple[int, int, int]]:
    """Boxes of `tokens` tokens (a power of two) whose sides are powers of two, over the last `rank` of three axes."""
    sides = [1 << i for i in range(tokens.bit_length())]
    for x in product(sides, repeat=rank - 1):
        rest = tokens
        for n in x:
            rest //= n
        if rest:
            yield three((*x, rest), 1)


@dataclass(frozen=True)
class _Walk:
    """How pairs of warpgroups walk: their query tiles, side by side along `split`, and the key tiles (or chunks)."""

    query_tile: tuple[int, int, int]
    key_tile: tuple[int, int, int]
    split: int
    stages: int
    chunked: bool = False


def _cost(problem: Problem, walk: _Walk) -> float:
    """Scores computed, all heads of one neighborhood each, plus what masking them costs, in scores."""
    total = 0.0
    lengths = three(problem.lengths, 1)
    for neighborhood in set(problem.neighborhoods):
        axes = (Axis(1),) * (3 - problem.rank) + neighborhood.axes
        walked = full = 1
        for a in range(3):
            passes = 0 if a != walk.split else CHUNK if walk.chunked else walk.stages - 1
            n, f = _axis_tiles(axes[a], lengths[a], walk.query_tile[a], walk.key_tile[a], a == walk.split, passes)
            walked *= n
            full *= f
        total += walked + MASK_COST * (walked - full)
    total /= len(set(problem.neighborhoods))
    if walk.chunked:  # each of a warpgroup's two lists of chunks is rounded up to pairs
        total = CHUNK_COST * (total + CHUNKS_LOST * _warpgroup_tiles(problem, walk.query_tile, walk.split))
    return total * ROWS * prod(walk.key_tile)


def heads_together(config: TileConfig) -> int:
    """Query heads that are rows of each token of a config's query tile."""
    found = re.search(r"h(\d+)", config.variant)
    return int(found[1]) if found else 1


def _packings(problem: Problem) -> list[int]:
    """Numbers of query heads that a tile can hold of each token: of one key head, all with one window."""
    if problem.per_head:
        return [1]
    return [h for h in (1, 2, 4, 8, 16) if problem.group_size % h == 0]


def _factor(problem: Problem, split: int, together: int = 1) -> float:
    """Of the cost of one head: what the side by side, and packing that many heads into a tile, make of it."""
    packed = PACKED_COST / together if together > 1 else 1.0
    return packed * (SPLIT_LAST_COST if split == 2 and problem.rank > 1 else 1.0)


def _warpgroup_tiles(problem: Problem, query_tile: tuple[int, int, int], split: int) -> int:
    """Query tiles of all dilation groups of one head, in pairs along `split`."""
    lengths = three(problem.lengths, 1)
    axes = (Axis(1),) * (3 - problem.rank) + problem.neighborhoods[0].axes
    count = WARPGROUPS
    for a in range(3):
        extent = query_tile[a] * (WARPGROUPS if a == split else 1)
        count *= sum(kind.count * -(-kind.length // extent) for kind in alike(axes[a], lengths[a]))
    return count


@lru_cache(maxsize=65536)
def _axis_tiles(axis: Axis, length: int, query_tile: int, key_tile: int, split: bool, passes: int) -> tuple[int, int]:
    """Along an axis: (query tile, key tile) pairs that are walked, and those of them that need no mask.

    With `split`, both query tiles of a pair of warpgroups are counted. `passes` is how many key tiles in a row a
    warpgroup may pass over; `CHUNK` stands for as many as the other one passes over too.
    """
    walked = full = 0
    warpgroups = WARPGROUPS if split else 1
    for kind in alike(axis, length):
        n = kind.length
        for start, stop in tiles(n, query_tile * warpgroups):
            first, last = key_interval(axis, n, (start, stop))
            line = -(-(last - first) // key_tile)
            own = [
                (min(start + w * query_tile, n - 1), min(start + (w + 1) * query_tile, n)) for w in range(warpgroups)
            ]
            own = [(x, max(y, x + 1)) for x, y in own]
            skipped = [0]
            if split:
                skipped = [
                    line - -(-(key_interval(axis, n, own[0])[1] - first) // key_tile),
                    (key_interval(axis, n, own[1])[0] - first) // key_tile,
                ]
                skipped = [min(skipped)] * 2 if passes == CHUNK else [min(x, passes) for x in skipped]
            for mine, passed in zip(own, skipped):
                low, high = common_interval(axis, n, mine)
                walked += kind.count * (line - passed)
                full += kind.count * max((high - first) // key_tile - -(-(low - first) // key_tile), 0)
    return walked, full
