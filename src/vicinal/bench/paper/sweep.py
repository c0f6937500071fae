"""The paper's sweep: every system on many problems, resumable, no single problem ends it.

Results are appended to a file of JSON lines, one object each:
    {"kind": "vicinal paper", schema, date (UTC), command, machine, versions, effort, limits by dtype on CUDA, workers,
        compilers}: once per run, see `vicinal.bench.record` for the fields;
    {"kind": "problem", name, rank, dtype, lengths, window, dilation, batch, heads, head_dim, fused (its backends),
        tilings and waste (by pass: fused's tiling, and the scores that it computes over those that count; of a backward
        pass, the query gradient's), seconds (the problem's own: while some are prepared others are too), spent (by
        step), at (seconds since the run began), error (null, or why there are no results), systems: {name: {status,
        reason, errors, peak_bytes, eager and kernel: seconds per call by pass, medians, eager only where some system
        has no CUDA graph; kernel_is_eager: passes whose calls are so long that both are one}}};
    {"kind": "end", problems, seconds}: what a run took in all.
`status` is "ok", "skipped" (cannot run it), "failed" (an error) or "wrong" (a bad result, not timed). A rerun with the
same file skips what is in it, except with `retry` problems that have an error.

Problems run in processes of their own (`vicinal.bench.paper.processes`): one that crashes, hangs or breaks the CUDA
context is recorded as failed, and a fresh process goes on with the next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch

from vicinal.bench.cases import Case
from vicinal.bench.paper.problems import on_shared_tensors, pairs_of_self_attention, problems, sample
from vicinal.bench.paper.processes import Compilers, Workers
from vicinal.problem import dtype_name

SCHEMA = 2
KIND, END = "vicinal paper", "end"
LATE_SECONDS = 5.0  # for each step of the problems under torch.compile, where the run's time is up
CPU_PAIRS = 1 << 22  # on CPU only problems up to this size of self attention


@dataclass(frozen=True)
class Sweep:
    """What to run and where its results go.

    Attributes:
        results: the file of JSON lines, appended to.
        device: where to run.
        ranks: 1, 2, 3.
        dtypes: float16 (both passes) and float32 (forward), as in the paper.
        sample: problems per rank and dtype; None for all.
        sample_others: of dtypes after the first; None for as many.
        seed: of the sample.
        compiled: problems per rank that also run FlexAttention and compiled plain attention: the sample's first and,
            beside the sample, others on tensors of the same shapes, for which nothing compiles anew.
        seconds: stop before the next problem once the run has taken so long; None for no limit.
        problem_seconds: a problem that takes longer is given up.
        compilers: processes that compile kernels into Triton's cache, ahead of the measuring ones, on CUDA.
        workers: processes that measure, on CUDA: all prepare a problem at once, then time theirs in turns.
        retry: run problems again that the file has with an error.
        command: as typed, for the record.
    """

    results: Path
    device: torch.device
    ranks: tuple[int, ...] = (1, 2, 3)
    dtypes: tuple[torch.dtype, ...] = (torch.float16,)
    sample: int | None = None
    sample_others: int | None = None
    seed: int = 0
    compiled: int = 0
    seconds: float | None = None
    problem_seconds: float = 120.0
    compilers: int = 0
    workers: int = 1
    retry: bool = False
    command: str = ""

    def cases(self) -> list[Case]:
        """The sample's problems, ranks and dtypes in turns, so that a run cut short has its share of each."""
        placed = []
        for column, (dtype, rank) in enumerate(product(self.dtypes, self.ranks)):
            chosen = self._chosen(dtype, rank)
            placed += [((i + 0.5) / len(chosen), column, case) for i, case in enumerate(chosen)]
        return [case for _, _, case in sorted(placed, key=lambda x: x[:2])]

    def groups(self) -> list[list[Case]]:
        """The problems that also run what torch.compile makes, of the first dtype; a group shares what it compiles."""
        found = []
        for rank in self.ranks:
            every, chosen = self._every(self.dtypes[0], rank), self._chosen(self.dtypes[0], rank)
            found += on_shared_tensors(every, chosen, self.compiled)
        return found

    def _every(self, dtype: torch.dtype, rank: int) -> tuple[Case, ...]:
        every = problems(rank, dtype)
        if self.device.type != "cuda":
            every = tuple(case for case in every if pairs_of_self_attention(case) <= CPU_PAIRS)
        return every

    def _chosen(self, dtype: torch.dtype, rank: int) -> list[Case]:
        every = self._every(dtype, rank)
        count = self.sample if dtype == self.dtypes[0] or self.sample_others is None else self.sample_others
        return sample(every, len(every) if count is None else count, self.seed)


