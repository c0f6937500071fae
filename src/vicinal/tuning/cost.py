"""Tilings of the Triton kernels, ranked by an estimate of their time: arithmetic, no table, no device work.

A tiling costs what it computes (`vicinal.geometry.work`: whole tiles, not only useful scores) and moves. Per step (one
query tile against one key tile) a multiprocessor spends cycles on issuing instructions, on exponentials, on matrix
products and on reading the key tile through L2; resident programs, as many as registers and shared memory let in,
overlap them and fill each other's latencies; where there are few programs, one that is alone has no more than its own
warps, and the longest decides. The constants are fits to timings on H200s (`docs/performance.md`): 623 of 16 problems,
372 of small ones, and the paper's sweep. The register estimates are fits to what ptxas 12.8 reports, and
`tests/backends/triton/kernels/test_compile.py` guards them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice
from math import ceil, prod
from typing import Literal

import torch

from vicinal.geometry.count import count
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.unfold import can_unfold, replace_at, tile_count, unfold
from vicinal.geometry.work import computed_scores
from vicinal.problem import Problem
from vicinal.tuning.config import TileConfig

Tile = tuple[int, ...]
Pass = Literal["forward", "query", "key_value"]  # the kernels that take tilings

# By rows of the query tile. Never 8 for 64 rows: slow, and Triton 3.6 compiles float32 products of 16 columns wrongly;
# nor for 32: they spill, and took 1.5 times as long in float32.
WARPS = {16: (1, 4), 32: (1, 2, 4), 64: (2, 4), 128: (4, 8)}
KEY_TILES = (16, 32, 64, 128)
STAGES = {1: (2,), 2: (2, 3), 3: (2, 3)}  # by rank: Triton 3.6 leaves a loop along one axis unpipelined at 3
SHORT = 64  # tokens of a dilation group, below which tiles may hold several groups
LISTED = 24  # tilings returned, at most
TOGETHER = "+"  # ends the variant of a backward in one launch

REGISTERS = 65536  # per multiprocessor
MOST_REGISTERS = 262  # per thread, estimated: a few bytes of spills cost less than smaller tiles
THREADS = 2048  # per multiprocessor
PROGRAMS = 32  # likewise
CLOCK = 1.6e9  # cycles per second: 1.7e9 met the kernels timed alone, 1.4e9 the sweep
LAUNCH = 3e-7  # seconds, of a kernel beyond its programs
KEPT = 30e6  # bytes of tensors that the cache keeps from one call to the next, about
BANDWIDTH = 4.2e12  # bytes per second
# Against another backend's time: what a pass takes over its kernels' cycles, and the share not hidden behind them of
# moving what is not kept, in forward passes' tensors. Fits to the sweep.
BEYOND = {"forward": (1.0, 0.3), "backward": (1.05, 0.25)}
ISSUES = 4.0  # instructions per cycle
EXPONENTIALS = 16.0  # per cycle
L2_BYTES = 58.4  # per cycle and multiprocessor, and L1 helps
WARPGROUP_FLOPS = 3230.0  # matrix FLOPs per cycle reached with 16-bit operands, by a warpgroup's instructions
WARP_FLOPS = 1140.0  # likewise, by a single warp's
SPLIT = 1.22  # products and instructions take so much longer where warps share their rows
TOGETHER_COST = 1.33  # of both gradients in one launch: registers of the larger, and delta computed twice
NARROW = 0.387  # warpgroups' products slow down by this power of 64 / columns below 64
OVERLAP = 0.369  # of what is not the bottleneck, what remains beside it in a lone program
STEP_INSTRUCTIONS = 41.3  # per warp and step, besides those per score
PROGRAM_INSTRUCTIONS = 219.0  # per warp and program
MASK_INSTRUCTIONS = 6.14  # per score of a partial tile
STEP_LATENCY = 634.0  # cycles of a step that other programs may fill
PROGRAM_LATENCY = 3710.0  # likewise, of a program's start and end


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
    "forward": Kernel((1, 1), 4.81, (1.4, 1.5, 52), (2.2, 2.6, 30), (2.2, 2.6, 0.0, 30), {2: 1.0, 3: 1.0}),
    "query": Kernel((2, 1), 9.36, (1.8, 2.1, 26), (2.2, 1.7, 58), (2.2, 1.7, 0.3, 58), {2: 0.762, 3: 0.463}),
    "key_value": Kernel((2, 2), 6.19, (1.2, 4.2, 38), (0.9, 3.2, 90), (1.0, 1.95, 0.35, 90), {2: 1.36, 3: 0.968}),
}


@dataclass(frozen=True)
class Split:
    """What it takes to multiply float32 in three products of TF32: operands are split in two.

    Attributes:
        flops: reached, of those with 16-bit operands.
        instructions: per element of the key tile, and per warp that splits it.
        registers: per element of the program's rows, and of the key tile, shared by its threads.
        shared: bytes per byte of the program's rows, besides what 16-bit operands take.
    """

    flops: float
    instructions: float
    registers: tuple[float, float]
    shared: float


THREE_PRODUCTS = {  # with warpgroup instructions, and without: fits to 154 timings of 3 problems on an H200
    True: Split(0.086, 3.2, (1.0, 0.9), 1.0),
    False: Split(0.2, 6.2, (0.94, 1.7), 0.3),
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
        return [config for _, config in _ranked(problem, "forward")]
    return [config for _, config in _backward(problem)]


def spell(config: TileConfig) -> str:
    """A tiling as a short string, for `TileConfig.variant`: `8x16/4x8/8/2`, that is tiles, warps and stages.

    The axis that is unfolded, if any, comes last: `4x16/4x16/4/2/0`.
    """
    tiles = ("x".join(map(str, t)) for t in (config.query_tile, config.key_tile))
    unfolded = () if config.unfolded is None else (str(config.unfolded),)
    return "/".join((*tiles, str(config.warps), str(config.stages), *unfolded))


def in_one_launch(config: TileConfig) -> bool:
    """Whether a backward tiling computes all gradients in one launch: its variant ends in `TOGETHER`."""
    return config.variant.endswith(TOGETHER)


def read(variant: str) -> TileConfig:
    """The inverse of `spell`, of a variant that may end in `TOGETHER`.

    Raises:
        ValueError: not such a string.
    """
    query, key, warps, stages, *unfolded = variant.removesuffix(TOGETHER).split("/")
    tile = [tuple(int(n) for n in t.split("x")) for t in (query, key)]
    return TileConfig(tile[0], tile[1], int(warps), int(stages), unfolded=int(unfolded[0]) if unfolded else None)


@dataclass(frozen=True)
class Estimate:
    """What the programs of a tiling need of a multiprocessor, and what they do there, in its cycles.

    Attributes:
        registers: per thread.
        shared: bytes per program.
        warps: per program.
        programs: of the whole problem.
        steps: per program, on average, and the most that one takes.
        parts: what a step keeps busy for how long: matrix products, instructions, exponentials, the way to L2.
        latency: of a step.
        ends: instructions of a program's start and end.
        cycles: of a launch, until its last program ends.
    """

    registers: float
    shared: int
    warps: int
    programs: int
    steps: float
    most: int
    parts: tuple[float, float, float, float]
    latency: float
    ends: float
    cycles: float = 0.0

    def beside(self, at_once: int, steps: float) -> float:
        """Cycles from the start to the end of a program of `steps` where `at_once` of them share a multiprocessor."""
        quarters = min(4, self.warps * at_once) / 4  # of the multiprocessor that have a warp
        *computed, moved = self.parts
        parts = [part / quarters for part in computed] + [moved]
        busy = max(parts) + OVERLAP * (sum(parts) - max(parts)) / at_once**0.9
        return steps * (at_once * busy + self.latency) + at_once * self.ends / quarters + PROGRAM_LATENCY


def estimate(problem: Problem, kernel: Pass, config: TileConfig) -> Estimate:
    """The estimate for one kernel. For `key_value` tiles, `query_tile` is the program's tile of keys."""
    gpu, what = gpu_of(problem), KERNELS[kernel]
    if config.unfolded is not None:
        problem = _unfolded(problem, config.unfolded)
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
    resident = rows * (d if kernel == "forward" else d + dv)  # elements
    shared = resident * size + config.stages * columns * ((d + dv) * size + (8 if kernel == "key_value" else 0))
    split = THREE_PRODUCTS[together] if size == 4 else None
    flops = WARPGROUP_FLOPS if together else WARP_FLOPS
    if split is not None:
        by = 1 if together else min(config.warps, ceil(rows / 16))  # warps that split the same key tile
        registers += (split.registers[0] * resident + split.registers[1] * columns * (d + dv) * by) / threads
        shared += int(split.shared * resident * size)
        flops *= split.flops
    products = 2 * rows * columns * (what.products[0] * d + what.products[1] * dv) / flops
    if together and columns < 64:
        products *= (64 / columns) ** NARROW
    per_score = what.instructions + MASK_INSTRUCTIONS * (1 - _full_fraction(problem, config))
    rescaled = accumulators if kernel == "forward" else 0
    issue = config.warps * (scores * per_score + rescaled + STEP_INSTRUCTIONS) / ISSUES
    if split is not None:
        issue += by * split.instructions * columns * (d + dv) / 32 / ISSUES
    if rows < 16 * config.warps:
        products, issue = products * SPLIT, issue * SPLIT
    latency = STEP_LATENCY * what.latency[config.stages]

    programs = steps = most = 0
    for neighborhood, heads in _sampled(problem):
        programs += heads * tile_count(neighborhood, problem.lengths, config.query_tile)
        lengths = zip(neighborhood.axes, problem.lengths, config.query_tile, config.key_tile)
        walked = [count(*along, kernel == "key_value") for along in lengths]
        steps += heads * prod(axis.steps for axis in walked)
        most = max(most, prod(axis.longest for axis in walked))
    extra = ceil(problem.additional / columns)
    found = Estimate(
        registers,
        shared,
        config.warps,
        programs=problem.batch * programs,
        steps=steps / programs + extra,
        most=most + extra,
        parts=(products, issue, rows * columns / EXPONENTIALS, columns * (d + dv) * size / L2_BYTES),
        latency=latency,
        ends=config.warps * PROGRAM_INSTRUCTIONS / ISSUES,
    )
    return replace(found, cycles=launch_cycles(gpu, found))


