"""Tilings of the Triton kernels, ranked by an estimate of their time: arithmetic, no table, no device work.

A tiling costs what it computes (`vicinal.geometry.work`: whole tiles, not only useful scores) and moves. Per step (one
query tile against one key tile) a multiprocessor spends cycles on issuing instructions, on exponentials, on matrix
products and on reading the key tile through L2; resident programs, as many as registers and shared memory let in,
overlap them and fill each other's latencies. The constants are fits to 603 timings on an H200 (16 problems, 3 kernels;
`docs/performance.md`): only ratios between tilings matter. The register estimates are fits to what ptxas 12.8 reports,
and `tests/kernels/triton/test_compile.py` guards them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from math import ceil, prod
from typing import Literal

import torch

from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.work import computed_scores
from vicinal.problem import Problem
from vicinal.tuning.config import TileConfig

Tile = tuple[int, ...]
Pass = Literal["forward", "query", "key_value"]  # the kernels that take tilings

# By rows of the query tile. Never 8 for 64 rows: slow, and Triton 3.6 compiles float32 products of 16 columns wrongly.
WARPS = {16: (1, 4), 32: (1, 2, 4, 8), 64: (2, 4), 128: (4, 8)}
KEY_TILES = (16, 32, 64, 128)
STAGES = {1: (2,), 2: (2, 3), 3: (2, 3)}  # by rank: Triton 3.6 leaves a loop along one axis unpipelined at 3
LISTED = 24  # tilings returned, at most

REGISTERS = 65536  # per multiprocessor
MOST_REGISTERS = 262  # per thread, estimated: a few bytes of spills cost less than smaller tiles
THREADS = 2048  # per multiprocessor
PROGRAMS = 32  # likewise
CLOCK = 1.7e9  # cycles per second, of the fit
LAUNCH = 3e-6  # seconds, for a kernel to start and end
ISSUES = 4.0  # instructions per cycle
EXPONENTIALS = 16.0  # per cycle
L2_BYTES = 60.0  # per cycle and multiprocessor, and L1 helps
WARPGROUP_FLOPS = 4200.0  # matrix FLOPs per cycle reached with 16-bit operands, by a warpgroup's instructions
WARP_FLOPS = 1260.0  # likewise, by a single warp's
SPLIT = 3.8  # products take so much longer where warpgroups share 64 rows
NARROW = 0.33  # warpgroups' products slow down by this power of 64 / columns below 64
OVERLAP = 0.45  # of what is not the bottleneck, what remains beside it in a lone program
STEP_INSTRUCTIONS = 15.0  # per warp and step, besides those per score
PROGRAM_INSTRUCTIONS = 690.0  # per warp and program
MASK_INSTRUCTIONS = 5.3  # per score of a partial tile
STEP_LATENCY = 570.0  # cycles of a step that other programs may fill
PROGRAM_LATENCY = 3900.0  # likewise, of a program's start and end


@dataclass(frozen=True)
class Kernel:
    """What one kernel does with a tile.

    Attributes:
        products: matrix products of width head_dim and value_dim per step.
        instructions: per score.
        registers: fits of registers per thread (per accumulator, per score, fixed), with warpgroup instructions.
        registers_without: the same with a single warp's instructions.
        demand: fits of what a single warp's instructions make a thread hold (per accumulator, per score, per element of
            the key tile, fixed): beyond the registers there are, it is spilled.
        latency: of a step, by number of stages, in units of STEP_LATENCY.
    """

    products: tuple[int, int]
    instructions: float
    registers: tuple[float, float, float]
    registers_without: tuple[float, float, float]
    demand: tuple[float, float, float, float]
    latency: dict[int, float]


KERNELS: dict[Pass, Kernel] = {
    "forward": Kernel((1, 1), 6.4, (1.4, 1.5, 52), (2.2, 2.6, 30), (2.2, 2.6, 0.0, 30), {2: 0.96, 3: 0.96}),
    "query": Kernel((2, 1), 9.4, (1.8, 2.1, 26), (2.2, 1.7, 58), (2.2, 1.7, 0.3, 58), {2: 1.14, 3: 0.58}),
    "key_value": Kernel((2, 2), 5.0, (1.2, 4.2, 38), (0.9, 3.2, 90), (1.0, 1.95, 0.35, 90), {2: 1.79, 3: 1.57}),
}


@dataclass(frozen=True)
class Gpu:
    """What of a GPU bounds a tiling: bytes of shared memory per program; whether warpgroups multiply (Hopper on)."""

    shared: int
    warpgroups: bool
    processors: int


def tilings(problem: Problem, direction: Literal["forward", "backward"]) -> list[TileConfig]:
    """Valid tilings, the cheapest first, never empty.

    A backward tiling is of the query gradient's kernel; its `variant` is the key and value gradients' (`spell`).
    """
    if direction == "forward":
        return list(_ranked(problem, "forward"))
    query, key_value = _ranked(problem, "query"), _ranked(problem, "key_value")
    pairs = sorted((i + j, i, j) for i in range(len(query)) for j in range(len(key_value)))[:LISTED]
    return [_with_variant(query[i], spell(key_value[j])) for _, i, j in pairs]


def spell(config: TileConfig) -> str:
    """A tiling as a short string, for `TileConfig.variant`: `8x16/4x8/8/2`, that is tiles, warps and stages."""
    tiles = ("x".join(map(str, t)) for t in (config.query_tile, config.key_tile))
    return "/".join((*tiles, str(config.warps), str(config.stages)))


def read(variant: str) -> TileConfig:
    """The inverse of `spell`.

    Raises:
        ValueError: not such a string.
    """
    query, key, warps, stages = variant.split("/")
    tile = [tuple(int(n) for n in t.split("x")) for t in (query, key)]
    return TileConfig(tile[0], tile[1], int(warps), int(stages))


@dataclass(frozen=True)
class Estimate:
    """What a tiling needs of a multiprocessor, and what it costs."""

    registers: float  # per thread
    shared: int  # bytes per program
    cycles: float  # of the whole problem, on all multiprocessors together


def estimate(problem: Problem, kernel: Pass, config: TileConfig) -> Estimate:
    """The estimate for one kernel. For `key_value` tiles, `query_tile` is the program's tile of keys."""
    gpu, what = gpu_of(problem), KERNELS[kernel]
    rows, columns, threads = prod(config.query_tile), prod(config.key_tile), 32 * config.warps
    d, dv, size = _padded(problem.head_dim), _padded(problem.value_dim), problem.dtype.itemsize
    scores = rows * columns / threads
    width = {"forward": dv, "query": d, "key_value": d + dv}[kernel]
    accumulators = rows * width / threads
    together = gpu.warpgroups and rows >= 64 and config.warps >= 4
    per_accumulator, per_score, fixed = what.registers if together else what.registers_without
    registers = per_accumulator * accumulators + per_score * scores + fixed
    if not together:
        per_element = (accumulators, scores, columns * (d + dv) / threads, 1.0)
        demand = sum(a * b for a, b in zip(what.demand, per_element))
        registers = max(registers, demand) if demand > MOST_REGISTERS else registers
    registers += 0 if gpu.warpgroups else 30
    registers += scores if problem.has_rpb else 0
    resident = rows * (d if kernel == "forward" else d + dv) * size
    shared = resident + config.stages * columns * ((d + dv) * size + (8 if kernel == "key_value" else 0))
    if size == 4:  # operands are split into parts of TF32, in registers and in shared memory
        registers += 0.7 * per_score * scores + (2.0 * rows + 1.5 * columns) * (d + dv) / threads
        shared = int(1.8 * shared)

    at_once = min(REGISTERS / (min(max(registers, 32), 255) * threads), gpu.shared / shared, THREADS / threads)
    at_once = max(1, min(int(at_once), PROGRAMS))
    flops = (WARPGROUP_FLOPS if together else WARP_FLOPS) * (1.0 if size == 2 else 0.15)
    products = 2 * rows * columns * (what.products[0] * d + what.products[1] * dv) / flops
    if together and columns < 64:
        products *= (64 / columns) ** NARROW
    per_score = what.instructions + MASK_INSTRUCTIONS * (1 - _full_fraction(problem, config))
    rescaled = accumulators if kernel == "forward" else 0
    issue = config.warps * (scores * per_score + rescaled + STEP_INSTRUCTIONS) / ISSUES
    if rows < 16 * config.warps:
        products, issue = products * SPLIT, issue * SPLIT**0.5
    parts = [products, issue, rows * columns / EXPONENTIALS, columns * (d + dv) * size / L2_BYTES]
    busy = max(parts) + OVERLAP * (sum(parts) - max(parts)) / at_once**0.9
    latency = STEP_LATENCY * what.latency[config.stages] * (1.3 if config.warps == 8 else 1.0)
    step = busy + latency / at_once
    ends = PROGRAM_LATENCY / at_once + config.warps * PROGRAM_INSTRUCTIONS / ISSUES

    cycles = 0.0
    for neighborhood, heads in _sampled(problem):
        tiles = _tiles(neighborhood, problem.lengths, config.query_tile)
        computed = computed_scores(neighborhood, problem.lengths, config.query_tile, config.key_tile)
        steps = computed / (rows * columns * tiles) + ceil(problem.additional / columns)
        slots = gpu.processors * at_once
        cycles += ceil(problem.batch * heads * tiles / slots) * slots * (steps * step + ends)
    return Estimate(registers, shared, cycles)


