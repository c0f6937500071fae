"""The paper's tables 1 to 4 from the sweep's results, its A100 numbers beside ours, as Markdown.

The paper's numbers are in `published`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from statistics import mean, median
from typing import Any

from vicinal.bench.markdown import table
from vicinal.bench.paper import published
from vicinal.bench.paper.systems import COMPILED, COMPILING, FUSED, GEMM, NAIVE, PLAIN

MATCH = 1.01  # "matched or outperformed": at most so much slower; timings repeat to about a percent
LABELS = {  # system -> what tables call it
    NAIVE: "naive",
    GEMM: "GEMM",
    FUSED: "fused",
    PLAIN: "plain torch",
    "SDPA efficient (self attention)": "FMHA",
    "SDPA flash (self attention)": "flash",
    "SDPA cuDNN (self attention)": "cuDNN",
    "SDPA (self attention)": "SDPA",
    "FlexAttention": "FlexAttention",
    COMPILED: "compiled plain",
}
NEIGHBORS = (16, 64, 256, 1 << 31)  # classes of windows
THIN = 64  # tokens: groups with fewer are a class of their own
ROWS = (PLAIN, NAIVE, GEMM, FUSED)  # neighborhood attention; every system is a column

Line = dict[str, Any]


@dataclass(frozen=True)
class Improvement:
    """Of a system over naive on some problems: average, least and largest, in percent."""

    average: float
    least: float
    largest: float
    problems: int


def seconds_of(line: Line, first: str, second: str, passed: str) -> tuple[float, float] | None:
    """Times of two systems on one problem, comparable: both replayed from a graph, else both eager; None if not both.

    Kernel times leave host time out, which the systems' own Python would dominate on small problems.
    """
    a, b = (line["systems"].get(name) for name in (first, second))
    if a is None or b is None or a["status"] != "ok" or b["status"] != "ok":
        return None
    for kind in ("kernel", "eager"):
        times = (a[kind].get(passed), b[kind].get(passed))
        if None not in times:
            return times
    return None


def matched(lines: Iterable[Line], system: str, against: str, passed: str = "forward") -> tuple[float, int] | None:
    """The percentage of problems on which `system` matches or outperforms `against`, and of how many."""
    pairs = [t for line in lines if (t := seconds_of(line, system, against, passed)) is not None]
    if not pairs:
        return None
    return 100 * mean(ours <= MATCH * theirs for ours, theirs in pairs), len(pairs)


def improvement(lines: Iterable[Line], system: str, passed: str, over: str = NAIVE) -> Improvement | None:
    """How much faster `system` is: 100% is twice as fast."""
    pairs = [t for line in lines if (t := seconds_of(line, system, over, passed)) is not None]
    gains = [100 * (theirs / ours - 1) for ours, theirs in pairs]
    return Improvement(mean(gains), min(gains), max(gains), len(gains)) if gains else None


def table_matched(number: int, dtype: str, lines: Sequence[Line]) -> str:
    """Tables 1 and 2: on how many problems a system is at least as fast as another."""
    present = [name for name in LABELS if any(name in line["systems"] for line in lines)]
    rows = [name for name in ROWS if name in present]
    title = f"## Table {number}: {dtype} forward, problems matched or outperformed"
    note = (
        f"Share of problems on which the row is at most {100 * (MATCH - 1):.0f}% slower than the column; in brackets "
        "the paper's, on an A100 (it has no GEMM kernels in 3-D, and no cuDNN). “Of n” where not both ran on all."
    )
    kernels = [name for name in present if name not in COMPILING]
    parts = [title, note, _matched(dtype, lines, rows, kernels)]
    compiling = [name for name in present if name in COMPILING]
    if compiling:
        parts += ["The same against what `torch.compile` makes, on a part of the problems:"]
        parts += [_matched(dtype, lines, [row for row in rows if row not in COMPILING], compiling)]
    return "\n\n".join(parts)


def _matched(dtype: str, lines: Sequence[Line], rows: Sequence[str], columns: Sequence[str]) -> str:
    body = []
    for rank in sorted({line["rank"] for line in lines}):
        mine = [line for line in lines if line["rank"] == rank]
        for row in rows:
            cells = []
            for column in columns:
                found = None if column == row else matched(mine, row, column)
                cell = "" if found is None else f"{found[0]:.1f}%"
                paper = published.matched(dtype, rank, row, column)
                if found is not None and paper is not None:
                    cell += f" ({paper:g}%)"
                if found is not None and found[1] != len(mine):
                    cell += f" of {found[1]}"
                cells.append(cell)
            body.append([f"{rank}-D {LABELS[row]}", *cells])
    return table(["", *(LABELS[name] for name in columns)], body)


def table_improvement(number: int, passed: str, lines: Sequence[Line]) -> str:
    """Tables 3 and 4: how much faster than another kind of neighborhood attention; empty where nothing was measured."""
    header = ["", "dtype", "improvement", "average", "paper", "least to largest", "paper", "problems"]
    body = []
    for rank in sorted({line["rank"] for line in lines}):
        for dtype in ("float16", "float32"):
            mine = [line for line in lines if line["rank"] == rank and line["dtype"] == dtype]
            for system, over in ((GEMM, NAIVE), (FUSED, NAIVE), (FUSED, GEMM)):
                found = improvement(mine, system, passed, over)
                if found is None:
                    continue
                paper = published.improvement(dtype, passed, rank, system, over)
                row = [f"{rank}-D", dtype, f"{LABELS[system]} over {LABELS[over]}"]
                row += [f"{found.average:.0f}%", "–" if paper is None else f"{paper.average}%"]
                row += [f"{found.least:.0f}% to {found.largest:.0f}%"]
                row += ["–" if paper is None else f"{paper.least}% to {paper.largest}%", str(found.problems)]
                body.append(row)
    if not body:
        return ""
    title = f"## Table {number}: {passed}, improvement"
    note = "100% is twice as fast. “–”: the paper has no such kernels or does not time them."
    return f"{title}\n\n{note}\n\n{table(header, body)}"


def is_thin(line: Line) -> bool:
    """Whether a problem's dilation groups have fewer than `THIN` tokens."""
    return bool(prod(line["lengths"]) < THIN * prod(line["dilation"]))


