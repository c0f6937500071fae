"""Times the unfused kernels with other numbers of warps and pipeline stages than the default, on a GPU.

    PYTHONPATH=src python3 benchmarks/unfused_tilings.py [results.json]

Every result is compared with plain torch's before it is timed. Prints one line per kernel and setting, best first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from vicinal.backends import unfused_launch as launch
from vicinal.backends.slots import Slots
from vicinal.geometry.neighborhood import Neighborhood

PROBLEMS = [  # lengths, window, batch, heads, head dim
    ((4096,), 127, 4, 4, 64),
    ((64, 64), 13, 4, 4, 64),
]
SETTINGS = {"gemm": list(product((4, 8), (1, 2, 3))), "naive": [(1, 3), (2, 3), (4, 3)]}


def main() -> None:
    """Time everything, print it, and write it to the file named, if any."""
    rows = [row for problem in PROBLEMS for row in time_problem(*problem)]
    rows.sort(key=lambda r: (r["problem"], r["variant"], r["kernel"], float("inf") if r["ms"] is None else r["ms"]))
    for row in rows:
        time = f"failed or wrong: {row['error']}" if row["ms"] is None else f"{row['ms']:.4f} ms"
        print(row["problem"], row["variant"], row["kernel"], f"warps {row['warps']} stages {row['stages']}", time)
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as file:
            json.dump(rows, file, indent=1)


def time_problem(lengths: tuple[int, ...], window: int, batch: int, heads: int, dim: int) -> list[dict]:
    """Every kernel with every setting on one problem."""
    slots = Slots(Neighborhood.of(len(lengths), window).resolve(lengths), lengths)
    x = torch.randn(batch, *lengths, heads, dim, device="cuda", dtype=torch.float16)
    attn = torch.randn(batch, *lengths, heads, slots.count, device="cuda", dtype=torch.float16).softmax(-1)
    calls = {
        "pn": lambda v: launch.pn(x, x, None, slots, 0.1, 0.0, v),
        "nn": lambda v: launch.nn(attn, x, slots, 1.0, v),
        "inverse": lambda v: launch.inverse(attn, x, heads, slots, 1.0, v),
    }
    rows = []
    for kernel, call in calls.items():
        expected = call("torch").float()
        for variant, settings in SETTINGS.items():
            for warps, stages in settings:
                row = {"problem": f"{lengths} {window}", "variant": variant, "kernel": kernel}
                row |= {"warps": warps, "stages": stages, "ms": None}
                try:
                    with overridden(variant, warps, stages):
                        error = ((call(variant).float() - expected).norm() / expected.norm()).item()
                        row["error"] = error
                        if error < 2e-3:
                            row["ms"] = 1e3 * seconds(partial(call, variant))
                except Exception as failure:
                    row["error"] = str(failure)[:200]
                rows.append(row)
    return rows


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
def overridden(variant: str, warps: int, stages: int) -> Iterator[None]:
    """Launch a variant's kernels with other `num_warps` and `num_stages`."""
    name = f"_{variant}"
    load = getattr(launch, name)
    kernels = SimpleNamespace(**{k: _Launched(getattr(load(), k), warps, stages) for k in ("pn", "nn", "inverse")})
    setattr(launch, name, lambda: kernels)
    try:
        yield
    finally:
        setattr(launch, name, load)


class _Launched:
    def __init__(self, kernel: Any, warps: int, stages: int) -> None:
        self.kernel, self.options = kernel, {"num_warps": warps, "num_stages": stages}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        return lambda *args, **kwargs: self.kernel[grid](*args, **{**kwargs, **self.options})


if __name__ == "__main__":
    main()
