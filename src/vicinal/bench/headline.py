"""The headline of recorded runs: for each problem our time and the others' over it, of all files of one device.

A ratio is of one run; where several files of a device have it, of the newest. Rows are grouped as pages show them:
images, video, lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vicinal.bench.cases import Pass
from vicinal.bench.markdown import table
from vicinal.bench.measure import Timing
from vicinal.bench.record import measurements_of
from vicinal.bench.report import our_result, ratio, time_words

Document = dict[str, Any]

GROUPS = {2: "Images", 3: "Video", 1: "Lines"}  # by the number of axes, in the order of pages
PASSES: tuple[Pass, ...] = ("forward", "forward+backward")
PEERS = {  # -> what the headline calls it; others are in the details
    "SDPA cuDNN (self attention)": "cuDNN self attention",
    "SDPA flash (self attention)": "flash self attention",
    "SDPA (self attention)": "self attention",
    "SDPA with a mask": "attention with a mask",
    "FlexAttention": "FlexAttention",
    "cudnn-flex": "cuDNN flex",
    "cudnn-flex, tiled before": "cuDNN flex, tiles given",
}
ON_GPU = ("cuDNN self attention", "flash self attention", "FlexAttention", "cuDNN flex", "cuDNN flex, tiles given")
UNSTEADY = "†"  # after a figure whose quartiles are wide
NOTHING = "–"


@dataclass(frozen=True)
class Ratio:
    """A peer's time over ours, and whether both were steady."""

    value: float
    steady: bool

    def __str__(self) -> str:
        digits = 2 if self.value < 2 else 1 if self.value < 10 else 0
        return f"{self.value:.{digits}f}{'' if self.steady else UNSTEADY}"


@dataclass(frozen=True)
class Row:
    """One problem: our times by pass, and the others' ratios by label and pass."""

    name: str
    rank: int
    ours: dict[Pass, Timing]
    ratios: dict[str, dict[Pass, Ratio]]


@dataclass(frozen=True)
class Headline:
    """What all files of a device say."""

    device: str
    is_gpu: bool
    dates: tuple[str, ...]
    versions: dict[str, str]
    threads: int
    rows: tuple[Row, ...]

    @property
    def peers(self) -> list[str]:
        """Labels, in the order of tables; on a GPU without masks, which few problems have memory for."""
        return [p for p in dict.fromkeys(PEERS.values()) if any(p in r.ratios for r in self.rows) and self._shown(p)]

    def _shown(self, peer: str) -> bool:
        return not self.is_gpu or peer in ON_GPU

    def of_rank(self, rank: int) -> list[Row]:
        """The rows of a group."""
        return [row for row in self.rows if row.rank == rank]

    def where(self) -> str:
        """Device, day and versions in words."""
        days = self.dates[0] if len(set(self.dates)) == 1 else f"{min(self.dates)} to {max(self.dates)}"
        shown = ("torch", "triton") if self.is_gpu else ("torch", "numba")
        versions = ", ".join(f"{name} {self.versions[name]}" for name in shown if name in self.versions)
        return f"{self.device}{'' if self.is_gpu else f', {self.threads} threads'}, {days}, {versions}"


def headlines(documents: Iterable[Document]) -> list[Headline]:
    """One for each device, those with most problems first, of as many those with most peers, then the newer."""
    by_device: dict[str, list[Document]] = {}
    for document in documents:
        by_device.setdefault(document["machine"]["device"], []).append(document)
    made = [_headline(device, sorted(found, key=lambda d: d["date"])) for device, found in by_device.items()]
    return sorted(made, key=lambda h: (len(h.rows), len(h.peers), max(h.dates)), reverse=True)


