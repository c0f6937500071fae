"""The page about the paper's sweep: where it ran, the paper's tables, memory, counters, and every problem lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from statistics import mean, median

from vicinal.bench.markdown import figure, folded, table
from vicinal.bench.paper import counters
from vicinal.bench.paper.losses import losses
from vicinal.bench.paper.plots import limits_of, moved_bytes, points
from vicinal.bench.paper.sweep import ends, headers, lines_of, read
from vicinal.bench.paper.tables import LABELS, Line, table_by_window, table_improvement, table_matched

INTRODUCTION = """
"Faster Neighborhood Attention: Reducing the O(n²) Cost of Self Attention at the Threadblock Level"
([arXiv 2403.04690](https://arxiv.org/abs/2403.04690)) times three kinds of kernels for neighborhood attention, and self
attention on the same tensors, on an A100, over 6150 problems in one dimension, 5676 in two and 2448 in three. This page
is the same comparison made with this library, on the machine named below, over a sample of a list with the same counts
and ranges (the paper's is not published), beside the paper's numbers. How it is run and checked:
[Benchmarks](benchmarks.md#the-papers-sweep).
""".strip()
WORDS = {
    "naive": "neighborhood attention in three launches, products neighbor by neighbor, weights in memory",
    "GEMM": "the same, with the products of whole tiles on tensor cores",
    "fused": "neighborhood attention in one launch, no weight in memory: what `na1d`, `na2d`, `na3d` run",
    "FMHA, flash, cuDNN": "self attention through torch's SDPA: xFormers' memory-efficient, FlashAttention 2, cuDNN",
    "FlexAttention, compiled plain": "the same windows by `torch.compile`: FlexAttention; plain attention, masked",
    "matched or outperformed": "the share of problems on which one system is at most 1% slower than another",
    "improvement": "how much more work in the same time: 100% is twice as fast",
    "dilation groups": "the separate sets of tokens that a dilation splits an axis into; thin ones have few tokens",
}
FIGURES = {  # what stands below a figure, by its file's name
    "improvement": "Average improvement over naive kernels in float16: bars are ours, lines the paper's on an A100.",
    "speedup": "Time of each system over fused neighborhood attention's, float16, in brackets the number of problems. "
    "A box holds the middle half of them, its line is the median, whiskers reach the ends; above 1 fused is faster.",
    "memory": "Memory that a forward and backward pass takes beyond its inputs, in units of the query's size, by the "
    "number of tokens: medians and ranges. Kernels that store weights grow with the window, the others stay flat.",
    "roofline-float16": "Roofline, float16: what each kind of kernel reaches on one problem of each dimension, under "
    "what the device was measured to do (lines).",
    "roofline-float32": "Roofline, float32, as above.",
}

SIZES = ((1, 1 << 10), (1 << 10, 1 << 13), (1 << 13, 1 << 31))  # tokens of a problem, for the table of memory


def document(path: Path, figures: Sequence[Path] = (), folder: Path | None = None) -> str:
    """The Markdown of a file of results, with links to `figures` from a page in `folder`.

    Raises:
        ValueError: no results in it.
    """
    lines = read(path)
    if not lines:
        raise ValueError(f"no results in {path}")
    good = [line for line in lines if line["error"] is None]
    parts = [
        "# The paper's benchmark",
        INTRODUCTION,
        table(["word", "meaning"], [*WORDS.items()]),
        _provenance(path, lines, good),
    ]
    for number, dtype in ((1, "float16"), (2, "float32")):
        chosen = [line for line in good if line["dtype"] == dtype]
        if chosen:
            parts.append(table_matched(number, dtype, chosen))
    parts.append(table_improvement(3, "forward", good))
    parts.append(table_improvement(4, "forward+backward", good))
    parts.append(table_by_window(good))
    start = Path.cwd() if folder is None else folder
    parts += [figure(os.path.relpath(drawn, start), FIGURES[drawn.stem]) for drawn in figures]
    parts += [_roofline(path, good), _memory(good), _counted(path), losses(good, limits_of(path)), _troubles(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _provenance(path: Path, lines: Sequence[Line], good: Sequence[Line]) -> str:
    text = ["## What ran", ""]
    for header in headers(path):
        versions = ", ".join(f"{name} {v}" for name, v in header["versions"].items())
        text.append(f"- {header['date']}, {header['machine']['device']}; {versions}; `{header['command']}`")
    counts = ", ".join(
        f"{sum(line['rank'] == rank for line in good)} {rank}-D" for rank in sorted({line["rank"] for line in good})
    )
    text.append(f"- problems (a dtype each counts): {counts or 'none'}; {len(lines) - len(good)} without a result")
    runs = ends(path)
    if runs:
        problems, seconds = sum(run["problems"] for run in runs), sum(run["seconds"] for run in runs)
        text.append(
            f"- {problems} problems took {seconds:.0f} s in all, {seconds / max(problems, 1):.2f} s each over all "
            "systems: starting, compilation, checks and timing"
        )
    own = [line["seconds"] for line in good if line["seconds"] is not None]
    if own:
        text.append(f"- within its process a problem took {mean(own):.2f} s, at most {max(own):.1f} s")
    text.append(
        "- this page is generated, by `vicinal bench paper --report-only`; times: kernel time (replayed from a CUDA "
        "graph; eager where a call takes more than 20 ms) where both "
        "systems have one, else eager calls; every result was checked before it was timed"
    )
    return "\n".join(text)


def _roofline(path: Path, lines: Sequence[Line]) -> str:
    """Arithmetic intensity by the paper's model and what was reached of the measured roof."""
    body, measured = [], []
    for dtype, limits in limits_of(path).items():
        copied, multiplied = limits.bandwidth / 1e12, limits.flops / 1e12
        measured.append(f"{dtype}: copy {copied:.2f} TB/s, matrix product {multiplied:.0f} TFLOP/s")
        for point in points([line for line in lines if line["dtype"] == dtype]):
            intensity, reached = point.flops / point.bytes, point.flops / point.seconds
            roof = min(limits.flops, limits.bandwidth * intensity)
            name, system = point.name, point.group
            row = [name, dtype, system, f"{intensity:.3g}", f"{reached / 1e12:.3g}", f"{100 * reached / roof:.0f}%"]
            body.append(row)
    if not body:
        return ""
    note = (
        "Forward, on the problem of each dimension with the most pairs. Measured in the same run: "
        f"{'; '.join(measured)}. Bytes are the paper's model's (equations 2 to 4): QK alone, of self attention or "
        "GEMM, tends to `2 d / s` FLOPs per byte (`d` dims, `s` bytes per element), and GEMM, with both products and "
        "the weights moved four times, to half of that; fused attention to `l / s` (`l` neighbors). Naive kernels load "
        "every neighbor anew, so they tend to `2 / s`; caches spare them most of it, so they pass the model's roof."
    )
    header = ["problem", "dtype", "system", "FLOPs per byte", "TFLOP/s", "of the roof"]
    return f"## Roofline\n\n{note}\n\n{table(header, body)}"


def _memory(lines: Sequence[Line]) -> str:
    """What systems allocate, in units of the query's bytes, by the number of tokens."""
    body = []
    passes = {"float16": "forward+backward", "float32": "forward"}
    for dtype, passed in passes.items():
        for name, label in LABELS.items():
            cells = []
            for low, high in SIZES:
                found = []
                for line in lines:
                    peak = line["systems"].get(name, {}).get("peak_bytes")
                    tokens = prod(line["lengths"])
                    if line["dtype"] == dtype and peak is not None and low <= tokens < high:
                        size = 2 if dtype == "float16" else 4
                        found.append(peak / (size * tokens * line["batch"] * line["heads"] * line["head_dim"]))
                cells.append(f"{median(found):.1f} (at most {max(found):.1f})" if found else "")
            if any(cells):
                body.append([dtype, passed, label, *cells])
    if not body:
        return ""
    header = ["dtype", "run", "system", *(f"n < {high}" if high < 1 << 31 else f"n ≥ {low}" for low, high in SIZES)]
    note = (
        "Peak of what a first run allocates beyond its inputs, over the query's bytes: median and largest. A run is a "
        "forward pass, whose output is kept, and where there are gradients forward and backward: two outputs and three "
        "gradients are 5 of it. It does not grow with n where attention is fused; unfused systems add their weights."
    )
    return f"## Memory\n\n{note}\n\n{table(header, body)}"


def _counted(path: Path) -> str:
    """What Nsight Compute counted, if the file has it: the last run's kernels."""
    runs = [line for line in lines_of(path) if line.get("kind") == counters.KIND]
    if not runs:
        return ""
    run = runs[-1]
    cases = counters.cases()
    body = []
    for kernel in run["kernels"]:
        kernel = dict.fromkeys(counters.METRICS.values(), float("nan")) | kernel
        moved = kernel["bytes read"] + kernel["bytes written"]
        own = [k for k in run["kernels"] if (k["problem"], k["system"]) == (kernel["problem"], kernel["system"])]
        model = ""
        if kernel["kernel"] == own[-1]["kernel"]:
            total = sum(k["bytes read"] + k["bytes written"] for k in own)
            bytes_of_model = moved_bytes(cases[kernel["problem"]].problem("cpu"), kernel["system"])
            model = f"{total / 1e6:.1f} / {bytes_of_model / 1e6:.1f}"
        body.append(
            [
                *(kernel["problem"], LABELS[kernel["system"]], f"`{_plain(kernel['kernel'])}`"),
                *(f"{kernel['seconds'] * 1e6:.1f}", f"{moved / 1e6:.1f}", model),
                *(f"{kernel[name]:.0f}" for name in ("memory %", "compute %", "L1 hits %", "L2 hits %")),
                *(f"{kernel['occupancy %']:.0f}", f"{kernel['registers']:.0f}", f"{kernel['shared bytes'] / 1e3:.1f}"),
            ]
        )
    header = [
        "problem",
        "system",
        "kernel",
        "µs",
        "MB moved",
        "all kernels / the paper's model",
        "memory %",
        "compute %",
    ]
    header += ["L1 hits %", "L2 hits %", "occupancy %", "registers", "shared kB"]
    note = (
        f"One forward pass in float16, cold caches; {run['date']}, {run['machine']['device']}, `{run['command']}`. "
        "Bytes are those that DRAM moved; the paper's model (section 3.3) counts every operand once per launch, naive "
        "kernels' operands once per use, which caches spare it. Memory and compute: percent of the device's peak."
    )
    return f"## Counters\n\n{note}\n\n{folded(f'{len(body)} kernels', table(header, body))}"


def _plain(kernel: str) -> str:
    """A kernel's name without its namespaces, template's arguments and the like."""
    name = kernel.replace("<unnamed>::", "").split("(")[0].split("<")[0]
    return name.removeprefix("void ").split("::")[-1]


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
    return "## Failures\n\n" + table(["problem", "dtype", "system", "what"], body)
