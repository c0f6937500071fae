"""Instructions of the processor that planning takes, by valgrind: the same on a busy machine, unlike times.

    PYTHONPATH=src valgrind --tool=callgrind --instr-atstart=no --callgrind-out-file=FILE \
        python3 benchmarks/instructions.py PLANNER [COUNT]

PLANNER is one of `vicinal bench planning`. Plans COUNT of its random problems (60) after some that warm up, in a
minute, and leaves two files: FILE.1, of choosing backends and tilings, and FILE.2, of preparing launches; `summary:` in
each has the instructions of all problems, and `callgrind_annotate` tells the interpreter's functions.
"""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys

from vicinal import dispatch
from vicinal.backends.gpu.hardware import standing_for
from vicinal.bench.planning import CARD, PLANNERS, WARM_UP, Planner, prepare, random_problem, upstream_of
from vicinal.problem import Inputs, Upstream, stand_ins


def control(*words: str) -> None:
    """Tell valgrind, which runs this process."""
    subprocess.run(["callgrind_control", *words, str(os.getpid())], check=True, stdout=subprocess.DEVNULL)


def drawn(planner: Planner, count: int, rng: random.Random) -> list[tuple[dispatch.Plan, Inputs, Upstream]]:
    """Plans that are not made yet, and what their calls would be given."""
    found: list[tuple[dispatch.Plan, Inputs, Upstream]] = []
    while len(found) < count:
        problem = random_problem(rng, planner.dtypes)
        able = tuple(own for own in map(dispatch.backend, planner.backends) if own.unsupported(problem) is None)
        if able:
            found.append((dispatch.Plan(problem, able), stand_ins(problem), upstream_of(problem)))
    return found


def main(name: str, count: int) -> None:
    """Plan, and count between the files."""
    planner, rng = PLANNERS[name], random.Random(f"0 {name}")
    gc.disable()
    with standing_for(None if name == "numba" else CARD):
        for chosen, *given in drawn(planner, WARM_UP, rng):
            prepare(chosen, *given)
        plans = drawn(planner, count, rng)
        control("-i", "on")
        control("-z")
        for chosen, *_ in plans:
            _ = chosen.forward, chosen.backward
        control("--dump=choosing")
        for chosen, *given in plans:
            prepare(chosen, *given)
        control("--dump=preparing")
        control("-i", "off")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 60)
