"""The sweep's figures: average improvement (the paper's figure 1), speed-ups, memory, and the roofline.

Arithmetic intensity of one forward pass, from the paper's section 3.3 (equations 2 to 4): with n queries, l neighbors
each, d dims and s bytes per element, unfused attention does `4 n l d` FLOPs and moves queries, keys, values and outputs
once and the weights four times (written as scores; read and written by softmax; read as weights), so QK alone tends to
`2 d / s`; fused attention moves only the first four, so it tends to `l / s`. Naive kernels load every neighbor anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from statistics import median

from vicinal.bench.cases import Case
from vicinal.bench.paper import published
from vicinal.bench.paper.problems import problems
from vicinal.bench.paper.sweep import headers, key_of, read
from vicinal.bench.paper.systems import FUSED, GEMM, NAIVE
from vicinal.bench.paper.tables import LABELS, Line, improvement, seconds_of
from vicinal.bench.roofline import Limits, Point, plot_roofline
from vicinal.problem import DTYPES, Problem

PASSES = ("forward", "forward+backward")


def moved_bytes(problem: Problem, system: str) -> int:
    """Bytes that a forward pass of "naive", "gemm" or "fused" moves, by the paper's model (see the module)."""
    row, size = _row_bytes(problem), problem.dtype.itemsize
    weights = problem.useful_scores * size
    if system == FUSED:
        return 4 * row
    if system == GEMM:
        return 4 * row + 4 * weights
    if system == NAIVE:
        return 2 * row + 2 * problem.useful_scores * problem.head_dim * size + 4 * weights
    raise ValueError(f"system must be {NAIVE!r}, {GEMM!r} or {FUSED!r}, got {system!r}")


def draw(results: Path, folder: Path) -> list[Path]:
    """Draw every figure that the results allow into `folder`; the files written.

    Raises:
        ValueError: no results.
    """
    lines = [line for line in read(results) if line["error"] is None]
    if not lines:
        raise ValueError(f"no results in {results}")
    folder.mkdir(parents=True, exist_ok=True)
    device = headers(results)[-1]["machine"]["device"]
    written = [
        _improvements(lines, device, folder / "improvement.png"),
        _speedups(lines, device, folder / "speedup.png"),
    ]
    if any(r.get("peak_bytes") for line in lines for r in line["systems"].values()):
        written.append(_memory(lines, device, folder / "memory.png"))
    for dtype, limits in limits_of(results).items():
        found = points([line for line in lines if line["dtype"] == dtype])
        if found:
            path = folder / f"roofline-{dtype}.png"
            plot_roofline(limits, found, path, f"{device}, {dtype}, forward, bytes by the paper's model")
            written.append(path)
    return written


def limits_of(results: Path) -> dict[str, Limits]:
    """What the device was measured to do, by dtype; the last run's."""
    return {dtype: Limits(**x) for header in headers(results) for dtype, x in header["limits"].items()}


def points(lines: Sequence[Line]) -> list[Point]:
    """Naive, GEMM and fused on one problem of each rank, the one with the most pairs, at the bytes the model gives."""
    found = []
    for rank in sorted({line["rank"] for line in lines}):
        line = max((x for x in lines if x["rank"] == rank), key=lambda x: x["useful_scores"])
        case = _case_of(line)
        if case is None:
            continue
        problem = case.problem("cpu")
        for system in (NAIVE, GEMM, FUSED):
            times = seconds_of(line, system, system, "forward") if system in line["systems"] else None
            if times is not None:
                moved = moved_bytes(problem, system)
                found.append(Point(line["name"], problem.forward_flops, moved, times[0], LABELS[system]))
    return found