def seconds(problem: Problem, direction: Literal["forward", "backward"]) -> float:
    """An estimate of the time of the tilings listed first; against another backend's, only their ratio matters."""
    kernels: tuple[Pass, ...] = ("forward",) if direction == "forward" else ("query", "key_value")
    cycles = sum(estimate(problem, kernel, _ranked(problem, kernel)[0]).cycles for kernel in kernels)
    return cycles / gpu_of(problem).processors / CLOCK + LAUNCH * len(kernels)


def gpu_of(problem: Problem) -> Gpu:
    """The GPU of the problem; an H200 where tensors are not on one."""
    if problem.device.type != "cuda":
        return Gpu(227 * 1024, True, 132)
    properties = torch.cuda.get_device_properties(problem.device)
    shared = int(getattr(properties, "shared_memory_per_block_optin", 0)) or 64 * 1024
    warpgroups = torch.version.hip is None and properties.major in (9, 10)
    return Gpu(shared, warpgroups, properties.multi_processor_count)


@lru_cache(maxsize=1024)
def _ranked(problem: Problem, kernel: Pass) -> tuple[TileConfig, ...]:
    """Tilings that fit, the cheapest first; if none is expected to fit, the one with the fewest registers."""
    costed = [(estimate(problem, kernel, c), c) for c in _candidates(problem)]
    shared = gpu_of(problem).shared
    fitting = [(e.cycles, c) for e, c in costed if e.registers <= MOST_REGISTERS and e.shared <= shared]
    if not fitting:
        return (min(costed, key=lambda item: (item[0].shared > shared, item[0].registers))[1],)
    fitting.sort(key=lambda item: item[0])
    return tuple(c for _, c in fitting[:LISTED])