def launch_cycles(gpu: Gpu, *kinds: Estimate) -> float:
    """Cycles until the last program ends of a launch of programs of these kinds, with the registers of the larger."""
    warps, registers = max(e.warps for e in kinds), max(e.registers for e in kinds)
    per_program = 32 * warps * min(max(registers, 32), 255)
    at_once = min(REGISTERS / per_program, gpu.shared / max(e.shared for e in kinds), THREADS / (32 * warps))
    here = ceil(sum(e.programs for e in kinds) / gpu.processors)
    at_once = max(1, min(int(at_once), PROGRAMS, here))
    times = [e.beside(at_once, e.steps) for e in kinds]
    work = sum(e.programs * time for e, time in zip(kinds, times)) / (gpu.processors * at_once)
    return max(max(times) * ceil(work / max(times) - 1e-9), *(e.beside(at_once, e.most) for e in kinds))


def seconds(problem: Problem, direction: Literal["forward", "backward"], config: TileConfig) -> float:
    """An estimate of the time of a pass; against another backend's, only their ratio matters."""
    if direction == "forward":
        kernels = _seconds(estimate(problem, "forward", config).cycles, 1)
    else:
        key_value = read(config.variant)
        each = estimate(problem, "query", config), estimate(problem, "key_value", key_value)
        kernels = _backward_seconds(gpu_of(problem), *each, in_one_launch(config))
    columns = problem.heads * (problem.head_dim + problem.value_dim) * 2
    tensors = problem.batch * prod(problem.lengths) * columns * problem.dtype.itemsize
    factor, share = BEYOND[direction]
    return factor * kernels + share * max(0.0, tensors - KEPT) / BANDWIDTH


