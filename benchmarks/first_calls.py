"""Where the first call at a new size goes, kernels found on disk: parts of forward and backward, and a profile.

    PYTHONPATH=src python3 benchmarks/first_calls.py FOLDER [NUMBERS]

Of the families of `vicinal.bench.new_sizes` (NUMBERS: which, `0123`; on a GPU), three sizes warm up, then twenty are
called twice; prints one JSON object a family: medians of the forward's call, of waiting for it, of the backward's call,
of waiting for it, in milliseconds, of the first call and of the call again; how much longer the first ones take in all,
in the median and at most; how many kernels of a source there are, at most. Ten more sizes run under cProfile:
FOLDER/first-NUMBER.profile. Run it twice: what is compiled the first time is not what is asked for.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import random
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from vicinal.bench.cases import random_inputs
from vicinal.bench.new_sizes import FAMILIES, Family, _ours, compilations
from vicinal.problem import Inputs, Problem

WARM_UP, TIMED, PROFILED = 3, 20, 10


def parts(problem: Problem, inputs: Inputs, above: torch.Tensor) -> list[float]:
    """Seconds of the four parts of a call."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    torch.cuda.synchronize()
    ends = [time.perf_counter()]
    output = _ours(problem, Inputs(*leaves))  # type: ignore[arg-type]
    ends.append(time.perf_counter())
    torch.cuda.synchronize()
    ends.append(time.perf_counter())
    torch.autograd.grad(output, [t for t in leaves if t is not None], above)
    ends.append(time.perf_counter())
    torch.cuda.synchronize()
    ends.append(time.perf_counter())
    return [end - start for start, end in pairwise(ends)]


def measure(family: Family, path: Path) -> dict[str, object]:
    """The object of a family; its profile goes to the path."""
    rng, device, profile = random.Random(0), torch.device("cuda", 0), cProfile.Profile()
    first: list[list[float]] = []
    again: list[list[float]] = []
    before = compilations()
    for i in range(WARM_UP + TIMED + PROFILED):
        problem = family.problem(rng, device)
        inputs = random_inputs(problem, i)
        above = torch.ones_like(inputs.query)
        if i >= WARM_UP + TIMED:
            profile.enable()
        taken = parts(problem, inputs, above)
        profile.disable()
        repeated = parts(problem, inputs, above)
        if WARM_UP <= i < WARM_UP + TIMED:
            first.append(taken)
            again.append(repeated)
    with path.open("w") as file:
        table = pstats.Stats(profile, stream=file)
        table.sort_stats("tottime").print_stats(40)
        table.sort_stats("cumulative").print_stats(80)
    more = [1e3 * (sum(one) - sum(other)) for one, other in zip(first, again)]
    counts = [n - before.get(name, 0) for name, n in compilations().items()]
    return {
        "family": family.name,
        "device": torch.cuda.get_device_name(device),
        "first": [round(1e3 * median(column), 3) for column in zip(*first)],
        "again": [round(1e3 * median(column), 3) for column in zip(*again)],
        "more": [round(median(more), 3), round(max(more), 3)],
        "kernels": max(counts, default=0),
    }


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    for number in map(int, numbers[0] if numbers else "0123"):
        print(json.dumps(measure(FAMILIES[number], Path(folder) / f"first-{number}.profile")), flush=True)
