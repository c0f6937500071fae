"""Times the unfused kernels with other warps, pipeline stages and slots at a time than the default, on a GPU.

    PYTHONPATH=src python3 benchmarks/unfused_tilings.py [results.json [processes that compile]]

Kernels are compiled by several processes first. Every result is compared with plain torch's before it is timed. Prints
one line per problem and kernel: the time of the default, and of the best tiling.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vicinal.backends.unfused import launch
from vicinal.backends.unfused import programs as kernels
from vicinal.backends.unfused.tilings import Schedule
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.slots import Slots

PROBLEMS = [  # lengths, window, batch, heads, head dim, dtype
    ((4096,), 127, 4, 4, 64, torch.float16),
    ((64, 64), 13, 4, 4, 32, torch.float16),
    ((64, 64), 13, 4, 4, 64, torch.float16),
    ((64, 64), 13, 4, 4, 128, torch.float16),
    ((16, 16, 16), 5, 4, 4, 64, torch.float16),
    ((64, 64), 13, 4, 4, 64, torch.float32),
]
KERNELS = ("pn", "nn", "inverse")
ALLOWED = 2e-3  # relative error in half precision


def tilings_to_try(variant: str, dim: int) -> list[Schedule]:
    """Warps, stages and slots."""
    if variant == "gemm":
        return [Schedule(warps, stages) for warps, stages in product((4, 8), (1, 2, 3))]
    few = max(512 // dim, 4)
    return [Schedule(w, 3, s) for w, s in ((1, few), (1, 2 * few), (1, 4 * few), (2, 4 * few), (4, 8 * few))]


def main() -> None:
    """Compile, time, print, and write the file named, if any."""
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(compile_one, list(product(range(len(PROBLEMS)), ("gemm", "naive"), KERNELS)), chunksize=1)
    rows: list[dict[str, Any]] = []
    for index in range(len(PROBLEMS)):
        own = time_problem(index)
        rows += own
        for variant, kernel in product(("gemm", "naive"), KERNELS):
            print(summary(name_of(index), variant, kernel, own), flush=True)
        if len(sys.argv) > 1:
            with open(sys.argv[1], "w") as file:
                json.dump(rows, file, indent=1)


def summary(problem: str, variant: str, kernel: str, rows: Sequence[dict[str, Any]]) -> str:
    """One line: the default's time, and the best tiling with its time."""
    ok = [r for r in rows if (r["variant"], r["kernel"]) == (variant, kernel) and r["ms"] is not None]
    ok.sort(key=lambda r: r["ms"])
    default = next((f"{r['ms']:.3f}" for r in ok if r["default"]), "failed")
    best = "none" if not ok else f"{ok[0]['ms']:.3f} {ok[0]['warps']}/{ok[0]['stages']}/{ok[0]['slots']}"
    return f"{problem} {variant} {kernel}: default {default} ms, best {best} (warps/stages/slots)"


def compile_one(what: tuple[int, str, str]) -> None:
    """Run one kernel of one problem once with every tiling, so that Triton's cache has it."""
    index, variant, kernel = what
    call = calls_of(index)[kernel]
    for tried in tilings_to_try(variant, PROBLEMS[index][4]):
        with suppress(Exception), overridden(tried):
            call(variant)
            torch.cuda.synchronize()


def time_problem(index: int) -> list[dict[str, Any]]:
    """Every kernel with every tiling on one problem, in turns."""
    dim, dtype = PROBLEMS[index][4:]
    rows = []
    for kernel, call in calls_of(index).items():
        expected = call("torch").float()
        for variant in ("gemm", "naive"):
            default = kernels.schedule(variant, kernel, dim, dtype)
            for tried in tilings_to_try(variant, dim):
                row = {"problem": name_of(index), "variant": variant, "kernel": kernel, **tried._asdict()}
                row |= {"default": tried == default, "ms": None, "error": None}
                try:
                    with overridden(tried):
                        error = ((call(variant).float() - expected).norm() / expected.norm()).item()
                        row["error"] = error
                        if error < ALLOWED:
                            row["ms"] = 1e3 * seconds(partial(call, variant))
                except Exception as failure:
                    row["error"] = str(failure)[:200]
                rows.append(row)
    return rows


def calls_of(index: int) -> dict[str, Callable[[str], Tensor]]:
    """The kernels on one problem, by the variant."""
    lengths, window, batch, heads, dim, dtype = PROBLEMS[index]
    slots = Slots(Neighborhood.of(len(lengths), window).resolve(lengths), lengths)
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(batch, *lengths, heads, dim, device="cuda", generator=generator).to(dtype)
    attn = torch.randn(batch, *lengths, heads, slots.count, device="cuda", generator=generator).softmax(-1).to(dtype)
    return {
        "pn": lambda v: launch.pn(x, x, None, slots, 0.1, 0.0, v),
        "nn": lambda v: launch.nn(attn, x, slots, 1.0, v),
        "inverse": lambda v: launch.inverse(attn, x, heads, slots, 1.0, v),
    }


def name_of(index: int) -> str:
    """A problem in words."""
    lengths, window, _batch, _heads, dim, dtype = PROBLEMS[index]
    return f"{'x'.join(map(str, lengths))} window {window} D{dim} {str(dtype).split('.')[-1]}"


def seconds(call: Callable[[], object], samples: int = 7) -> float:
    """Median time of a call."""
    call()
    taken = []
    for _ in range(samples):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(5):
            call()
        stop.record()
        stop.synchronize()
        taken.append(start.elapsed_time(stop) / 5e3)
    return median(taken)


@contextmanager
def overridden(chosen: Schedule) -> Iterator[None]:
    """Launch all kernels with these tilings."""
    before = kernels.schedule
    kernels.schedule = lambda *_: chosen
    kernels._prepared.clear()
    try:
        yield
    finally:
        kernels.schedule = before
        kernels._prepared.clear()


if __name__ == "__main__":
    main()