def _candidates(problem: Problem) -> Iterator[TileConfig]:
    for rows, allowed_warps in WARPS.items():
        for query_tile in _best_shapes(problem, rows, None):
            for columns in KEY_TILES:
                for key_tile in _best_shapes(problem, columns, query_tile):
                    for warps in allowed_warps:
                        for stages in STAGES[problem.rank]:
                            yield TileConfig(query_tile, key_tile, warps, stages)


def _best_shapes(problem: Problem, size: int, query_tile: Tile | None) -> list[Tile]:
    """The few shapes of `size` positions that compute the least, as query tiles or as key tiles of `query_tile`."""
    samples = _sampled(problem)

    def computed(shape: Tile) -> int:
        pair = (shape, (1,) * problem.rank) if query_tile is None else (query_tile, shape)
        return sum(heads * computed_scores(n, problem.lengths, *pair) for n, heads in samples)

    longest = [max(-(-length // n.axes[a].dilation) for n, _ in samples) for a, length in enumerate(problem.lengths)]
    shapes = [s for s in _shapes(size, problem.rank) if all(t < 2 * n for t, n in zip(s, longest))]
    if not shapes:  # larger than the whole group: one tile, as long as need be along the last axis
        caps = [1 << (n - 1).bit_length() for n in longest[:-1]]
        shapes = [(*caps, max(1, size // prod(caps)))] if prod(caps) <= size else list(_shapes(size, problem.rank))
    shapes.sort(key=computed)
    return list(islice(shapes, 3 if query_tile is None else 2))


@cache
def _shapes(size: int, rank: int) -> tuple[Tile, ...]:
    """All shapes of `rank` powers of two whose product is `size`."""
    if rank == 1:
        return ((size,),)
    return tuple(
        (first, *rest)
        for first in (1 << i for i in range(size.bit_length()))
        for rest in _shapes(size // first, rank - 1)
    )


def _sampled(problem: Problem) -> list[tuple[Neighborhood, int]]:
    """The problem's distinct neighborhoods with their numbers of heads; of many, an evenly spaced few."""
    if not problem.per_head:
        return [(problem.neighborhood, problem.heads)]
    distinct = list(dict.fromkeys(problem.neighborhoods))
    few = distinct[:: ceil(len(distinct) / 4)]
    return [(n, ceil(problem.heads / len(few))) for n in few]


def _full_fraction(problem: Problem, config: TileConfig) -> float:
    """About how much of a tile's box needs no mask, away from borders."""
    neighborhood, _ = _sampled(problem)[0]
    fraction = 1.0
    for axis, length, size, step in zip(neighborhood.axes, problem.lengths, config.query_tile, config.key_tile):
        assert axis.window is not None
        group = max(1, length // axis.dilation)
        if axis.window >= group and not axis.causal:
            continue  # every query sees the whole axis
        moved = 0 if axis.stride >= size and axis.stride % size == 0 else size - 1
        laid = ceil(min(group, axis.window + moved) / step)
        fraction *= max(0, axis.window - moved) // step / laid
    return fraction


def _tiles(neighborhood: Neighborhood, lengths: tuple[int, ...], tile: Tile) -> int:
    return prod(
        a.dilation * ceil(ceil(length / a.dilation) / t) for a, length, t in zip(neighborhood.axes, lengths, tile)
    )


def _with_variant(config: TileConfig, variant: str) -> TileConfig:
    return TileConfig(config.query_tile, config.key_tile, config.warps, config.stages, variant)


def _padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
