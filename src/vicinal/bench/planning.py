"""How long it takes to plan problems never seen: to choose tilings for both passes, and to prepare their launches.

No GPU is needed, and no kernel is compiled: GPU backends plan for a card that is named. Each problem is planned once;
what problems share (tables of shapes, estimates of programs) is warm. The garbage collector waits meanwhile.

The record, schema 1, is one JSON object: kind, schema, date, command, machine, versions, card (architecture and
multiprocessors of GPU backends), problems (how many, their seed), and `planners`: for each its name, and the
percentiles 50, 90, 99 and 100, in seconds of this thread's CPU time, of `choosing` (backend and tilings), `preparing`
(launch arguments), `both`, `unsupported` (a backend's answer), and of `both` by rank. `families`: the same of sizes of
one family of images, after some others of it (`vicinal.bench.new_sizes`), what a data set of images of any size meets.
"""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import ceil, log2
from pathlib import Path
from typing import Any

import torch

from vicinal import dispatch
from vicinal.backends.gpu.hardware import ARCHITECTURES, Gpu, standing_for
from vicinal.bench.new_sizes import FAMILIES, Family
from vicinal.files import write_text
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.machine import machine, versions
from vicinal.problem import Inputs, Problem, Upstream, Wanted, lse_dtype, stand_ins

KIND, SCHEMA = "vicinal bench planning", 1
CARD = Gpu(ARCHITECTURES["sm_90"], 132)
LENGTHS = {1: 1_000_000, 2: 1024, 3: 128}  # of random problems, by rank, at most
WINDOWS = {1: 4096, 2: 64, 3: 32}
PERCENTILES = (50, 90, 99, 100)
WARM_UP = 30  # problems
SIZES = 200  # of a family


@dataclass(frozen=True)
class Planner:
    """What plans: the backends that it chooses among, and the dtypes of its problems."""

    name: str
    backends: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]


PLANNERS = {
    planner.name: planner
    for planner in (
        Planner("numba", ("numba",), (torch.float32,)),
        Planner("triton", ("triton",), (torch.float16, torch.bfloat16, torch.float32)),
        Planner("hopper", ("hopper",), (torch.float16, torch.bfloat16)),
        Planner("automatic", ("hopper", "triton"), (torch.float16, torch.bfloat16)),  # what a Hopper GPU's calls meet
    )
}