def _headline(device: str, documents: Sequence[Document]) -> Headline:
    rows: dict[str, Row] = {}
    for document in documents:
        for case in document["cases"]:
            row = rows.setdefault(case["name"], Row(case["name"], len(case["lengths"]), {}, {}))
            measurements = measurements_of(case)
            for passed in PASSES:
                ours = our_result(case, measurements, passed)
                if ours is None or ours.best is None:
                    continue
                row.ours[passed] = ours.best
                for m in measurements:
                    found = ratio(ours, m) if m.passed == passed and m.system in PEERS else None
                    if found is not None and m.best is not None:
                        steady = ours.best.steady and m.best.steady
                        row.ratios.setdefault(PEERS[m.system], {})[passed] = Ratio(found, steady)
    newest = documents[-1]
    is_gpu = newest["machine"]["device"] != newest["machine"]["cpu"]
    dates = tuple(document["date"][:10] for document in documents)
    return Headline(device, is_gpu, dates, newest["versions"], newest["machine"]["threads"], tuple(rows.values()))


def times_table(headline: Headline, rows: Sequence[Row], ours: bool = True) -> str:
    """Markdown: a line for each problem, forward / forward and backward in every cell."""
    header = ["problem", *(["ours"] if ours else []), *headline.peers]
    body = []
    for row in rows:
        mine = [_pair([time_words(row.ours[p]) if p in row.ours else None for p in PASSES])] if ours else []
        others = [_pair([row.ratios.get(peer, {}).get(p) for p in PASSES]) for peer in headline.peers]
        body.append([short(row.name), *mine, *others])
    return table(header, body, numbers=True)


def short(name: str) -> str:
    """A problem's name without what its table says."""
    return name.removeprefix("2-D ").removeprefix("3-D ").removeprefix("1-D ")


def _pair(cells: Sequence[object | None]) -> str:
    if all(cell is None for cell in cells):
        return NOTHING
    return " / ".join(NOTHING if cell is None else str(cell) for cell in cells)


Panel = tuple[str, Headline, Sequence[tuple[str, Row]], Pass]  # title, where from, labelled rows, pass


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Bars of the others' times over ours, side by side, into an image file; labels once where all have the same."""
    from matplotlib.figure import Figure

    order = [*dict.fromkeys(PEERS.values())]
    height = max(sum(1 + len(headline.peers) for _ in rows) for _, headline, rows, _ in panels)
    same = all([label for label, _ in rows] == [label for label, _ in panels[0][2]] for _, _, rows, _ in panels)
    figure = Figure(figsize=(4.2 * len(panels) + (2 if same else 2 * len(panels)), 1.3 + 0.19 * height))
    figure.set_layout_engine("constrained")
    legend: dict[str, Any] = {}
    for i, (axes, (title, headline, rows, passed)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False)[0], panels)
    ):
        step = 1 + len(headline.peers)
        for offset, peer in enumerate(headline.peers):
            found = [
                (j, r) for j, (_, row) in enumerate(rows) if (r := row.ratios.get(peer, {}).get(passed)) is not None
            ]
            places, color = [j * step + offset for j, _ in found], f"C{order.index(peer)}"
            bars = axes.barh(places, [r.value for _, r in found], 0.85, color=color)
            axes.bar_label(bars, [str(r) for _, r in found], padding=3, fontsize=9)
            legend[peer] = bars
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.15, y=0.01)
        labels = [label for label, _ in rows] if i == 0 or not same else [""] * len(rows)
        axes.set_yticks([j * step + (step - 2) / 2 for j in range(len(rows))], labels)
        axes.invert_yaxis()
        axes.set_title(title)
        axes.set_xlabel("times as long as ours")
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def labelled(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Rows with their names in two lines."""
    parts = [short(row.name).partition(" window ") for row in rows]
    return [(f"{head}\n{middle.strip()} {tail}".strip(), row) for (head, middle, tail), row in zip(parts, rows)]


def rows_named(headline: Headline, names: Sequence[str]) -> Iterator[Row]:
    """Rows in the order of `names`; those that were not measured are left out."""
    by_name = {row.name: row for row in headline.rows}
    yield from (by_name[name] for name in names if name in by_name)
