"""Chooses the short lists of `vicinal.backends.triton.shortlist`, by the estimate alone: no GPU is needed.

Of all sizes of programs, one after the other, the one that brings the best tilings of a sample of problems closest to
those of all sizes; until these are 0.3% away, in the geometric mean, or ten are chosen.

    PYTHONPATH=src python3 benchmarks/shortlist.py HEAD_DIM BYTES_PER_ELEMENT [PROBLEMS_PER_RANK]
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from math import exp, inf, log, log2
from typing import get_args

import torch

from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.triton.compiler import is_compiled_badly
from vicinal.backends.triton.estimate import Kernel, estimate, most_registers
from vicinal.backends.triton.shortlist import Size, every_size
from vicinal.backends.triton.tilings import candidates
from vicinal.bench.cases import SUITES
from vicinal.bench.paper.problems import problems as papers
from vicinal.bench.paper.problems import sample
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.problem import Problem

ENOUGH, MOST = 1.003, 10
LENGTHS, WINDOWS = {1: 20_000, 2: 300, 3: 64}, {1: 4096, 2: 64, 3: 32}  # of random problems, by rank, at most


def random_problem(rng: random.Random, rank: int) -> Problem:
    """Any lengths, windows, strides and dilations; a fifth of the axes causal."""
    lengths = tuple(int(2 ** rng.uniform(3, log2(LENGTHS[rank]))) for _ in range(rank))
    axes = []
    for length in lengths:
        dilation = rng.choice((1, 1, 1, rng.randint(1, max(1, length // 3))))
        window = max(1, min(length // dilation, int(2 ** rng.uniform(1, log2(WINDOWS[rank])))))
        axes.append(Axis(window, rng.choice((1, 1, 1, rng.randint(1, window))), dilation, rng.random() < 0.2))
    heads, device = rng.choice((1, 4, 16)), torch.device("cpu")
    neighborhoods = (Neighborhood(tuple(axes)),)
    return Problem(rng.choice((1, 2, 8)), lengths, heads, heads, 64, 64, torch.float16, device, neighborhoods, 1.0)


def drawn(head_dim: int, dtype: torch.dtype, count: int) -> list[Problem]:
    """The suites' problems, of every rank `count` of the paper's and as many random ones: all of one head dim."""
    rng = random.Random(3)
    found = [case.problem("cpu") for suite in SUITES.values() for case in suite.cases]
    for rank in LENGTHS:
        found += [case.problem("cpu") for case in sample(papers(rank), count)]
        found += [random_problem(rng, rank) for _ in range(count)]
    return [replace(p, head_dim=head_dim, value_dim=head_dim, dtype=dtype) for p in found]


def cycles_by_size(problem: Problem, kernel: Kernel) -> dict[Size, float]:
    """Of every size that fits, the best tiling's."""
    gpu = gpu_of(problem.device)
    found: dict[Size, float] = {}
    for size in every_size(3):
        for tiling in candidates(problem, [size]):
            e = estimate(problem, kernel, tiling)
            fits = e.program.registers <= most_registers(gpu) and e.program.shared <= gpu.architecture.shared
            if fits and not is_compiled_badly(problem, kernel == "key_value", tiling):
                found[size] = min(found.get(size, inf), e.cycles)
    return found


def chosen(tables: list[dict[Size, float]]) -> tuple[list[Size], float]:
    """The short list, and its best tilings' cycles over those of all sizes."""
    best = [min(table.values()) for table in tables]
    reached, sizes, loss = [inf] * len(tables), [], inf
    while loss > ENOUGH and len(sizes) < MOST:
        losses = {}
        for size in {size for table in tables for size in table} - set(sizes):
            ratios = (min(c, t.get(size, 1e3 * b)) / b for c, t, b in zip(reached, tables, best))
            losses[size] = exp(sum(map(log, ratios)) / len(tables))
        if not losses:
            break
        loss, size = min((value, size) for size, value in losses.items())
        sizes.append(size)
        reached = [min(c, t.get(size, 1e3 * b)) for c, t, b in zip(reached, tables, best)]
    return sizes, loss


def main() -> None:
    """Prints a list for each kernel."""
    head_dim, itemsize, count = (int(n) for n in (*sys.argv[1:], 25)[:3])
    problems = drawn(head_dim, {2: torch.float16, 4: torch.float32}[itemsize], count)
    for kernel in get_args(Kernel):
        tables = [table for problem in problems if (table := cycles_by_size(problem, kernel))]
        sizes, loss = chosen(tables)
        print(f"{kernel!r}, {head_dim}, {itemsize}: {[tuple(s) for s in sizes]}  # {100 * (loss - 1):.2f}%", flush=True)


if __name__ == "__main__":
    main()
