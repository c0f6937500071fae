"""A run: rows that a file has not are measured, each in turn, in a process of its own if its time is limited.

Results are appended to a file of JSON lines, one object each:
    {"kind": "vicinal bench models", date (UTC), command, machine, versions, effort}: once per run;
    {"kind": "model", date, device, model, dtype, batch, pass ("inference" or "training"), side (null for the model's
        own), systems: {name: {status, reason, errors, tolerances, images_per_second, seconds: see
        `vicinal.bench.measure.Timing`, attention_share (of a forward pass, on CUDA of its kernels' time), and on CUDA
        peak_bytes; replays, the same as seconds of a CUDA graph's replays, where no host is waited for, or
        not_captured, why there are none; kernel_seconds (of a call's kernels), or not_profiled, why it and the share
        are missing}}}.
`status` is "ok", "failed" (an error) or "wrong" (outputs or gradients are off: not timed). The system "none" returns
values as they are: what is left of the model's time without attention; it is not checked. Ratios are to be made of one
line: what is measured later has the fused system beside it again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vicinal.bench.measure import Effort
from vicinal.bench.models.ahead import compile_ahead
from vicinal.bench.models.attends import FUSED, systems
from vicinal.bench.models.measure import Result, measure
from vicinal.bench.models.rows import Row
from vicinal.bench.process import Server
from vicinal.machine import device_name, machine, versions

KIND = "vicinal bench models"
Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What to measure, and how long.

    Attributes:
        results: the file; what it has from the same device is not measured again.
        systems: names of those that run; empty for all.
        row_seconds: a row that takes longer is given up; None measures in this process, without a limit.
        compilers: processes that compile kernels ahead, for at most `compile_seconds`; 0 for none.
        stop_after: no row is begun after so many seconds.
        retry: whether what failed is tried again.
    """

    rows: Sequence[Row]
    device: torch.device
    results: Path
    effort: Effort
    command: str
    systems: tuple[str, ...] = ()
    row_seconds: float | None = None
    compilers: int = 0
    compile_seconds: float = 150.0
    stop_after: float | None = None
    retry: bool = False


def execute(run: Run, console: Console | None = None) -> bool:
    """Measure, with a progress bar and a line for each row; whether all was right.

    Raises:
        ValueError: there is no such system.
    """
    start = time.monotonic()
    every = list(systems(run.device))
    unknown = [name for name in run.systems if name not in every]
    if unknown:
        raise ValueError(f"system must be one of {', '.join(every)}, got {', '.join(unknown)}")
    wanted = [name for name in every if not run.systems or name in run.systems]
    todo = list(_missing(run, wanted))
    if not todo:
        return True
    _append(run.results, _header(run))
    right = True
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = console is None or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        if run.compilers:
            task = progress.add_task("compiling")
            rows, names = [row for row, _ in todo], list(dict.fromkeys(n for _, names in todo for n in names))

            def tell(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            compile_ahead(rows, names, run.device, run.compilers, run.compile_seconds, tell)
            if console is not None:
                console.print(f"kernels compiled after {time.monotonic() - start:.0f} s")
        measuring = _Measuring(run)
        try:
            for row, names in progress.track(todo, description="models"):
                if run.stop_after is not None and time.monotonic() - start > run.stop_after:
                    break
                found = measuring.measure(row, names)
                line = {"kind": "model", "date": _now(), "device": device_name(run.device), **row.key()}
                _append(run.results, line | {"systems": found})
                right &= all(result["status"] != "wrong" for result in found.values())
                if console is not None:
                    console.print(in_words(row, found), soft_wrap=True)
        finally:
            measuring.server.stop(5.0)
    return right


def read(path: Path) -> list[Line]:
    """The lines of a file; one that was cut short, at its end, is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def in_words(row: Row, found: dict[str, Result]) -> str:
    """A row in one line."""
    rates = [
        f"{name} {result['images_per_second']:.4g}" if result["status"] == "ok" else f"{name} {result['status']}"
        for name, result in found.items()
    ]
    key = " ".join(str(value) for value in row.key().values() if value is not None)
    return f"{key}: {', '.join(rates)} images/s"


class _Measuring:
    """Measures in this process, or in one that can be ended."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.server = Server(_serve, run.device, torch.get_num_threads())

    def measure(self, row: Row, names: Sequence[str]) -> dict[str, Result]:
        if self.run.row_seconds is None:
            return measure(row, names, self.run.device, self.run.effort)
        try:
            self.server.send(row, names, self.run.effort)
            answer = self.server.receive(self.run.row_seconds)
        except OSError as error:
            answer = self.server.died(error)
        except RuntimeError as error:
            answer = str(error)
        if not isinstance(answer, str):
            return answer
        return {name: {"status": "failed", "reason": answer} for name in names}


def _serve(connection: Connection, device: torch.device, threads: int) -> None:
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # "cuda" alone has no index
    while True:
        try:
            row, names, effort = connection.recv()
        except EOFError:
            return
        try:
            connection.send(measure(row, names, device, effort))
        except Exception as error:  # of the model itself, or of plain torch
            connection.send(f"{type(error).__name__}: {error}"[:500])
            if device.type == "cuda":
                torch.cuda.synchronize()  # raises where the context is broken: this process ends, another is started


def _missing(run: Run, wanted: Sequence[str]) -> Iterable[tuple[Row, list[str]]]:
    """Rows that the file has not, or not with all systems, and which to measure: the fused one with any other."""
    here = [line for line in read(run.results) if line.get("device") == device_name(run.device)]
    for row in run.rows:
        lines = [line for line in here if all(line.get(k) == v for k, v in row.key().items())]
        done = {
            name
            for line in lines
            for name, result in line["systems"].items()
            if not (run.retry and result["status"] == "failed")
        }
        missing = [name for name in wanted if name not in done]
        if missing:
            yield row, [name for name in wanted if name in missing or name == FUSED]


def _header(run: Run) -> Line:
    header = {"kind": KIND, "date": _now(), "command": run.command}
    return header | {"machine": machine(run.device), "versions": versions(), "effort": asdict(run.effort)}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _append(path: Path, line: Line) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
