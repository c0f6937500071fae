"""Tables and charts of `vicinal bench scaling`: the terminal's lines, and the generated part of docs/possible.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vicinal.bench.markdown import figure, folded, table
from vicinal.bench.measure import Timing
from vicinal.bench.report import time_words
from vicinal.bench.scaling import KIND, SCHEMA, SECOND, SELF_ATTENTION, Point
from vicinal.words import by

Record = dict[str, Any]
NOTHING = "–"
WHY = {"memory": "memory", "time": "time", "budget": "end of the run", "failed": "an error", "wrong": "a wrong result"}


def in_words(point: Point) -> str:
    """A line of progress."""
    head = f"{point.kind}, {point.system}, {by(point.lengths)} ({point.tokens:,} tokens): "
    if point.seconds is None:
        return f"{head}{point.status}, {point.reason}"
    return f"{head}{time_words(point.seconds)}, {_bytes(point.peak_bytes)}"


def parts(results: Path, pictures: Path) -> dict[str, str]:
    """The parts of docs/possible.md."""
    found = [_section(name, record) for name, record in _records(results)]
    return {"possible": "\n\n".join(found) or "No run is recorded yet: the commands above make one, in ten minutes."}


def charts(results: Path, folder: Path) -> list[Path]:
    """Draw every record; the files written."""
    written = []
    for name, record in _records(results):
        for kind in record["setting"]["shapes"]:
            path = folder / f"{Path(name).stem}-{kind}.png"
            draw(record, kind, path)
            written.append(path)
    return written


def draw(record: Record, kind: str, path: Path) -> None:
    """Seconds and bytes of a step over the tokens, a line for each system, into an image file."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 4.2), layout="constrained")
    times, bytes_ = drawing.subplots(1, 2)
    for i, (system, own) in enumerate(_by_system(record, kind).items()):
        good = sorted((p for p in own if p.seconds is not None), key=lambda p: p.tokens)
        style = {"color": "black" if system == SELF_ATTENTION else f"C{i - 1}", "label": system}
        times.plot([p.tokens for p in good], [p.seconds.median for p in good if p.seconds], "o-", **style)
        known = [p for p in good if p.peak_bytes]
        bytes_.plot([p.tokens for p in known], [(p.peak_bytes or 0) / 2**30 for p in known], "o-", **style)
    times.axhline(SECOND, color="grey", linewidth=0.8, linestyle="--")
    memory = record["machine"].get("memory")
    if memory:
        bytes_.axhline(memory / 2**30, color="grey", linewidth=0.8, linestyle="--")
    for axes, label in ((times, "seconds of a training step"), (bytes_, "peak memory of a step, GiB")):
        if not any(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"):
            continue  # a logarithmic axis needs a number
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda n, _: f"{n / 1024:g}k" if n >= 1024 else f"{n:g}")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("tokens")
        axes.set_ylabel(label)
        axes.grid(True, alpha=0.3)
    if times.get_legend_handles_labels()[1]:
        times.legend()
    drawing.suptitle(f"{kind}, {record['machine']['device']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)


def _in_a_second(record: Record, kind: str) -> list[str]:
    """A sentence on the largest that trains in a second, where self attention and a window have one."""
    most = {}
    for system, own in _by_system(record, kind).items():
        quick = [p.tokens for p in own if p.seconds is not None and p.seconds.median <= SECOND]
        if quick:
            most[system] = max(quick)
    windows = {system: tokens for system, tokens in most.items() if system != SELF_ATTENTION}
    if SELF_ATTENTION not in most or not windows:
        return []
    everything = most[SELF_ATTENTION]
    parts = [f"{system} {_thousands(n)} ({n / everything:.1f} times as many)" for system, n in windows.items()]
    return [f"Tokens that train in a second: self attention {_thousands(everything)}, {', '.join(parts)}."]


def limits_table(record: Record, kind: str) -> str:
    """Markdown: of each system the largest that trains in a second, and the largest that was run, and what ended it."""
    header = ["attention", "trains in a second", "memory", "largest run", "step", "memory", "what ends it"]
    body = []
    for system, own in _by_system(record, kind).items():
        good = sorted((p for p in own if p.seconds is not None), key=lambda p: p.tokens)
        quick = [p for p in good if p.seconds is not None and p.seconds.median <= SECOND]  # in growing order
        row = [system, *([_size(quick[-1]), _bytes(quick[-1].peak_bytes)] if quick else [NOTHING, NOTHING])]
        if good and good[-1].seconds is not None:
            row += [_size(good[-1]), time_words(good[-1].seconds), _bytes(good[-1].peak_bytes)]
        else:
            row += [NOTHING] * 3
        ends = [p for p in own if p.status != "ok"]
        row.append(f"{WHY[ends[0].status]}: {_size(ends[0])}" if ends else "the list of sizes")
        body.append(row)
    return table(header, body, numbers=True)


def _section(name: str, record: Record) -> str:
    setting, machine = record["setting"], record["machine"]
    width = setting["heads"] * setting["head_dim"]
    half = "float32" if setting["dtype"] == "float32" else f"autocast to {setting['dtype']}"
    model = f"{setting['depth']} blocks of width {width}, {setting['heads']} heads of {setting['head_dim']}, {half}"
    kept = ", blocks computed again in the backward pass (activation checkpointing)" * setting["checkpointing"]
    versions = ", ".join(f"{n} {v}" for n, v in record["versions"].items())
    threads = "" if machine["device"] != machine["cpu"] else f", {machine['threads']} threads"
    lines = [
        f"## {machine['device']}{threads}{', with checkpointing' * setting['checkpointing']}",
        f"{record['date'][:10]}; {model}{kept}. `{record['command']}`; {versions}; load average before "
        f"{machine['load']:.1f} (`{name}`)" + ("." if record["complete"] else "; **interrupted**."),
    ]
    lines += [record["note"]] if "note" in record else []
    for kind in setting["shapes"]:
        if _by_system(record, kind):
            lines += [f"### {kind.capitalize()}{_on(machine, setting)}", *_in_a_second(record, kind)]
            caption = f"Training steps on {kind}. Dashed: one second; all memory that there is."
            lines += [figure(f"pictures/benchmarks/{Path(name).stem}-{kind}.png", caption), limits_table(record, kind)]
    every = [_row(Point(**_fields(p))) for p in record["points"]]
    header = ["data", "attention", "size", "tokens", "step", "peak memory"]
    lines.append(folded(f"Every measurement ({len(every)})", table(header, every, numbers=True)))
    return "\n\n".join(lines)


def _on(machine: Record, setting: Record) -> str:
    """What tells headings of several records apart."""
    return f" on {'a CPU' if machine['device'] == machine['cpu'] else machine['device']}" + (
        ", with checkpointing" if setting["checkpointing"] else ""
    )


def _row(point: Point) -> list[str]:
    step = f"{point.status}: {point.reason}"
    if point.seconds is not None:
        step = time_words(point.seconds) + ("" if point.seconds.steady else "†")
    return [point.kind, point.system, by(point.lengths), f"{point.tokens:,}", step, _bytes(point.peak_bytes)]


def _by_system(record: Record, kind: str) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in record["points"]:
        if point["kind"] == kind:
            found.setdefault(point["system"], []).append(Point(**_fields(point)))
    return found


def _fields(point: Record) -> Record:
    fields = {name: value for name, value in point.items() if name != "tokens"}
    return fields | {"lengths": tuple(point["lengths"]), "seconds": point["seconds"] and Timing(**point["seconds"])}


def _size(point: Point) -> str:
    return f"{by(point.lengths)} ({_thousands(point.tokens)})"


def _thousands(tokens: int) -> str:
    return f"{tokens / 1000:.3g}k" if tokens < 10**6 else f"{tokens / 10**6:.3g}M"


def _bytes(found: int | None) -> str:
    return NOTHING if found is None else f"{found / 2**30:.3g} GiB"


def _records(results: Path) -> Iterator[tuple[str, Record]]:
    """GPUs first, then by name."""
    read: list[tuple[bool, str, Record]] = []
    for path in sorted(results.glob("*.json")):
        record = json.loads(path.read_text())
        if isinstance(record, dict) and record.get("kind") == KIND:
            if record["schema"] != SCHEMA:
                raise ValueError(f"{path} has schema {record['schema']}, this version reads {SCHEMA}")
            read.append((record["machine"]["device"] == record["machine"]["cpu"], path.name, record))
    yield from ((name, record) for _, name, record in sorted(read, key=lambda x: x[:2]))
