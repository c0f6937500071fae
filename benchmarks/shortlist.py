"""Chooses the sizes of `vicinal.backends.triton.shortlist`, by the estimate alone: no GPU is needed.

Of all sizes of programs those three whose best tilings of a sample of problems are closest to those of all sizes: in
the geometric mean, and with few problems that lose more than a tenth. Prints the lines of the table.

    PYTHONPATH=src python3 benchmarks/shortlist.py HEAD_DIM BYTES_PER_ELEMENT [PROBLEMS_PER_RANK]
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import exp, inf, log, log2
from typing import get_args

import torch

from vicinal.backends.gpu import hardware
from vicinal.backends.gpu.hardware import ARCHITECTURES, Gpu, gpu_of
from vicinal.backends.triton.compiler import is_compiled_badly
from vicinal.backends.triton.estimate import Kernel, estimate, most_registers
from vicinal.backends.triton.shortlist import Size, every_size
from vicinal.backends.triton.tilings import candidates
from vicinal.bench.cases import SUITES
from vicinal.bench.paper.problems import problems as papers
from vicinal.bench.paper.problems import sample
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.problem import Problem

MOST = 3
LOSES = 1.1  # a problem that takes so much longer counts `LOST` more
LOST = 0.1
RANDOM = 0.25  # weight of a random problem
OWN = 3.0  # weight of a suite's problem of the head dim at hand
LENGTHS, WINDOWS = {1: 20_000, 2: 300, 3: 64}, {1: 4096, 2: 64, 3: 32}  # of random problems, by rank, at most
Weighed = list[tuple[Problem, float]]


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


def sizes_of_images(rng: random.Random) -> Iterator[Problem]:
    """The families of `vicinal bench new-sizes`: lengths that vary under one window."""
    families = (((120, 200), (160, 333)), 7, 2), (((30, 50), (40, 84)), 7, 8), (((2000, 20_000),), 127, 8)
    for spans, window, heads in (*families, (((8, 24), (20, 40), (20, 60)), 5, 8)):
        for _ in range(12):
            lengths = tuple(rng.randint(*span) for span in spans)
            neighborhood = Neighborhood.of(len(lengths), window).resolve(lengths)
            device = torch.device("cpu")
            yield Problem(1, lengths, heads, heads, 64, 64, torch.float16, device, (neighborhood,), 1.0)


def drawn(head_dim: int, dtype: torch.dtype, count: int) -> Weighed:
    """The suites' problems, of every rank `count` of the paper's, images of any size, and random ones, weighed."""
    rng = random.Random(3)
    suites = [case.problem("cpu") for suite in SUITES.values() for case in suite.cases]
    found = [(p, OWN if p.head_dim == head_dim else 1.0) for p in suites]
    found += [(p, 1.0) for p in sizes_of_images(rng)]
    for rank in LENGTHS:
        found += [(case.problem("cpu"), 1.0) for case in sample(papers(rank), count)]
        found += [(random_problem(rng, rank), RANDOM) for _ in range(count)]
    return [(replace(p, head_dim=head_dim, value_dim=head_dim, dtype=dtype), weight) for p, weight in found]


def cycles_by_size(problem: Problem, kernel: Kernel) -> dict[Size, float]:
    """Of every size that fits, the best tiling's."""
    gpu = gpu_of(problem.device)
    found: dict[Size, float] = {}
    for size in every_size(problem, kernel, gpu):
        for tiling in candidates(problem, kernel, [size], 1):
            e = estimate(problem, kernel, tiling)
            fits = e.program.registers <= most_registers(gpu) and e.program.shared <= gpu.architecture.shared
            if fits and not is_compiled_badly(problem, kernel == "key_value", tiling):
                found[size] = min(found.get(size, inf), e.cycles)
    return found


class Losses:
    """How much longer the best tilings of some sizes take than those of all."""

    def __init__(self, tables: list[dict[Size, float]], weights: list[float]) -> None:
        self._weights = weights
        best = [min(table.values()) for table in tables]
        every = {size for table in tables for size in table}
        self.ratios = {s: [t.get(s, inf) / b for t, b in zip(tables, best)] for s in sorted(every)}

    def of(self, sizes: list[Size]) -> tuple[float, float, float]:
        """What is made small, the geometric mean, and the most."""
        reached = [min(*own, 10.0) for own in zip(*(self.ratios[size] for size in sizes))]
        total = sum(self._weights)
        mean = exp(sum(w * log(r) for w, r in zip(self._weights, reached)) / total)
        lost = sum(w for w, r in zip(self._weights, reached) if r > LOSES) / total
        return mean + LOST * lost, mean, max(reached)

    def chosen(self) -> list[Size]:
        """One after the other, then each in place of another, as long as that helps."""
        sizes: list[Size] = []
        for _ in range(min(MOST, len(self.ratios))):
            sizes.append(min((s for s in self.ratios if s not in sizes), key=lambda s: self.of([*sizes, s])))
        while True:
            others = (
                [*sizes[:i], s, *sizes[i + 1 :]] for i in range(len(sizes)) for s in self.ratios if s not in sizes
            )
            better = min(others, key=self.of, default=sizes)
            if self.of(better) >= self.of(sizes):
                return sizes
            sizes = better


def main() -> None:
    """Prints a list for each family."""
    head_dim, itemsize, count = (int(n) for n in (*sys.argv[1:], 40)[:3])
    hardware.named = Gpu(ARCHITECTURES["sm_90"], 132)
    problems = drawn(head_dim, {2: torch.float16, 4: torch.float32}[itemsize], count)
    for kernel in get_args(Kernel):
        for rank in LENGTHS:
            for dilated in (False, True):
                own = [(p, w) for p, w in problems if p.rank == rank]
                own = [(p, w) for p, w in own if any(a.dilation > 1 for a in p.neighborhood.axes) == dilated]
                tables = [(table, w) for p, w in own if (table := cycles_by_size(p, kernel))]
                if not tables:
                    continue
                losses = Losses([table for table, _ in tables], [w for _, w in tables])
                sizes = losses.chosen()
                _, mean, most = losses.of(sizes)
                words = ", ".join(f"({', '.join(map(str, s if s.unfolded else s[:-1]))})" for s in sizes)
                key = f'("{kernel}", {head_dim}, {itemsize}, {rank}, {dilated})'
                print(f"    {key}: [{words}],  # {100 * (mean - 1):.1f}%, {100 * (most - 1):.0f}% at most", flush=True)


if __name__ == "__main__":
    main()
