"""How far a long job is: a bar with the time left where a terminal watches and rich is there, else lines of the log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("vicinal.tuning")

Advance = Callable[[str], None]  # one step further; what is next, in words


@contextmanager
def progress(what: str, steps: int, shown: bool = True) -> Iterator[Advance]:
    """A bar of so many steps; nothing unless `shown`."""

    def quiet(words: str) -> None:
        if shown:
            log.info("%s: %s", what, words)

    if not (shown and sys.stderr.isatty()):
        yield quiet
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield quiet
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(*columns, TextColumn("{task.description}", markup=False), console=console, transient=True) as bar:
        task = bar.add_task("", total=steps)

        def advance(words: str) -> None:
            quiet(words)
            bar.update(task, advance=1, description=words)

        yield advance
