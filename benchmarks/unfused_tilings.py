"""Times the unfused kernels with other numbers of warps and pipeline stages than the default, on a GPU.

    PYTHONPATH=src python3 benchmarks/unfused_tilings.py [results.json]

Every result is compared with plain torch's before it is timed. Prints one line per kernel and setting, best first.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from statistics import median

import torch

from vicinal.backends import unfused_launch as launch
from vicinal.backends import unfused_torch
from vicinal.backends.slots import Slots
from vicinal.geometry.neighborhood import Neighborhood

PROBLEMS = [  # lengths, window, batch, heads, head dim
    ((4096,), 127, 4, 4, 64),
    ((64, 64), 13, 4, 4, 64),
]
SETTINGS = {"gemm": list(product((4, 8), (1, 2, 3))), "naive": [(1, 3), (2, 3), (4, 3)]}
KERNELS = ("pn", "nn", "inverse")


def seconds(call, samples: int = 7) -> float:
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


class Overridden:
    """A kernel launched with other `num_warps` and `num_stages`."""

    def __init__(self, module, warps: int, stages: int) -> None:
        self.module, self.options = module, {"num_warps": warps, "num_stages": stages}

    def __getattr__(self, name):
        kernel = getattr(self.module, name)

        class At:
            def __getitem__(_, grid):  # noqa: N805
                return lambda *args, **kwargs: kernel[grid](*args, **{**kwargs, **self.options})

        return At()


def main() -> None:
    rows = []
    original = {"gemm": launch._gemm, "naive": launch._naive}
    modules = {name: load() for name, load in original.items()}
    for lengths, window, batch, heads, dim in PROBLEMS:
        slots = Slots(Neighborhood.of(len(lengths), window).resolve(lengths), lengths)
        x = torch.randn(batch, *lengths, heads, dim, device="cuda", dtype=torch.float16)
        attn = torch.randn(batch, *lengths, heads, slots.count, device="cuda", dtype=torch.float16).softmax(-1)
        expected = {
            "pn": unfused_torch.pn(x, x, None, slots, 0.1, 0.0),
            "nn": unfused_torch.nn(attn, x, slots, 1.0),
            "inverse": unfused_torch.inverse(attn, x, heads, slots, 1.0),
        }
        for variant, settings in SETTINGS.items():
            calls = {
                "pn": lambda v=variant: launch.pn(x, x, None, slots, 0.1, 0.0, v),
                "nn": lambda v=variant: launch.nn(attn, x, slots, 1.0, v),
                "inverse": lambda v=variant: launch.inverse(attn, x, heads, slots, 1.0, v),
            }
            for warps, stages in settings:
                changed = Overridden(modules[variant], warps, stages)
                setattr(launch, f"_{variant}", lambda changed=changed: changed)
                for kernel in KERNELS:
                    row = {"problem": f"{lengths} {window}", "variant": variant, "kernel": kernel}
                    row |= {"warps": warps, "stages": stages}
                    try:
                        got = calls[kernel]()
                        error = ((got - expected[kernel]).float().norm() / expected[kernel].float().norm()).item()
                        row["ms"] = 1e3 * seconds(calls[kernel]) if error < 2e-3 else None
                        row["error"] = error
                    except Exception as failure:
                        row |= {"ms": None, "error": str(failure)[:200]}
                    rows.append(row)
            setattr(launch, f"_{variant}", original[variant])
    rows.sort(key=lambda r: (r["problem"], r["variant"], r["kernel"], float("inf") if r["ms"] is None else r["ms"]))
    for row in rows:
        time = "failed or wrong" if row["ms"] is None else f"{row['ms']:.4f} ms"
        print(row["problem"], row["variant"], row["kernel"], f"warps {row['warps']} stages {row['stages']}", time)
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