@dataclass
class Outcome:
    """What a run did: problems measured, already there, failed; wrong results; whether it came to its end."""

    measured: int = 0
    present: int = 0
    failed: int = 0
    wrong: list[str] = field(default_factory=list)
    complete: bool = True

    def add(self, line: dict[str, Any]) -> None:
        self.measured += line["error"] is None
        self.failed += line["error"] is not None
        self.wrong += [f"{line['name']}: {s}" for s, result in line["systems"].items() if result["status"] == "wrong"]


def run(sweep: Sweep, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> Outcome:
    """Run the sweep, appending to its file. `progress` gets problems done, problems in all, and the next one's name."""
    start = time.monotonic()
    done = {key_of(line) for line in read(sweep.results) if not (sweep.retry and line["error"] is not None)}
    groups = sweep.groups()
    total = len({_key(case) for case in (*sweep.cases(), *chain(*groups))})
    groups = [[case for case in group if _key(case) not in done] for group in groups]
    groups = sorted(filter(None, groups), key=len, reverse=True)
    late = {_key(case) for case in chain(*groups)}
    todo = [case for case in sweep.cases() if _key(case) not in done | late]
    outcome = Outcome(present=total - len(todo) - len(late))
    if not todo and not late:
        return outcome
    workers = sweep.workers if sweep.device.type == "cuda" else 1
    with (
        Compilers([*todo, *chain(*(group[1:] for group in groups))], sweep.device, sweep.compilers) as compilers,
        Workers(sweep.device, len(groups)) as compiling,
        Workers(sweep.device, workers) as measuring,
    ):
        progress(outcome.present, total, "starting")
        header = {"kind": KIND, "schema": SCHEMA, **measuring.header(sweep.dtypes), "command": sweep.command}
        _append(sweep.results, {**header, "workers": workers, "compilers": sweep.compilers})
        begun = compiling.begin([(group[0], True) for group in groups])  # not before the limits are measured

        def is_late() -> bool:
            return sweep.seconds is not None and time.monotonic() - start > sweep.seconds

        def record(lines: list[dict[str, Any]]) -> None:
            for line in lines:
                _append(sweep.results, {**line, "at": round(time.monotonic() - start, 1)})
                outcome.add(line)

        for first in range(0, len(todo), workers):
            batch = todo[first : first + workers]
            if is_late():
                outcome.complete = False
                break
            progress(outcome.present + first, total, batch[0].name)
            for case in batch:
                compilers.wait(case)
            record(measuring.measure([(case, False) for case in batch], sweep.problem_seconds))
        record(compiling.finish(begun, sweep.problem_seconds if outcome.complete else LATE_SECONDS))
        # Groups are sorted, the longest first, so that each stays with the process that compiled for it.
        for turn in range(1, max(map(len, groups), default=1)):
            if is_late():
                outcome.complete = False
                break
            turns = [(group[turn], True) for group in groups if turn < len(group)]
            progress(outcome.present + outcome.measured + outcome.failed, total, turns[0][0].name)
            for case, _ in turns:
                compilers.wait(case)
            record(compiling.measure(turns, sweep.problem_seconds))
        if outcome.complete:
            progress(total, total, "")
    seconds = time.monotonic() - start
    _append(sweep.results, {"kind": END, "problems": outcome.measured + outcome.failed, "seconds": round(seconds, 2)})
    return outcome


def read(path: Path) -> list[dict[str, Any]]:
    """The problems in a file of results, the last of each; a line cut off by an interruption is left out."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines_of(path):
        if line.get("kind") == "problem":
            found[key_of(line)] = line
    return list(found.values())


def headers(path: Path) -> list[dict[str, Any]]:
    """One object per run of a file of results: machine, versions, date, command."""
    return [line for line in lines_of(path) if line.get("kind") == KIND]


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Every object in a file of results; lines cut off by an interruption are left out."""
    if not path.exists():
        return
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            yield line


def ends(path: Path) -> list[dict[str, Any]]:
    """One object per run that was not broken off: its problems and seconds."""
    return [line for line in lines_of(path) if line.get("kind") == END]


def key_of(line: dict[str, Any]) -> tuple[str, str]:
    """What identifies a problem: its name and dtype."""
    return line["name"], line["dtype"]


# The file ---------------------------------------------------------------------------------------------------------


def _key(case: Case) -> tuple[str, str]:
    return case.name, dtype_name(case.dtype)


def _append(path: Path, line: dict[str, Any]) -> None:
    """Add a line and flush it, after completing one that an interruption cut off."""
    cut = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write(("\n" if cut else "") + json.dumps(line) + "\n")