def gpu_of(problem: Problem) -> Gpu:
    """The GPU of the problem; an H200 where tensors are not on one."""
    if problem.device.type != "cuda":
        return Gpu(227 * 1024, True, 132)
    properties = torch.cuda.get_device_properties(problem.device)
    shared = int(getattr(properties, "shared_memory_per_block_optin", 0)) or 64 * 1024
    warpgroups = torch.version.hip is None and properties.major in (9, 10)
    return Gpu(shared, warpgroups, properties.multi_processor_count)


@lru_cache(maxsize=1024)
def _ranked(problem: Problem, kernel: Pass) -> tuple[tuple[Estimate, TileConfig], ...]:
    """Tilings that fit, the cheapest first; if none is expected to fit, the one with the fewest registers."""
    costed = [(estimate(problem, kernel, c), c) for c in _candidates(problem)]
    shared = gpu_of(problem).shared
    fitting = [
        (e, c)
        for e, c in costed
        if e.registers <= MOST_REGISTERS and e.shared <= shared and not _is_compiled_badly(problem, kernel, c)
    ]
    if not fitting:
        return (min(costed, key=lambda item: (item[0].shared > shared, item[0].registers)),)
    fitting.sort(key=lambda item: item[0].cycles)
    return tuple(fitting[:LISTED])


