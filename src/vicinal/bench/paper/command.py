"""What `vicinal bench paper` shows: progress with the time left, a summary, tables and figures."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vicinal.bench.paper.document import document
from vicinal.bench.paper.plots import draw
from vicinal.bench.paper.sweep import Outcome, Sweep, run
from vicinal.files import write_text

PLAIN_SECONDS = 15.0  # where there is no terminal for a bar: a line so often


def run_with_progress(sweep: Sweep, console: Console) -> bool:
    """Run a sweep with a progress bar; whether no system gave a wrong result."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        said = time.monotonic()

        def progress(done: int, total: int, what: str) -> None:
            nonlocal said
            bar.update(task, completed=done, total=total, description=what)
            if not console.is_terminal and time.monotonic() - said > PLAIN_SECONDS:
                said = time.monotonic()
                console.print(f"{done}/{total} {what}", highlight=False)

        outcome = run(sweep, progress)
    _summary(outcome, sweep.results, console)
    return not outcome.wrong


def report(results: Path, tables: Path | None, plots: Path | None, console: Console) -> None:
    """Write the tables and figures asked for; with neither, print the tables.

    Raises:
        ValueError: the file has no results.
    """
    figures = [] if plots is None else draw(results, plots)
    for path in figures:
        console.print(f"wrote {path}", highlight=False)
    if tables is not None:
        write_text(tables, document(results, figures, tables.parent))
        console.print(f"wrote {tables}", highlight=False)
    if tables is None and plots is None:
        console.print(document(results), markup=False, highlight=False, soft_wrap=True)


def _summary(outcome: Outcome, results: Path, console: Console) -> None:
    words = [f"{outcome.measured} problems measured"]
    if outcome.present:
        words.append(f"{outcome.present} were there already")
    if outcome.failed:
        words.append(f"{outcome.failed} without a result")
    if not outcome.complete:
        words.append("out of time, run again to go on")
    console.print(f"{', '.join(words)}; results in {results}", highlight=False)
    for wrong in outcome.wrong:
        console.print(f"wrong result: {wrong}", highlight=False)
