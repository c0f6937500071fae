"""What `vicinal bench cp` prints and draws of its records: tables, and curves over numbers of ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vicinal.bench.cp.methods import OVERLAPPED
from vicinal.bench.cp.run import BOTH, FORWARD, KIND, ONE, Point
from vicinal.bench.markdown import figure, table
from vicinal.extras import need
from vicinal.words import by

Records = Sequence[dict[str, Any]]
CHART = "ranks.png"
PASSES = {BOTH: "Forward and backward", FORWARD: "Forward"}


def in_words(point: Point) -> str:
    """One line."""
    head = f"{point.mode} {point.problem} {by(point.lengths)}, {point.method}, {point.passed}:"
    if point.seconds is None:
        return f"{head} {point.status}"
    words = [f"{point.seconds * 1e3:.3g} ms"]
    if point.bytes:
        words.append(f"{point.bytes / 1e6:.4g} MB sent")
    if point.peak_bytes is not None:
        words.append(f"{point.peak_bytes / 1e9:.3g} GB at most")
    if point.hidden is not None:
        words.append(f"exchange {(point.exchange_seconds or 0) * 1e3:.3g} ms, {point.hidden:.0%} hidden")
    if point.error is not None:
        words.append(f"differs by {point.error:.2g}")
    return f"{head} {', '.join(words)}"


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The records among JSON files, fewest ranks first."""
    found = [json.loads(path.read_text()) for path in paths]
    return sorted((r for r in found if isinstance(r, dict) and r.get("kind") == KIND), key=lambda r: r["ranks"])


def parts(results: Path, pictures: Path) -> dict[str, str]:
    """The parts of docs/distributed.md, whose pictures are in a folder below docs."""
    records = read(sorted(results.glob("*.json")))
    if not records:
        return {"ranks": "No run is recorded yet: `vicinal bench cp` makes one."}
    lines = [f"- {r['ranks']} times {r['machine']['device']}, {r['date'][:10]}: `{r['command']}`" for r in records]
    shown = [f"{PASSES[passed]}:\n\n{tables(records, passed)}" for passed in PASSES]
    caption = (
        "Times as fast as one GPU (weak: the map grows with the GPUs, and what is compared is a GPU's share of it)."
    )
    link = "/".join([*pictures.parts[pictures.parts.index("docs") + 1 :], CHART])
    return {"ranks": "\n\n".join(["\n".join(lines), *shown, figure(link, caption)])}


def charts(results: Path, folder: Path) -> list[Path]:
    """Draws the records among the results; the files written."""
    records = read(sorted(results.glob("*.json")))
    if not records:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    draw(records, folder / CHART)
    return [folder / CHART]


def tables(records: Records, passed: str = BOTH) -> str:
    """Markdown: a row for each problem and number of ranks; times of a pass, and what halo does for them."""
    header = ["problem", "GPUs", "one, ms", "halo, ms", "speedup", "all-gather", "Ulysses", "sent, MB", "hidden", "GB"]
    body = []
    for record in records:
        points = {(p["mode"], p["problem"], p["method"]): p for p in record["points"] if p["passed"] == passed}
        for mode, problem, method in points:
            if method != ONE:
                continue
            one, ours = points[mode, problem, ONE], points.get((mode, problem, "halo"))
            if not ours or not ours["seconds"] or not one["seconds"]:
                continue
            scale = record["ranks"] if mode == "weak" else 1
            others = [points.get((mode, problem, name), {}).get("seconds") for name in ("all-gather", "Ulysses")]
            hidden = points.get((mode, problem, OVERLAPPED), {}).get("hidden")
            sent = [points.get((mode, problem, name), {}).get("bytes", 0) for name in ("halo", "all-gather")]
            body.append(
                [
                    f"{problem} {by(ours['lengths'])}, {mode}",
                    str(record["ranks"]),
                    f"{one['seconds'] * 1e3:.3g}",
                    f"{ours['seconds'] * 1e3:.3g}",
                    f"{scale * one['seconds'] / ours['seconds']:.2f}",
                    *("" if t is None else f"{t * 1e3:.3g}" for t in others),
                    f"{sent[0] / 1e6:.4g} of {sent[1] / 1e6:.4g}",
                    "" if hidden is None else f"{hidden:.0%}",
                    "" if ours["peak_bytes"] is None else f"{ours['peak_bytes'] / 1e9:.3g}",
                ]
            )
    return table(header, body, numbers=True)


def draw(records: Records, path: Path) -> None:
    """Speedup over one process against the number of ranks, a panel for each problem, a curve for each method."""
    need("vicinal bench cp --plot", "matplotlib")
    from matplotlib.figure import Figure

    found: dict[tuple[str, str], dict[str, list[tuple[int, float]]]] = {}
    for record in records:
        points = [p for p in record["points"] if p["passed"] == BOTH and p["seconds"]]
        ones = {(p["mode"], p["problem"]): p["seconds"] for p in points if p["method"] == ONE}
        for p in points:
            key = p["mode"], p["problem"]
            if p["method"] == ONE or key not in ones:
                continue
            scale = record["ranks"] if p["mode"] == "weak" else 1
            speedup = scale * ones[key] / p["seconds"]
            found.setdefault(key, {}).setdefault(p["method"], [(1, 1.0)]).append((record["ranks"], speedup))
    columns = max(1, min(3, len(found)))
    rows = -(-max(1, len(found)) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    most = max((record["ranks"] for record in records), default=2)
    for panel, ((mode, problem), curves) in zip(panels, found.items()):
        panel.plot([1, most], [1, most], color="#b0b0b0", linestyle=":", label="ideal")
        for method, curve in curves.items():
            panel.plot(*zip(*sorted(curve)), marker="o", label=method)
        panel.set_title(f"{problem}, {mode}", fontsize=9)
        panel.set_xlabel("GPUs")
        panel.set_ylabel("times as fast as one")
        panel.legend(fontsize=7)
    figure.savefig(path, dpi=150)