def random_problem(rng: random.Random, dtypes: Sequence[torch.dtype]) -> Problem:
    """Any lengths, up to a million tokens along one axis; a quarter strided, a quarter dilated, a fifth causal."""
    rank = rng.choice((1, 2, 3))
    causal, strided, dilated = rng.random() < 0.2, rng.random() < 0.25, rng.random() < 0.25
    lengths = tuple(int(2 ** rng.uniform(3, log2(LENGTHS[rank]))) for _ in range(rank))
    axes = []
    for i, length in enumerate(lengths):
        dilation = rng.randint(1, max(1, length // 3)) if dilated else 1
        window = max(1, min(length // dilation, int(2 ** rng.uniform(1, log2(WINDOWS[rank])))))
        axes.append(Axis(window, rng.randint(1, window) if strided else 1, dilation, causal and i == 0))
    heads, dim = rng.choice((1, 2, 4, 8, 16)), rng.choice((32, 64, 128))
    kv_heads = heads // rng.choice((1, 1, 1, heads))
    neighborhoods, device = (Neighborhood(tuple(axes)),), torch.device("cpu")
    batch, dtype = rng.choice((1, 2, 8)), rng.choice(tuple(dtypes))
    return Problem(batch, lengths, heads, kv_heads, dim, dim, dtype, device, neighborhoods, dim**-0.5)


@dataclass(frozen=True)
class Planned:
    """Seconds of one problem's planning."""

    rank: int
    choosing: float
    preparing: float
    unsupported: float


def plan(problem: Problem, planner: Planner) -> Planned | None:
    """Plan a problem, and prepare its launches; None where no backend of the planner can."""
    inputs, above = stand_ins(problem), upstream_of(problem)
    backends = [dispatch.backend(name) for name in planner.backends]
    reasons, asked = timed(lambda: [each.unsupported(problem) for each in backends])
    able = [backend for backend, reason in zip(backends, reasons) if reason is None]
    if not able:
        return None
    chosen = dispatch.Plan(problem, tuple(able))
    _, choosing = timed(lambda: (chosen.forward, chosen.backward))
    _, preparing = timed(lambda: prepare(chosen, inputs, above))
    return Planned(problem.rank, choosing, preparing, asked / len(backends))


def upstream_of(problem: Problem) -> Upstream:
    """What a backward pass is given, contiguous, without memory."""
    shape = (problem.batch, *problem.lengths, problem.heads)
    output = torch.empty((*shape, problem.value_dim), dtype=problem.dtype, device="meta")
    return Upstream(output, torch.empty(shape, dtype=lse_dtype(problem.dtype), device="meta"), output)


def prepare(chosen: dispatch.Plan, inputs: Inputs, above: Upstream) -> None:
    """Everything of both passes' launches but the tensors, and nothing compiled."""
    problem, wanted = chosen.problem, Wanted.of(inputs)
    if chosen.backend.name != "numba":
        chosen.backend.forward_kernels(problem, chosen.forward, inputs)
        chosen.gradients.backward_kernels(problem, chosen.backward, inputs, wanted)
        return
    from vicinal.backends.numba.launch import NOBODY, call_of

    given = inputs[:5]
    call_of(problem, "forward", chosen.forward, given, NOBODY)  # type: ignore[arg-type]
    call_of(problem, "backward", chosen.backward, (*given, *above), wanted)  # type: ignore[arg-type]


def timed(what: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and seconds of this thread's CPU time."""
    start = time.thread_time()
    found = what()
    return found, time.thread_time() - start


def measure(planner: Planner, count: int, seed: int) -> list[Planned]:
    """Plan `count` random problems that the planner can run, all different."""
    rng = random.Random(f"{seed} {planner.name}")  # problems of its own: another planner's are half planned
    return _measured(planner, count, lambda: random_problem(rng, planner.dtypes))


def of_family(family: Family, seed: int) -> list[Planned]:
    """Plan sizes of a family."""
    rng, device = random.Random(seed), torch.device("cpu")
    planner = PLANNERS["automatic" if family.device == "cuda" else "numba"]
    return _measured(planner, SIZES, lambda: family.problem(rng, device))


def _measured(planner: Planner, count: int, draw: Callable[[], Problem]) -> list[Planned]:
    """Plan so many of the problems that are drawn, after some that warm up."""
    found = []
    gc.collect()
    gc.disable()
    try:
        with standing_for(None if planner.name == "numba" else CARD):
            for warm in range(-WARM_UP, count):
                done = None
                while done is None:
                    done = plan(draw(), planner)
                if warm >= 0:
                    found.append(done)
    finally:
        gc.enable()
    return found


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Of these, by `PERCENTILES`."""
    ordered = sorted(seconds)
    return {str(p): ordered[max(0, ceil(len(ordered) * p / 100) - 1)] for p in PERCENTILES}


def document(names: Sequence[str], count: int, seed: int, command: str) -> dict[str, Any]:
    """The record of a run."""
    planners = []
    for name in names:
        found = measure(PLANNERS[name], count, seed)
        ranks = {rank: [p.choosing + p.preparing for p in found if p.rank == rank] for rank in LENGTHS}
        planners.append(
            {
                "name": name,
                **_parts(found),
                "unsupported": percentiles([p.unsupported for p in found]),
                "ranks": {str(rank): percentiles(each) for rank, each in ranks.items() if each},
            }
        )
    used = {"cpu": "numba" in names, "cuda": "automatic" in names}
    families = [{"name": each.name, **_parts(of_family(each, seed))} for each in FAMILIES if used[each.device]]
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "card": {"architecture": CARD.architecture.name, "processors": CARD.processors},
        "problems": {"count": count, "seed": seed},
        "planners": planners,
        "families": families,
    }


def _parts(found: Sequence[Planned]) -> dict[str, dict[str, float]]:
    return {
        "choosing": percentiles([p.choosing for p in found]),
        "preparing": percentiles([p.preparing for p in found]),
        "both": percentiles([p.choosing + p.preparing for p in found]),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """A table of a record, in milliseconds."""
    told = [f"{'ms, median / 99th percentile':46}{'choosing':>16}{'preparing':>16}{'both':>16}"]
    for each in (*found["planners"], *found["families"]):
        parts = (each[part] for part in ("choosing", "preparing", "both"))
        numbers = "".join(f"{1e3 * part['50']:>8.2f} /{1e3 * part['99']:>6.2f}" for part in parts)
        told.append(f"{each['name']:46}{numbers}")
    return told


def save(found: dict[str, Any], path: Path) -> None:
    """Write a record."""
    write_text(path, json.dumps(found, indent=1) + "\n")
