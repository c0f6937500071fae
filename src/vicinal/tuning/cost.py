"""Tilings of the Triton kernels, ranked by an estimate of their time: arithmetic, no table, no device work.

A tiling costs what it computes (`vicinal.geometry.work`: whole tiles, not only useful scores) and moves. Per step (one
query tile against one key tile) a multiprocessor spends cycles on matrix products, on the softmax and mask, and on
reading the key tile through L2; resident programs overlap them, as many as registers and shared memory let in.
Constants are those of an H100/H200 (132 multiprocessors); only ratios between tilings matter. The register estimates
are fits to what ptxas 12.8 reports for the kernels (`tests/kernels/triton/test_compile.py` guards them).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
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

QUERY_TILES = (16, 32, 64, 128)
KEY_TILES = (16, 32, 64, 128)
LISTED = 24  # tilings returned, at most

PROCESSORS = 132
REGISTERS = 65536  # per multiprocessor
MOST_REGISTERS = 250  # per thread, estimated, before spills
THREADS = 2048  # per multiprocessor
FLOPS = 2800.0  # matrix FLOPs per cycle reached with 16-bit operands
SOFTMAX = 0.125  # cycles per score: 8 operations on 128 lanes, and one exponential on 16
L2_BYTES = 32.0  # per cycle
STEP_LATENCY = 250.0  # cycles of a step that other programs may fill
PROGRAM_LATENCY = 2500.0  # likewise, of a program's start and end

PRODUCTS: dict[Pass, tuple[int, int]] = {"forward": (1, 1), "query": (2, 1), "key_value": (2, 2)}  # (of D, of Dv)


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
    rows, columns, threads = prod(config.query_tile), prod(config.key_tile), 32 * config.warps
    d, dv, size = _padded(problem.head_dim), _padded(problem.value_dim), problem.dtype.itemsize
    scores = rows * columns / threads
    width = {"forward": dv, "query": d, "key_value": d + dv}[kernel]
    accumulators = rows * width / threads
    wide = 1.0 if size == 2 else 1.7  # 32-bit operands take twice the registers
    a, b, c = {"forward": (1.4, 1.5, 52), "query": (1.8, 2.1, 26), "key_value": (1.2, 4.2, 38)}[kernel]
    registers = a * accumulators + b * wide * scores + c
    resident = rows * (d if kernel == "forward" else d + dv) * size
    shared = resident + config.stages * columns * ((d + dv) * size + (8 if kernel == "key_value" else 0))

    at_once = min(REGISTERS / (max(registers, 32) * threads), _shared_memory(problem) / shared, THREADS / threads)
    at_once = max(1, min(int(at_once), 16))
    of_d, of_dv = PRODUCTS[kernel]
    products = 2 * rows * columns * (of_d * d + of_dv * dv) / (FLOPS * (1 if size == 2 else 0.2))
    if rows < 64:
        products *= 64 / rows * 0.75  # too few rows for the widest instruction
    softmax = rows * columns * SOFTMAX * (1 if kernel == "forward" else 1.3)
    reading = columns * (d + dv) * size / L2_BYTES
    most = max(products, softmax, reading)
    step = most + 0.4 * (products + softmax + reading - most) + STEP_LATENCY / at_once

    cycles = 0.0
    for neighborhood, heads in _sampled(problem):
        tiles = _tiles(neighborhood, problem.lengths, config.query_tile)
        computed = computed_scores(neighborhood, problem.lengths, config.query_tile, config.key_tile)
        programs = problem.batch * heads * tiles
        steps = computed / (rows * columns * tiles) + ceil(problem.additional / columns)
        ends = PROGRAM_LATENCY / at_once + rows * (d + dv) * size / L2_BYTES
        each = steps * step + ends
        waves = programs / (PROCESSORS * at_once)
        cycles += ceil(waves) * PROCESSORS * at_once * each
    return Estimate(registers, int(shared), cycles)


def _ranked(problem: Problem, kernel: Pass) -> list[TileConfig]:
    """Tilings that fit, the cheapest first; if none is expected to fit, the one with the fewest registers."""
    costed = [(estimate(problem, kernel, c), c) for c in _candidates(problem)]
    shared = _shared_memory(problem)
    fitting = [(e.cycles, c) for e, c in costed if e.registers <= MOST_REGISTERS and e.shared <= shared]
    if not fitting:
        return [min(((e.shared > shared, e.registers, e.cycles), c) for e, c in costed)[1]]
    fitting.sort(key=lambda item: item[0])
    return [c for _, c in fitting[:LISTED]]


def _candidates(problem: Problem) -> Iterator[TileConfig]:
    for rows in QUERY_TILES:
        for query_tile in _best_shapes(problem, rows, None):
            for columns in KEY_TILES:
                for key_tile in _best_shapes(problem, columns, query_tile):
                    for warps in (4, 8) if rows >= 64 else (4,):
                        for stages in (2, 3):
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


def _tiles(neighborhood: Neighborhood, lengths: tuple[int, ...], tile: Tile) -> int:
    return prod(
        a.dilation * ceil(ceil(length / a.dilation) / t) for a, length, t in zip(neighborhood.axes, lengths, tile)
    )


def _with_variant(config: TileConfig, variant: str) -> TileConfig:
    return TileConfig(config.query_tile, config.key_tile, config.warps, config.stages, variant)


def _padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def _shared_memory(problem: Problem) -> int:
    """Bytes of shared memory that one program may have."""
    if problem.device.type != "cuda":
        return 227 * 1024
    properties = torch.cuda.get_device_properties(problem.device)
    return int(getattr(properties, "shared_memory_per_block_optin", 0)) or 64 * 1024
