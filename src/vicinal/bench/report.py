"""Reports of a run: tables in the terminal, and a plot. What is written into pages is in `pages` and `headline`.

A ratio is a peer's time over ours, in one run: above 1 we are faster. Ours is the backend that dispatch would choose.
On a GPU, ratios are of kernel times (replayed from a CUDA graph) where both have one, else of eager times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from vicinal.backends.protocol import Direction
from vicinal.bench.measure import WIDEST_QUARTILES, Measurement, Timing
from vicinal.bench.record import measurements_of, problem_of
from vicinal.dispatch import BACKENDS, backend, preferred

WIDE = 90  # columns from which on quartiles are shown, and where a ratio is worst
UNSTEADY = "!"  # after a time whose quartiles are wide; in the terminal, which may have only ASCII


@dataclass(frozen=True)
class Summary:
    """One peer on one pass over a run: geometric mean of the ratios, the worst and where, and how many."""

    peer: str
    passed: str
    mean: float
    worst: float
    worst_case: str
    count: int


def ratio(ours: Measurement, peer: Measurement) -> float | None:
    """The peer's time over ours; None where either has none."""
    if ours.kernel is not None and peer.kernel is not None:
        return peer.kernel.median / ours.kernel.median
    if ours.eager is not None and peer.eager is not None:
        return peer.eager.median / ours.eager.median
    return None


def share_of_rate(ours: Measurement, peer: Measurement) -> float | None:
    """Useful FLOP/s of ours over those of the peer: 1 is the peer's rate with nothing wasted; None without times."""
    found = ratio(ours, peer)
    return None if found is None else found * ours.flops / peer.flops


def our_result(case: dict[str, Any], measurements: Sequence[Measurement], passed: str) -> Measurement | None:
    """Of the vicinal measurements of the pass that have a time, the one that dispatch would choose.

    "forward+backward" counts as backward, which takes most of it: a mixture of two backends is not measured.
    """
    timed = [m for m in measurements if m.passed == passed and m.system.startswith("vicinal") and m.best]
    mine = {m.system.split()[-1]: m for m in timed if m.system.split()[-1] in BACKENDS}
    if len(mine) < 2:  # one, or of a backend that is no more
        return next(iter([*mine.values(), *timed]), None)
    direction: Direction = "forward" if passed == "forward" else "backward"
    return mine[preferred([backend(name) for name in mine], problem_of(case), direction)[0].name]


def summarize(document: dict[str, Any]) -> list[Summary]:
    """Ratios to every peer over all cases of a run."""
    ratios: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for case in document["cases"]:
        measurements = measurements_of(case)
        ours_by_pass = {p: our_result(case, measurements, p) for p in {m.passed for m in measurements}}
        for m in measurements:
            ours = ours_by_pass[m.passed]
            if ours is None or m.system == ours.system:
                continue
            found = ratio(ours, m)
            if found is not None:
                ratios.setdefault((m.passed, m.system), []).append((found, case["name"]))
    return [
        Summary(peer, passed, exp(sum(log(r) for r, _ in found) / len(found)), *min(found), len(found))
        for (passed, peer), found in sorted(ratios.items())
    ]


def print_case(console: Console, case: dict[str, Any]) -> None:
    """One case's measurements, pass by pass; below the table, who has none and why."""
    measurements = measurements_of(case)
    kernels = any(m.kernel for m in measurements)
    quartiles = console.width >= WIDE
    table = Table(Column("system", overflow="fold"), title=case["name"], title_justify="left")
    for name in ["kernel"] * kernels + ["eager"]:
        table.add_column(f"{name} (quartiles)" if quartiles else name, justify="right", no_wrap=True)
    for name in ("GFLOP/s", "time / ours"):
        table.add_column(name, justify="right")
    remarks: dict[str, list[str]] = {}
    for passed in dict.fromkeys(m.passed for m in measurements):
        ours = our_result(case, measurements, passed)
        table.add_section()
        table.add_row(Text(passed, "italic"))
        for m in (m for m in measurements if m.passed == passed):
            if m.reason is not None:
                remarks.setdefault(f"{m.system}: {m.status}, {m.reason}", []).append(passed)
            if m.best is None:
                continue
            found = None if ours is None else ratio(ours, m)
            table.add_row(
                Text(m.system, "bold" if m.system.startswith("vicinal") else ""),
                *([_spread(m.kernel, quartiles)] if kernels else []),
                _spread(m.eager, quartiles),
                rate_words(m.flops / m.best.median / 1e9),
                "-" if found is None else f"{found:.2f}",
            )
    console.print(table)
    if any(t is not None and not t.steady for m in measurements for t in (m.kernel, m.eager)):
        wide = f"quartiles wider than {WIDEST_QUARTILES:.0%} of the median: the machine was disturbed, measure again"
        console.print(f"  {UNSTEADY} {wide}", highlight=False, markup=False)
    for remark, passes in remarks.items():
        console.print(f"  {remark} ({', '.join(passes)})", highlight=False, markup=False)


