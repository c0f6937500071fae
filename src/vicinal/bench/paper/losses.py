"""Where fused attention loses in the paper's sweep, and what there was to win: by the measured roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import ceil, prod
from statistics import median

from vicinal.bench.cases import Case, Pass
from vicinal.bench.markdown import folded, table
from vicinal.bench.paper.systems import FUSED
from vicinal.bench.paper.tables import LABELS, MATCH, THIN, Line, is_thin, seconds_of
from vicinal.bench.roofline import Limits, least_seconds
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import DTYPES

DENSE = 0.25  # share of self attention's pairs from which a window leaves little to save
EVEN = 1.05  # of `to_save`, up to which there is nothing to save
FEW = 16  # keys: the fewest that a tile has
TILE, TILES = 64, 264  # tokens of a tile, about; tiles that an H200 needs for two on each of its 132 multiprocessors
KINDS = {  # a problem is of the first kind that fits
    "dense": f"the window has {100 * DENSE:.0f}% or more of self attention's pairs: little can be saved, and whole "
    "tiles and masks at windows' edges take their part of it",
    "thin": f"dilation leaves groups of fewer than {THIN} tokens: tiles hold tokens of few groups and are partly empty",
    "even": "by the roofline self attention takes no longer: it, too, is bound by moving the tensors",
    "few": f"fewer than {FEW} neighbors: a tile has at least {FEW} keys, and in float32 three TF32 products for each, "
    "where naive kernels multiply only what counts",
    "small": f"fewer than {TILES} tiles of {TILE} queries, two for each multiprocessor: the GPU is not full, and what "
    "one program takes decides",
    "other": "none of these",
}
SAVINGS = (EVEN, 1.5, 2.0, 4.0, float("inf"))  # classes of `to_save`

Lost = list[tuple[float, str]]  # our time over another's, and whose, the worst first


def to_save(line: Line, passed: Pass, limits: Mapping[str, Limits]) -> float | None:
    """Self attention's least time over neighborhood attention's, by the roofline; None where none was measured."""
    if line["dtype"] not in limits:
        return None
    case = _case(line["rank"], *(tuple(line[x]) for x in ("lengths", "window", "dilation")), *_sizes(line))
    whole, own = (x.problem("cpu") for x in (case.self_attention(), case))
    return least_seconds(whole, passed, limits[line["dtype"]]) / least_seconds(own, passed, limits[line["dtype"]])


def kind_of(line: Line, saving: float | None = None) -> str:
    """Which of `KINDS` a problem is of; `saving`: what there is to save, where that is known."""
    tokens, pairs = prod(line["lengths"]), line["useful_scores"] / (line["batch"] * line["heads"])
    groups = prod(line["dilation"])
    if pairs >= DENSE * tokens**2:
        return "dense"
    if is_thin(line):
        return "thin"
    if saving is not None and saving <= EVEN:
        return "even"
    if pairs < FEW * tokens:
        return "few"
    return "small" if line["batch"] * line["heads"] * groups * ceil(tokens / groups / TILE) < TILES else "other"


def losses(lines: Sequence[Line], limits: Mapping[str, Limits]) -> str:
    """The section: how often fused loses by what there is to save, by kind, and every problem."""
    timed = _timed(lines)
    title = "## Where fused is slower"
    if not any(lost for every in timed.values() for _, lost in every):
        return f"{title}\n\nNowhere."
    note = f"By more than {100 * (MATCH - 1):.0f}%, in kernel time: no host time is in it."
    parts = [title, note, _by_saving(timed, limits), _by_kind(timed, limits), _each(timed, limits)]
    return "\n\n".join(part for part in parts if part)


def _timed(lines: Sequence[Line]) -> dict[tuple[int, str, Pass], list[tuple[Line, Lost]]]:
    """By rank, dtype and pass: all problems that fused and another ran, with those that were faster."""
    timed: dict[tuple[int, str, Pass], list[tuple[Line, Lost]]] = {}
    for line in lines:
        for passed in sorted({p for r in line["systems"].values() for p in (*r["eager"], *r["kernel"])}):
            others = {name: seconds_of(line, FUSED, name, passed) for name in line["systems"] if name != FUSED}
            ratios = [(t[0] / t[1], name) for name, t in others.items() if t is not None]
            if ratios:
                lost = sorted((r for r in ratios if r[0] > MATCH), reverse=True)
                timed.setdefault((line["rank"], line["dtype"], passed), []).append((line, lost))
    return timed


def _by_saving(timed: Mapping[tuple[int, str, Pass], Sequence[tuple[Line, Lost]]], limits: Mapping[str, Limits]) -> str:
    """Against self attention: how many problems are lost of those where so much can be saved."""
    found: dict[tuple[str, Pass], list[tuple[float, bool, float]]] = {}
    for (_, dtype, passed), every in timed.items():
        for line, lost in every:
            saving = to_save(line, passed, limits)
            pairs = (seconds_of(line, FUSED, name, passed) for name in line["systems"] if "self attention" in name)
            ratios = [theirs / ours for ours, theirs in filter(None, pairs)]
            if saving is not None and ratios:
                slower = any("self attention" in name for _, name in lost)
                found.setdefault((dtype, passed), []).append((saving, slower, min(ratios)))
    if not found:
        return ""
    body = []
    for (dtype, passed), ratios_found in sorted(found.items()):
        low = 0.0
        for high in SAVINGS:
            here = [x for x in ratios_found if low < x[0] <= high]
            words = (
                f"up to {high:g}" if not low else f"above {low:g}" if high == SAVINGS[-1] else f"{low:g} to {high:g}"
            )
            if here:
                lost_here = sum(x[1] for x in here)
                body.append([dtype, passed, words, len(here), lost_here, f"{median(x[2] for x in here):.2f}"])
            low = high
    header = ["dtype", "pass", "to save", "problems", "slower", "median of self attention's time over fused"]
    note = (
        "Against the fastest self attention. *To save* is its least time over neighborhood attention's: each the "
        "larger of moving its tensors once, at the measured copy's rate, and of its products, at the measured matrix "
        "product's. Where it is 1 there is nothing to win."
    )
    return f"{note}\n\n{table(header, [[str(cell) for cell in row] for row in body])}"


def _by_kind(timed: Mapping[tuple[int, str, Pass], Sequence[tuple[Line, Lost]]], limits: Mapping[str, Limits]) -> str:
    body = []
    for (rank, dtype, passed), every in sorted(timed.items()):
        kinds = [kind_of(line, to_save(line, passed, limits)) for line, _ in every]
        counts = []
        for kind in KINDS:
            of = kinds.count(kind)
            counts.append(f"{sum(k == kind for k, (_, lost) in zip(kinds, every) if lost)} of {of}" if of else "")
        own = [lost for _, lost in every if lost]
        to = [sum(name in (x for _, x in lost) for lost in own) for name in LABELS]
        names = ", ".join(f"{label} {n}" for label, n in zip(LABELS.values(), to) if n)
        middle = f"{median(lost[0][0] for lost in own):.2f}" if own else ""
        body.append([f"{rank}-D", dtype, passed, f"{len(own)} of {len(every)}", *counts, names, middle])
    header = ["", "dtype", "pass", "slower than any", *KINDS, "slower than", "median of the worst ratios"]
    kinds_list = "\n".join(f"- {kind}: {words}" for kind, words in KINDS.items())
    return f"Kinds, the first that fits:\n\n{kinds_list}\n\n{table(header, body)}"


def _each(timed: Mapping[tuple[int, str, Pass], Sequence[tuple[Line, Lost]]], limits: Mapping[str, Limits]) -> str:
    body = []
    for (_, dtype, passed), every in timed.items():
        for line, lost in every:
            if not lost:
                continue
            pair = seconds_of(line, FUSED, lost[0][1], passed)
            assert pair is not None
            share = line["useful_scores"] / (line["batch"] * line["heads"] * prod(line["lengths"]) ** 2)
            waste = line.get("waste", {}).get(passed)
            saving = to_save(line, passed, limits)
            row = [line["name"], dtype, passed, line.get("tilings", {}).get(passed) or line["fused"] or ""]
            row += [kind_of(line, saving), f"{pair[0] * 1e6:.1f}"]
            row.append(", ".join(f"{LABELS.get(name, name)} {ratio:.2f}" for ratio, name in lost))
            row += [f"{100 * share:.1f}%", "" if waste is None else f"{100 * share * waste:.0f}%"]
            body.append((lost[0][0], [*row, "" if saving is None else f"{saving:.2f}"]))
    titles = ["problem", "dtype", "pass", "backend", "kind", "fused, µs", "slower than, by a factor of"]
    titles += ["pairs used", "pairs computed", "to save"]
    rows = [row for _, row in sorted(body, key=lambda each: -each[0])]
    note = (
        "Pairs are of self attention's. Computed: by the tiles that dispatch chose; of forward and backward together, "
        "by those of the query gradient."
    )
    return folded(f"Every problem that is lost ({len(rows)})", f"{note}\n\n{table(titles, rows)}")


def _sizes(line: Line) -> tuple[int, int, int, str]:
    return line["batch"], line["heads"], line["head_dim"], line["dtype"]


@cache
def _case(
    rank: int,
    lengths: tuple[int, ...],
    window: tuple[int, ...],
    dilation: tuple[int, ...],
    batch: int,
    heads: int,
    head_dim: int,
    dtype: str,
) -> Case:
    neighborhood = Neighborhood.of(rank, window, 1, dilation)
    return Case("", lengths, neighborhood, heads, head_dim, batch, dtype=DTYPES[dtype])
