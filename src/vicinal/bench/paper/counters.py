"""What the hardware counts while naive, GEMM and fused kernels run a problem, by Nsight Compute.

    python3 -m vicinal.bench.paper.counters paper.jsonl

runs itself under `ncu`, takes the counters of each kernel of one forward pass, and appends one object to the file:
    {"kind": "counters", date, command, machine, versions, kernels: [{problem, system, kernel, and a value by name of
    `METRICS`}]}
which `vicinal bench paper --report-only` shows. Clocks are left alone. Nsight Compute replays each kernel with a cold
cache, so times are longer than in the sweep.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from vicinal.bench.cases import Case, random_inputs
from vicinal.bench.paper.systems import FUSED, GEMM, NAIVE, systems
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.machine import machine, versions

KIND = "counters"
HEADS, HEAD_DIM = 8, 64
PROBLEMS = {  # name: batch, lengths, window
    "1-D 4096 window 127": (2, (4096,), 127),
    "2-D 64x64 window 13": (2, (64, 64), 13),
    "3-D 16x16x16 window 5": (2, (16, 16, 16), 5),
}
METRICS = {  # Nsight Compute's name: ours
    "gpu__time_duration.sum": "seconds",
    "dram__bytes_read.sum": "bytes read",
    "dram__bytes_write.sum": "bytes written",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory %",
    "l1tex__t_sector_hit_rate.pct": "L1 hits %",
    "lts__t_sector_hit_rate.pct": "L2 hits %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "compute %",
    "launch__registers_per_thread": "registers",
    "launch__shared_mem_per_block": "shared bytes",
    "launch__grid_size": "programs",
    "launch__block_size": "threads",
}
SCALES = {"nsecond": 1e-9, "ns": 1e-9, "usecond": 1e-6, "us": 1e-6, "msecond": 1e-3, "ms": 1e-3, "second": 1.0}
SCALES |= {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "byte/block": 1.0, "Kbyte/block": 1e3}
LAUNCHES = {NAIVE: 3, GEMM: 3}  # QK, softmax, AV; fused: what is left


def main() -> None:
    """Append the counters to the file named; as `--child`, be what is counted."""
    if sys.argv[1] == "--child":
        run_forward_passes(torch.device("cuda", 0))
        return
    command = [
        *("ncu", "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"),
        *("--print-units", "base"),
        *("--metrics", ",".join(METRICS), sys.executable, "-m", "vicinal.bench.paper.counters", "--child"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    kernels = parse(done.stdout.splitlines())
    if done.returncode or not kernels:
        sys.exit(f"ncu exited with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    line = {
        "kind": KIND,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(("python3 -m vicinal.bench.paper.counters", *sys.argv[1:])),
        "machine": machine(torch.device("cuda", 0)),
        "versions": versions(),
        "kernels": kernels,
    }
    with Path(sys.argv[1]).open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"counters of {len(kernels)} kernels written to {sys.argv[1]}")


def cases() -> dict[str, Case]:
    """The problems by name."""
    found = {}
    for name, (batch, lengths, window) in PROBLEMS.items():
        neighborhood = Neighborhood.of(len(lengths), window).resolve(lengths)
        found[name] = Case(name, lengths, neighborhood, HEADS, HEAD_DIM, batch, dtype=torch.float16)
    return found


def run_forward_passes(device: torch.device) -> None:
    """One forward pass of each system on each problem within the profiler's range, after one that warms up."""
    for case in cases().values():
        problem = case.problem(device)
        inputs = random_inputs(problem)
        for system in (s for s in systems(device) if s.name in (NAIVE, GEMM, FUSED)):
            attend = system.prepare(problem)
            with torch.no_grad():
                attend(*inputs[:3])
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
                attend(*inputs[:3])
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()


def parse(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The kernels in Nsight Compute's CSV (raw page): a row each, after a row of names and a row of units.

    Which problem and system a kernel belongs to follows from the order of `run_forward_passes`: QK begins naive and
    GEMM, which launch three kernels each.
    """
    table = list(csv.reader(line for line in lines if line.startswith('"')))
    if len(table) < 3:
        return []
    names, units, *rows = table
    found = []
    for (problem, system), row in zip(_owners([row[names.index("Kernel Name")] for row in rows]), rows):
        kernel: dict[str, Any] = {"problem": problem, "system": system, "kernel": row[names.index("Kernel Name")]}
        for metric, ours in METRICS.items():
            if metric in names:
                at = names.index(metric)
                kernel[ours] = _number(row[at], units[at])
        found.append(kernel)
    return found


def _owners(kernels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The problem and system of each kernel."""
    starts = [i for i, kernel in enumerate(kernels) if kernel.split("(")[0] == "pn"]
    for i in range(len(kernels)):
        earlier = [s for s in starts if s <= i]
        index, system = divmod(len(earlier) - 1, 2)
        name = (NAIVE, GEMM)[system]
        if i - earlier[-1] >= LAUNCHES[name]:
            name = FUSED
        yield list(PROBLEMS)[index], name


def _number(text: str, unit: str) -> float | None:
    try:
        return float(text.replace(",", "")) * SCALES.get(unit, 1.0)
    except ValueError:  # "n/a"
        return None


if __name__ == "__main__":
    main()
