"""A whole run: every case with every system, tables as they come, the record saved after each case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.status import Status
from rich.text import Text

from vicinal.bench import report
from vicinal.bench.cases import Case
from vicinal.bench.measure import Effort, measure
from vicinal.bench.peers import System, peers, vicinal_system, vicinal_systems
from vicinal.bench.record import Record, measurements_of
from vicinal.bench.roofline import Limits, Point, measure_limits, plot_roofline
from vicinal.problem import DTYPES


@dataclass(frozen=True)
class Run:
    """What to run and where its results go.

    Attributes:
        cases: the problems; `suite` is their name, if they have one.
        backends: vicinal's backends by name; empty for the automatic ones that can run each case.
        peers: parts of the names of the peers that run too; empty for none, None for all.
        command: as typed, for the record.
        json, plot, roofline: files to write; None writes none.
    """

    cases: Sequence[Case]
    device: torch.device
    effort: Effort
    command: str
    suite: str | None = None
    backends: tuple[str, ...] = ()
    peers: tuple[str, ...] | None = None
    json: Path | None = None
    plot: Path | None = None
    roofline: Path | None = None


def execute(run: Run, console: Console) -> bool:
    """Run it; whether no system gave a wrong result. Interrupted, it keeps what it has and raises KeyboardInterrupt."""
    record = Record(run.command, run.suite, run.device, run.effort)
    measured: dict[torch.dtype, Limits] = {}
    for dtype in dict.fromkeys(case.dtype for case in run.cases):
        measured[dtype] = measure_limits(run.device, dtype)
        record.add_limits(dtype, measured[dtype])
    right = True
    try:
        for i, case in enumerate(run.cases, 1):
            with console.status("") as status:
                progress = partial(_tell, status, f"{i}/{len(run.cases)} ")
                results = measure(case, systems(run, case), run.device, run.effort, progress)
            record.add(case, results)
            right &= all(m.status != "wrong" for m in results)
            if run.json is not None:
                record.save(run.json)
            report.print_case(console, record.document["cases"][-1])
            if run.device.type == "cuda":
                torch.cuda.empty_cache()
        record.finish()
    finally:
        if record.document["cases"]:
            _conclude(run, record, measured, console)
    return right


def _tell(status: Status, prefix: str, words: str) -> None:
    status.update(Text(prefix + words))


def systems(run: Run, case: Case) -> list[System]:
    """What runs on a case, ours first."""
    problem = case.problem(run.device)
    ours = [vicinal_system(name) for name in run.backends] or vicinal_systems(problem)
    others = peers(run.device)
    if run.peers is not None:
        others = [peer for peer in others if any(part in peer.name for part in run.peers)]
    return ours + others


def _conclude(run: Run, record: Record, measured: dict[torch.dtype, Limits], console: Console) -> None:
    report.print_summary(console, record.document)
    if run.json is not None:
        record.save(run.json)
        console.print(f"wrote {run.json}", highlight=False)
    if run.plot is not None:
        report.plot(record.document, run.plot)
        console.print(f"wrote {run.plot}", highlight=False)
    if run.roofline is not None:
        dtype = next(iter(measured))
        points = _points(record, dtype)
        plot_roofline(measured[dtype], points, run.roofline, str(record.document["machine"]["device"]))
        console.print(f"wrote {run.roofline}", highlight=False)


def _points(record: Record, dtype: torch.dtype) -> list[Point]:
    """Our forward passes of one dtype."""
    points = []
    for case in record.document["cases"]:
        ours = report.our_result(case, measurements_of(case), "forward")
        if ours is not None and ours.best is not None and DTYPES[case["dtype"]] == dtype:
            moved = case["least_bytes"]["forward"]
            points.append(Point(case["name"], ours.flops, moved, ours.best.median))
    return points