def print_summary(console: Console, document: dict[str, Any]) -> None:
    """Geometric mean and worst ratio to every peer."""
    table = Table(title="Times of others over ours (above 1: ours is faster)", title_justify="left")
    table.add_column("pass")
    table.add_column("system", overflow="fold")
    for name in ("geometric mean", "worst", "cases"):
        table.add_column(name, justify="right")
    wide = console.width >= WIDE
    if wide:
        table.add_column("worst on", overflow="fold")
    for s in summarize(document):
        place = [s.worst_case] if wide else []
        table.add_row(s.passed, s.peer, f"{s.mean:.2f}", f"{s.worst:.2f}", str(s.count), *place)
    console.print(table)


def plot(document: dict[str, Any], path: Path) -> None:
    """Bars of every system's time over ours, case by case, one panel per pass, into an image file."""
    from matplotlib.figure import Figure

    cases = [(case, measurements_of(case)) for case in document["cases"]]
    passes = list(dict.fromkeys(m.passed for _, ms in cases for m in ms if m.best))
    systems = list(dict.fromkeys(m.system for _, ms in cases for m in ms if m.best))
    figure = Figure(
        figsize=(3 + 4 * max(1, len(passes)), 1.5 + 0.14 * len(cases) * (len(systems) + 1)), layout="constrained"
    )
    panels = figure.subplots(1, max(1, len(passes)), sharey=True, squeeze=False)[0]
    for panel, passed in zip(panels, passes):
        for offset, system in enumerate(systems):
            bars = [
                (row * (len(systems) + 1) + offset, found)
                for row, (case, ms) in enumerate(cases)
                for m in ms
                if m.system == system and m.passed == passed and (ours := our_result(case, ms, passed)) is not None
                if (found := ratio(ours, m)) is not None
            ]
            panel.barh([at for at, _ in bars], [length for _, length in bars], color=f"C{offset}", label=system)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_xscale("log")
        panel.set_title(passed)
        panel.set_xlabel("time / ours")
    middles = [(len(systems) + 1) * i + len(systems) / 2 for i in range(len(cases))]
    panels[0].set_yticks(middles, [case["name"] for case, _ in cases])
    panels[0].invert_yaxis()
    panels[-1].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def rate_words(giga: float) -> str:
    """GFLOP/s in at least two digits."""
    return f"{giga:,.0f}" if giga >= 10 else f"{giga:.2g}"


def quartiles_words(timing: Timing) -> str:
    """Both quartiles with their units."""
    return f"{time_words(timing.lower)} - {time_words(timing.upper)}"


def time_words(seconds: float | Timing) -> str:
    """Seconds, or a median, in three digits and a unit."""
    seconds = seconds.median if isinstance(seconds, Timing) else seconds
    scale, unit = _unit(seconds)
    return f"{seconds / scale:.3g} {unit}"


def _spread(timing: Timing | None, quartiles: bool) -> str:
    if timing is None:
        return "-"
    mark = "" if timing.steady else f" {UNSTEADY}"
    if not quartiles:
        return time_words(timing) + mark
    scale, unit = _unit(timing.median)
    return f"{timing.median / scale:.3g} {unit} ({timing.lower / scale:.3g} - {timing.upper / scale:.3g}){mark}"


def _unit(seconds: float) -> tuple[float, str]:
    return next(((scale, unit) for scale, unit in ((1.0, "s"), (1e-3, "ms")) if seconds >= scale), (1e-6, "us"))