def table_by_window(lines: Sequence[Line]) -> str:
    """What tables 3 and 4 average over: improvement by the number of neighbors, thin dilation groups apart."""
    body = []
    mine = [line for line in lines if line["dtype"] == "float16"]
    for rank in sorted({line["rank"] for line in mine}):
        low = 0
        for high in NEIGHBORS:
            for thin in (False, True):
                here = [
                    line
                    for line in mine
                    if line["rank"] == rank and low <= prod(line["window"]) < high and is_thin(line) == thin
                ]
                cells = []
                for passed in ("forward", "forward+backward"):
                    for system in (FUSED, GEMM):
                        pairs = [t for line in here if (t := seconds_of(line, system, NAIVE, passed)) is not None]
                        gains = [100 * (theirs / ours - 1) for ours, theirs in pairs]
                        cells.append(f"{mean(gains):.0f}% ({median(gains):.0f}%)" if gains else "")
                if any(cells):
                    neighbors = f"{low} or more" if high == NEIGHBORS[-1] else f"below {high}"
                    body.append([f"{rank}-D", neighbors, "thin" if thin else "", str(len(here)), *cells])
            low = high
    if not body:
        return ""
    header = ["", "neighbors", "groups", "problems", "fused, forward", "GEMM, forward", "fused, both", "GEMM, both"]
    note = (
        "Average (median), float16. The averages above are of this mix of problems; the paper's is not published. "
        f"Thin: dilation groups of fewer than {THIN} tokens."
    )
    return f"## Improvement over naive by window\n\n{note}\n\n{table(header, body)}"
