"""`vicinal tune` and `vicinal precompile`: what is typed becomes problems; the work is in `search` and `precompile`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vicinal import arguments
from vicinal.arguments import (
    Batch,
    Boundary,
    Causal,
    Device,
    Dilation,
    DType,
    HeadDim,
    Heads,
    KVHeads,
    Only,
    SomeWindow,
    Stride,
    Suite,
    ValueDim,
    wrong,
)

if TYPE_CHECKING:
    import torch

    from vicinal.backends.protocol import Direction
    from vicinal.bench.cases import Case
    from vicinal.tuning.table import Entry

EXPORTED = 3  # timings of an entry, the fastest: what is chosen, and what is where a problem cannot take that

Script = Annotated[
    list[str] | None,
    typer.Argument(help="After --, a Python script and its arguments: what it meets is measured when it has ended."),
]
SomeLengths = Annotated[list[str] | None, typer.Option(help="Tokens along each axis, as 64x64; can be repeated.")]
Forward = Annotated[bool, typer.Option("--forward", help="The forward pass (default: both).")]
Backward = Annotated[bool, typer.Option("--backward", help="The backward pass.")]


def tune(
    script: Script = None,
    suite: Suite = None,
    only: Only = None,
    lengths: SomeLengths = None,
    window: SomeWindow = None,
    batch: Batch = 1,
    heads: Heads = 4,
    kv_heads: KVHeads = None,
    head_dim: HeadDim = 64,
    value_dim: ValueDim = None,
    stride: Stride = "1",
    dilation: Dilation = "1",
    causal: Causal = "no",
    boundary: Boundary = "shift",
    dtype: DType = "float32",
    device: Device = None,
    forward: Forward = False,
    backward: Backward = False,
    thorough: Annotated[bool, typer.Option("--thorough", help="Measure every candidate that is listed.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print what was measured on the device.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Forget what was measured on the device.")] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write what was measured, with these versions, here: the fastest few.")
    ] = None,
    timings: Annotated[Path | None, typer.Option(help="Add what candidates take to this file, .jsonl.gz.")] = None,
    fit: Annotated[Path | None, typer.Option(help="Fit the estimates to a GPU's timings, a file of --timings.")] = None,
) -> None:
    """Measure how a problem, a suite, or what a script meets runs fastest here; later calls run so."""
    asked = {"SCRIPT": script, "--suite": suite, "--lengths": lengths, "--show": show, "--clear": clear}
    given = [name for name, value in (asked | {"--export": export, "--fit": fit}).items() if value]
    if len(given) != 1:
        every = f"{', '.join(asked)}, --export, --fit"
        raise wrong(f"give one of {every}" + (f"; got {' and '.join(given)}" if given else ""))
    arguments.check_output("--export", export)
    arguments.check_output("--timings", timings)
    if fit is not None:
        _fit(fit)
        return
    if show or clear or export is not None:
        _look_after(arguments.device_of(device), clear, export)
        return
    try:
        if script:
            found = _tune_script(script, thorough, _directions(forward, backward), timings)
        else:
            typed = arguments.NeighborhoodOptions(window or "", stride, dilation, causal, boundary)
            sizes = arguments.ProblemOptions(batch, heads, kv_heads, head_dim, value_dim, dtype)
            cases, on = _cases(suite, only, lengths, typed, sizes, device)
            from vicinal.tuning import search

            problems = [case.problem(on) for case in cases]
            directions = _directions(forward, backward)
            found = search.tune(problems, thorough=thorough, directions=directions, timings=timings)
    except OSError as error:
        raise wrong(str(error)) from error
    from vicinal.tuning.report import lines

    for line in lines(found) or ["nothing was measured: all is known, or there is nothing to choose"]:
        typer.echo(line)


def precompile(
    suite: Suite = None,
    only: Only = None,
    lengths: SomeLengths = None,
    window: SomeWindow = None,
    batch: Batch = 1,
    heads: Heads = 4,
    kv_heads: KVHeads = None,
    head_dim: HeadDim = 64,
    value_dim: ValueDim = None,
    stride: Stride = "1",
    dilation: Dilation = "1",
    causal: Causal = "no",
    boundary: Boundary = "shift",
    dtype: DType = "float32",
    device: Device = None,
    forward: Forward = False,
    backward: Backward = False,
    target: Annotated[str | None, typer.Option(help="Compile for this GPU, which need not be here: sm_90.")] = None,
    processors: Annotated[int | None, typer.Option(help="Multiprocessors of the target.")] = None,
) -> None:
    """Compile the kernels of a problem or a suite, and keep them on disk."""
    if bool(suite) == bool(lengths):
        raise wrong("give either --suite or --lengths with --window")
    if target is not None and device is not None:
        raise wrong("--target and --device exclude each other")
    typed = arguments.NeighborhoodOptions(window or "", stride, dilation, causal, boundary)
    sizes = arguments.ProblemOptions(batch, heads, kv_heads, head_dim, value_dim, dtype)
    cases, on = _cases(suite, only, lengths, typed, sizes, "cpu" if target is not None else device)
    from vicinal.tuning import precompile as work

    problems = [case.problem(on) for case in cases]
    try:
        count = work.precompile(
            problems, target=target, processors=processors, directions=_directions(forward, backward)
        )
    except ValueError as error:
        names = {"target": "target", "processors": "processors"}
        raise wrong(arguments.in_options(str(error), tuple(names), names)) from error
    typer.echo(f"{count} kernels are compiled")


def _cases(
    suite: str | None,
    only: Sequence[str] | None,
    lengths: Sequence[str] | None,
    window: arguments.NeighborhoodOptions,
    sizes: arguments.ProblemOptions,
    device: str | None,
) -> tuple[Sequence[Case], torch.device]:
    if suite is not None:
        import torch

        cases, threads, on = arguments.suite(suite, only, device)
        if threads is not None:
            torch.set_num_threads(threads)
        return cases, on
    if only:
        raise wrong("--only needs --suite")
    if not window.window:
        raise wrong("--lengths needs --window")
    each = [arguments.sizes("--lengths", text) for text in lengths or ()]
    return [sizes.read(own, window.read(own)) for own in each], arguments.device_of(device)


def _directions(forward: bool, backward: bool) -> tuple[Direction, ...]:
    if forward == backward:
        return ("forward", "backward")
    return ("forward",) if forward else ("backward",)


def _tune_script(
    words: Sequence[str], thorough: bool, directions: Sequence[Direction], timings: Path | None
) -> list[Entry]:
    """Run a script as `python` would, and measure what it met."""
    path = Path(words[0])
    if not path.is_file():
        raise wrong(f"SCRIPT: no file {words[0]!r}")
    from vicinal.tuning import search

    before = sys.argv, sys.path
    sys.argv, sys.path = list(words), [str(path.resolve().parent), *sys.path]
    try:
        with search.tune(thorough=thorough, directions=directions, timings=timings) as found:
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as end:  # as a script ends that is done
                if end.code not in (None, 0):
                    raise
        return found
    finally:
        sys.argv, sys.path = before


def _fit(path: Path) -> None:
    """Fit what there are enough timings for, and keep it for the device that they are of."""
    from vicinal.tuning import cache, timings
    from vicinal.tuning.fit import ESTIMATES, fit

    try:
        rows = timings.read(path)
        fits = [fit(rows, backend) for backend in ESTIMATES if any(row.backend == backend for row in rows)]
        if not fits:
            raise ValueError(f"{path} has no timings of {' or '.join(ESTIMATES)}")
        kept = cache.save(rows[0].device, (), {name: n for each in fits for name, n in each.constants.items()})
    except (OSError, ValueError) as error:
        raise wrong(f"--fit: {error}") from error
    for each in fits:
        typer.echo(f"{each.backend} before: {each.before.in_words()}")
        typer.echo(f"{each.backend} fitted: {each.after.in_words()}")
        for what, quality in zip(("before", "fitted to the others"), each.held_out):
            typer.echo(f"{each.backend}, problems left out, {what}: {quality.in_words()}")
    typer.echo(f"kept for {rows[0].device} in {kept}")


def _look_after(device: torch.device, clear: bool, export: Path | None) -> None:
    """Print, forget, or write out what was measured on a device."""
    from vicinal.files import write_text
    from vicinal.machine import device_name
    from vicinal.tuning import cache
    from vicinal.tuning.report import lines
    from vicinal.tuning.table import Table

    name = device_name(device)
    path = cache.path_of(name)
    if clear:
        typer.echo(f"{path} is deleted" if cache.clear(name) else f"nothing was measured on {name}")
        return
    known = cache.read(name)
    entries = known.of_versions(cache.versions())
    if export is not None:
        if not entries and not known.fitted:
            raise wrong(f"--export: nothing was measured on {name} with these versions")
        table = Table(name, fitted=known.fitted)
        for entry in entries.values():
            table.add(replace(entry, timings=entry.timings[:EXPORTED]))
        write_text(export, table.to_json())
        typer.echo(f"wrote {len(entries)} entries to {export}")
        return
    typer.echo(f"{name}: {path}" if entries else f"nothing was measured on {name} with these versions")
    for line in lines(entries.values()):
        typer.echo(line)