@lru_cache(maxsize=1024)
def _backward(problem: Problem) -> tuple[tuple[float, TileConfig], ...]:
    """Tilings of the backward with their estimated seconds, in two launches and in one, the cheapest first."""
    gpu = gpu_of(problem)
    found = []
    for query, own in _ranked(problem, "query"):
        for key_value, other in _ranked(problem, "key_value"):
            apart = _backward_seconds(gpu, query, key_value, False)
            found.append((apart, replace(own, variant=spell(other))))
            if (own.warps, own.stages, own.unfolded) == (other.warps, other.stages, other.unfolded):
                together = _backward_seconds(gpu, query, key_value, True)
                found.append((together, replace(own, variant=spell(other) + TOGETHER)))
    found.sort(key=lambda item: item[0])
    return tuple(found[:LISTED])


def _backward_seconds(gpu: Gpu, query: Estimate, key_value: Estimate, together: bool) -> float:
    if together:
        return _seconds(TOGETHER_COST * launch_cycles(gpu, query, key_value), 1)
    return _seconds(query.cycles + key_value.cycles, 2)


def _seconds(cycles: float, launches: int) -> float:
    return cycles / CLOCK + launches * LAUNCH


def _is_compiled_badly(problem: Problem, kernel: Pass, config: TileConfig) -> bool:
    """Key gradients of 32 keys with 128 queries at head dim 32: ptxas of Triton 3.6 gives them 32 registers, not 255.

    They spill 4.5 kB a thread, and took 7 times as long as other tilings (8x16x16, window 5x7x7, on an H200).
    """
    small = max(problem.head_dim, problem.value_dim) <= 32
    return kernel == "key_value" and small and prod(config.query_tile) == 32 and prod(config.key_tile) == 128


def _candidates(problem: Problem) -> Iterator[TileConfig]:
    yield from _folded_candidates(problem)
    for axis, (length, dilation) in enumerate(zip(problem.lengths, problem.neighborhoods[0].dilation)):
        if ceil(length / dilation) < SHORT and not problem.per_head and can_unfold(problem.neighborhood, axis):
            for config in _folded_candidates(_unfolded(problem, axis)):
                if config.query_tile[axis + 1] > 1:
                    yield replace(config, unfolded=axis)


@lru_cache(maxsize=1024)
def _unfolded(problem: Problem, axis: int) -> Problem:
    """Of a problem with an axis seen as two, about the whole: all groups are as long as the longest."""
    longest = unfold(problem.neighborhood, problem.lengths, axis)[0]
    lengths = replace_at(longest.lengths, axis + 1, problem.neighborhood.axes[axis].dilation)
    return replace(problem, lengths=lengths, neighborhoods=(longest.neighborhood,))


def _folded_candidates(problem: Problem) -> Iterator[TileConfig]:
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
        window = min(axis.window, group)
        moved = 0 if axis.stride >= size and axis.stride % size == 0 else size - 1
        laid = ceil(min(group, window + moved) / step)
        fraction *= max(0, window - moved) // step / laid
    return fraction


def _padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
