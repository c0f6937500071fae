"""The paper's tables 1 to 4 from the sweep's results, its A100 numbers beside ours, as Markdown.

The paper: "Faster Neighborhood Attention", arXiv 2403.04690 (tables 1 to 4, figure 1, abstract). Its numbers are given
where they are known here (tables are pictures in the sources that were at hand); "?" stands for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import mean
from typing import Any

from vicinal.bench.paper import headers, read
from vicinal.bench.paper_systems import COMPILED, FUSED, GEMM, NAIVE, PLAIN

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
ROWS = (PLAIN, NAIVE, GEMM, FUSED)  # neighborhood attention; every system is a column

# Table 1 and figure 1 as restated in this project's issue 5, and figure 1's caption; FP32's from the abstract.
PAPER_MATCHED = {  # (rank, system, against): % of problems, FP16 forward
    (1, FUSED, NAIVE): 100.0,
    (1, FUSED, GEMM): 100.0,
    (1, FUSED, "SDPA efficient (self attention)"): 100.0,
    (1, FUSED, "SDPA flash (self attention)"): 98.2,
    (2, FUSED, "SDPA efficient (self attention)"): 98.6,
    (2, FUSED, "SDPA flash (self attention)"): 92.4,
    (3, FUSED, "SDPA efficient (self attention)"): 97.3,
    (3, FUSED, "SDPA flash (self attention)"): 87.0,
}
PAPER_AVERAGE = {  # (dtype, pass, rank, system): average improvement over naive, %
    ("float16", "forward", 1, GEMM): 548,
    ("float16", "forward", 2, GEMM): 193,
    ("float16", "forward", 1, FUSED): 1759,
    ("float16", "forward", 2, FUSED): 958,
    ("float16", "forward", 3, FUSED): 1135,
    ("float16", "forward+backward", 1, GEMM): 502,
    ("float16", "forward+backward", 2, GEMM): 92,
    ("float16", "forward+backward", 1, FUSED): 844,
    ("float16", "forward+backward", 2, FUSED): 385,
    ("float16", "forward+backward", 3, FUSED): 447,
    ("float32", "forward", 1, GEMM): 895,
    ("float32", "forward", 2, GEMM): 272,
}

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


def document(path: Path) -> str:
    """The Markdown of a file of results.

    Raises:
        ValueError: no results in it.
    """
    lines = read(path)
    if not lines:
        raise ValueError(f"no results in {path}")
    good = [line for line in lines if line["error"] is None]
    parts = ["# The paper's benchmark", _provenance(path, lines, good)]
    for number, dtype in ((1, "float16"), (2, "float32")):
        chosen = [line for line in good if line["dtype"] == dtype]
        if chosen:
            parts.append(_table_matched(number, dtype, chosen))
    if any(line["dtype"] == dtype for dtype in ("float16", "float32") for line in good):
        parts.append(_table_improvement(3, "forward", good))
    parts.append(_table_improvement(4, "forward+backward", good))
    parts.append(_slower(good))
    parts.append(_troubles(lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def _provenance(path: Path, lines: Sequence[Line], good: Sequence[Line]) -> str:
    text = []
    for header in headers(path):
        versions = ", ".join(f"{name} {v}" for name, v in header["versions"].items())
        text.append(f"- {header['date']}, {header['machine']['device']}; {versions}; `{header['command']}`")
    seconds = [line["seconds"] for line in good if line["seconds"] is not None]
    counts = ", ".join(
        f"{sum(line['rank'] == rank for line in good)} {rank}-D" for rank in sorted({line["rank"] for line in good})
    )
    text.append(f"- problems (a dtype each counts): {counts or 'none'}; {len(lines) - len(good)} without a result")
    if seconds:
        mean_seconds = f"{mean(seconds):.2f} s, at most {max(seconds):.1f} s"
        text.append(f"- time per problem over all systems, compilation and checks included: {mean_seconds}")
    text.append(
        "- times: kernel time (replayed from a CUDA graph) where both systems have one, else eager calls; every result "
        "was checked before it was timed"
    )
    return "\n".join(text)


def _table_matched(number: int, dtype: str, lines: Sequence[Line]) -> str:
    present = [name for name in LABELS if any(name in line["systems"] for line in lines)]
    rows = [name for name in ROWS if name in present]
    header = ["", "neighborhood attention", *(LABELS[name] for name in present)]
    body = []
    for rank in sorted({line["rank"] for line in lines}):
        mine = [line for line in lines if line["rank"] == rank]
        for row in rows:
            cells = []
            for column in present:
                found = None if column == row else matched(mine, row, column)
                cell = "" if found is None else f"{found[0]:.1f}%"
                paper = PAPER_MATCHED.get((rank, row, column)) if dtype == "float16" else None
                if found is not None and paper is not None:
                    cell += f" ({paper:g}%)"
                if found is not None and found[1] != len(mine):
                    cell += f" of {found[1]}"
                cells.append(cell)
            body.append([f"{rank}-D", LABELS[row], *cells])
    title = f"## Table {number}: {dtype} forward, problems matched or outperformed"
    note = (
        f"Share of problems on which the row is at most {100 * (MATCH - 1):.0f}% slower than the column; in brackets "
        "the paper's on an A100, where known; “of n” where not both ran on all problems of the rank."
    )
    return f"{title}\n\n{note}\n\n{_markdown(header, body)}"


def _table_improvement(number: int, passed: str, lines: Sequence[Line]) -> str:
    header = ["", "dtype", "system", "average", "paper's average", "min", "max", "problems"]
    body = []
    for rank in sorted({line["rank"] for line in lines}):
        for dtype in ("float16", "float32"):
            mine = [line for line in lines if line["rank"] == rank and line["dtype"] == dtype]
            for system in (GEMM, FUSED):
                found = improvement(mine, system, passed)
                if found is None:
                    continue
                paper = PAPER_AVERAGE.get((dtype, passed, rank, system))
                body.append(
                    [
                        f"{rank}-D",
                        dtype,
                        LABELS[system],
                        f"{found.average:.0f}%",
                        "?" if paper is None else f"{paper}%",
                        f"{found.least:.0f}%",
                        f"{found.largest:.0f}%",
                        str(found.problems),
                    ]
                )
    if not body:
        return ""
    title = f"## Table {number}: {passed}, improvement over naive"
    return f"{title}\n\n100% is twice as fast.\n\n{_markdown(header, body)}"


def _slower(lines: Sequence[Line]) -> str:
    """Every problem on which fused attention loses, to whom, and how dense the window is."""
    body = []
    for line in lines:
        tokens = prod(line["lengths"])
        share = line["useful_scores"] / (line["batch"] * line["heads"] * tokens**2)
        passes = sorted({p for r in line["systems"].values() for p in r["eager"]})
        for passed in passes:
            for against in line["systems"]:
                times = None if against == FUSED else seconds_of(line, FUSED, against, passed)
                if times is not None and times[0] > MATCH * times[1]:
                    body.append(
                        [
                            line["name"],
                            line["dtype"],
                            passed,
                            line["fused"] or "",
                            LABELS.get(against, against),
                            f"{times[0] * 1e6:.1f}",
                            f"{times[1] * 1e6:.1f}",
                            f"{times[0] / times[1]:.2f}",
                            f"{100 * share:.1f}%",
                        ]
                    )
    if not body:
        return "## Where fused is slower\n\nNowhere."
    body.sort(key=lambda row: -float(row[7]))
    header = ["problem", "dtype", "pass", "backend", "slower than", "fused, µs", "other, µs", "ratio", "pairs used"]
    note = "“Pairs used” is the window's share of self attention's pairs: near 100% there is nothing to save."
    return f"## Where fused is slower\n\n{note}\n\n{_markdown(header, body)}"


def _troubles(lines: Sequence[Line]) -> str:
    """Problems without a result, and systems that failed or were wrong."""
    body = [[line["name"], line["dtype"], "all", line["error"]] for line in lines if line["error"] is not None]
    for line in lines:
        for name, result in line["systems"].items():
            if result["status"] in ("failed", "wrong"):
                reason = f"{result['status']}: {result['reason']}"
                body.append([line["name"], line["dtype"], LABELS.get(name, name), reason])
    if not body:
        return "## Failures\n\nNone."
    return "## Failures\n\n" + _markdown(["problem", "dtype", "system", "what"], body)


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows)
