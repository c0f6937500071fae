"""Pictures of the tables of models: what fused attention gains over naive, the paper's gain beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vicinal.bench.models.attends import FUSED, NONE
from vicinal.bench.models.document import (
    TITLES,
    Measured,
    curve_picture_name,
    curves,
    measured,
    paper_ratio,
    picture_name,
    table_lines,
)
from vicinal.bench.models.run import Line
from vicinal.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYSTEMS = ("naive", "gemm", "FlexAttention", FUSED, NONE)  # bars, in this order


def draw(paths: Sequence[Path], folder: Path) -> list[Path]:
    """A picture for each table and curve and device that was measured, in `folder`; their paths."""
    rows, made = measured(paths), []
    for device in dict.fromkeys(row.device for row in rows):
        for number in TITLES:
            lines = table_lines(number, [row for row in rows if row.device == device])
            if lines:
                made.append(_draw(number, device, lines, folder / picture_name(number, device)))
    return made + [_draw_curve(line, folder / curve_picture_name(line)) for line in curves(paths)]


def _draw_curve(line: Line, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for (name, losses), style in zip(line["losses"].items(), ("-", "--")):
        axes.plot(range(1, len(losses) + 1), losses, style, linewidth=1, label=name)
    axes.set(title=f"{line['model']}, {line['dtype']}, {line['device']}", xlabel="steps", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return _saved(figure, path)


def _draw(number: int, device: str, lines: Sequence[tuple[Line, Measured]], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.42 * len(lines)), layout="constrained")
    rates, gains = figure.subplots(1, 2, sharey=True)
    systems = [name for name in SYSTEMS if any(row.rate(name) for _, row in lines)]
    height = 0.8 / len(systems)
    for at, name in enumerate(systems):
        places = [i - 0.4 + height * (at + 0.5) for i in range(len(lines))]
        label = "without attention" if name == NONE else name
        rates.barh(places, [row.rate(name) or 0 for _, row in lines], height, label=label)
    rates.set(title=TITLES[number], xlabel=f"images per second, {device}")
    rates.legend(fontsize=7)
    both = ("the paper's, A100", [paper_ratio(line, "naive", number == 8) for line, _ in lines])
    ours = (f"ours, {device}", [row.ratio("naive") or 1.0 for _, row in lines])
    for at, (label, ratios) in enumerate((both, ours)):
        gains.barh([i - 0.2 + 0.4 * at for i in range(len(lines))], [100 * (r - 1) for r in ratios], 0.4, label=label)
    gains.set(title="fused over naive", xlabel="gain, %")
    gains.legend(fontsize=7)
    rates.set_yticks(range(len(lines)), [line["model"] for line, _ in lines])
    rates.invert_yaxis()
    for axes in (rates, gains):
        axes.grid(axis="x", alpha=0.3)
    return _saved(figure, path)


def _saved(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
    return path