def _improvements(lines: Sequence[Line], device: str, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    ranks = sorted({line["rank"] for line in lines})
    for axes, passed in zip(figure.subplots(1, 2), PASSES):
        for i, system in enumerate((GEMM, FUSED)):
            found = [
                improvement([x for x in lines if x["rank"] == r and x["dtype"] == "float16"], system, passed)
                for r in ranks
            ]
            places = [r + 0.35 * i for r in ranks]
            heights = [0.0 if f is None else f.average for f in found]
            axes.bar(places, heights, 0.33, label=LABELS[system])
            known = [(p, published.improvement("float16", passed, r, system)) for p, r in zip(places, ranks)]
            marks = [(p, v.average) for p, v in known if v is not None]
            if marks:
                label = "the paper, A100" if i else None
                axes.plot(*zip(*marks), "k_", markersize=18, label=label)
        axes.set_xticks([r + 0.175 for r in ranks], [f"{r}-D" for r in ranks])
        axes.set_title(f"float16 {passed}")
        axes.set_ylabel("average improvement over naive, %")
        axes.margins(y=0.2)  # room for the legend
        axes.legend()
    figure.suptitle(device)
    figure.savefig(path, dpi=150)
    return path


def _speedups(lines: Sequence[Line], device: str, path: Path) -> Path:
    from matplotlib.figure import Figure

    ranks = sorted({line["rank"] for line in lines})
    against = [name for name in LABELS if name != FUSED and any(name in line["systems"] for line in lines)]
    figure = Figure(figsize=(4 * len(ranks), 9), layout="constrained")
    for row, passed in zip(figure.subplots(2, len(ranks), squeeze=False, sharey=True), PASSES):
        for axes, rank in zip(row, ranks):
            mine = [line for line in lines if line["rank"] == rank and line["dtype"] == "float16"]
            boxes, names = [], []
            for name in against:
                pairs = [t for line in mine if (t := seconds_of(line, FUSED, name, passed)) is not None]
                if pairs:
                    boxes.append([theirs / ours for ours, theirs in pairs])
                    names.append(f"{LABELS[name]} ({len(pairs)})")
            if boxes:
                axes.boxplot(boxes, whis=(0, 100))
                axes.set_xticks(
                    range(1, len(names) + 1), names, rotation=50, ha="right", rotation_mode="anchor", fontsize=10
                )
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
            axes.axhline(1, color="grey", linewidth=0.8)
            axes.set_title(f"{rank}-D, float16 {passed}", fontsize=11)
        row[0].set_ylabel("time over fused attention's")
    figure.suptitle(f"{device}: all, quartiles and median of the problems")
    figure.savefig(path, dpi=150)
    return path


def _memory(lines: Sequence[Line], device: str, path: Path) -> Path:
    """Of each system a bar from the least to the largest per n, side by side, and its median."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    drawn = 0
    for name, label in LABELS.items():
        found: dict[int, list[float]] = {}
        for line in lines:
            peak = line["systems"].get(name, {}).get("peak_bytes")
            if peak and line["dtype"] == "float16":
                tokens = prod(line["lengths"])
                size = 2 * tokens * line["batch"] * line["heads"] * line["head_dim"]
                found.setdefault(tokens, []).append(peak / size)
        if found:
            places = [tokens * 1.06 ** (drawn - 3) for tokens in sorted(found)]
            each = [sorted(found[tokens]) for tokens in sorted(found)]
            axes.vlines(places, [x[0] for x in each], [x[-1] for x in each], color=f"C{drawn}", linewidth=2, alpha=0.5)
            axes.plot(
                places, [median(x) for x in each], "o-", color=f"C{drawn}", markersize=4, linewidth=0.8, label=label
            )
            drawn += 1
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tokens n (systems side by side)")
    axes.set_ylabel("peak memory over the query's bytes")
    axes.set_title(f"{device}: memory beyond the inputs, float16 forward+backward; medians, least to largest")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    return path


def _case_of(line: Line) -> Case | None:
    every = problems(line["rank"], DTYPES[line["dtype"]])
    return next((case for case in every if (case.name, line["dtype"]) == key_of(line)), None)


def _row_bytes(problem: Problem) -> int:
    return problem.batch * prod(problem.lengths) * problem.heads * problem.head_dim * problem.dtype.itemsize
