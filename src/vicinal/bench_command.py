"""`vicinal bench`, and its `report`, `scaling`, `paper` and `models`: what is typed; the work is in `vicinal.bench`."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

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
from vicinal.extras import need
from vicinal.words import terminal

bench = typer.Typer(rich_markup_mode=None)

NEW_SIZES = "new-sizes"  # a suite of families instead of cases
FAMILY_SECONDS = 40.0  # of each, at least


@bench.callback()
def run_bench(
    context: typer.Context,
    suite: Suite = None,
    only: Only = None,
    lengths: Annotated[str | None, typer.Option(help="Tokens along each axis: 4096, 64x64, 8x32x32.")] = None,
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
    forward: Annotated[bool, typer.Option("--forward", help="Time the forward pass (default: all).")] = False,
    backward: Annotated[bool, typer.Option("--backward", help="Time backward, and forward+backward.")] = False,
    backend: Annotated[list[str] | None, typer.Option(help="A backend of ours; can be repeated.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Only peers with this in their name; can be repeated.")] = None,
    no_peers: Annotated[bool, typer.Option("--no-peers", help="Leave out SDPA and FlexAttention.")] = False,
    samples: Annotated[int, typer.Option(min=3, help="Timed samples per system.")] = 15,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for the samples of one system and pass.")] = 10.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; a suite has its own default.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the ratios into this file.")] = None,
    roofline: Annotated[Path | None, typer.Option(help="Draw a roofline of the forward passes.")] = None,
) -> None:
    """Time one problem, or a suite, across our backends and the peers; every result is checked first.

    --suite new-sizes: what images of sizes never seen cost, beside FlexAttention with dynamic shapes.
    """
    if context.invoked_subcommand is not None:
        return
    if (suite is None) == (lengths is None):
        raise wrong("give either --suite or --lengths with --window")
    arguments.check_output("--json", json)
    if suite == NEW_SIZES:
        _run_new_sizes(only, device, not no_peers, seconds, json)
        return
    arguments.check_drawing("--plot", plot)
    arguments.check_drawing("--roofline", roofline)
    import torch

    from vicinal.bench.measure import Effort
    from vicinal.bench.runner import Run, execute

    arguments.check_backends(backend or [])
    if suite is not None:
        cases, own_threads, on = arguments.suite(suite, only, device, (NEW_SIZES,))
        threads = own_threads if threads is None else threads
    elif only:
        raise wrong("--only needs --suite")
    elif lengths is None or window is None:
        raise wrong("--lengths needs --window")
    else:
        sizes = arguments.sizes("--lengths", lengths)
        neighborhood = arguments.NeighborhoodOptions(window, stride, dilation, causal, boundary).read(sizes)
        if neighborhood.is_circular:
            raise wrong("--boundary: circles are timed by benchmarks/neighborhoods.py, got wrap")
        cases = (
            arguments.ProblemOptions(batch, heads, kv_heads, head_dim, value_dim, dtype).read(sizes, neighborhood),
        )
        on = arguments.device_of(device)
    if threads is not None:
        torch.set_num_threads(threads)
    run = Run(
        cases=[arguments.with_passes(case, forward, backward) for case in cases],
        device=on,
        effort=Effort(samples=samples, seconds=seconds),
        command=shlex.join(["vicinal", *sys.argv[1:]]),
        suite=suite,
        backends=tuple(backend or ()),
        peers=arguments.peers(peer, no_peers, on),
        json=json,
        plot=plot,
        roofline=roofline,
    )
    if not execute(run, terminal()):
        raise typer.Exit(1)


def _run_new_sizes(only: list[str] | None, device: str | None, flex: bool, seconds: float, json: Path | None) -> None:
    from vicinal.bench.new_sizes import FAMILIES, Run, measure

    on = arguments.device_of(device)
    families = tuple(f for f in FAMILIES if f.device == on.type and (not only or any(part in f.name for part in only)))
    if not families:
        raise wrong(f"--only: no family for {on.type} has {' or '.join(map(repr, only or ()))} in its name")
    command = shlex.join(["vicinal", *sys.argv[1:]])
    record = measure(
        Run(on, families, seconds=max(seconds, FAMILY_SECONDS), flex=flex, command=command), json, typer.echo
    )
    if any(family["status"] in ("wrong", "failed") for family in record["families"]):
        raise typer.Exit(1)


@bench.command("report", short_help="Write the tables and charts of recorded runs.")
def report_results(
    results: Annotated[Path, typer.Option(help="Folder of JSON files of earlier runs.")] = Path("benchmarks/results"),
    root: Annotated[Path, typer.Option(help="The checkout whose README.md and docs are written.")] = Path("."),
) -> None:
    """Generate tables and charts of README.md, docs/benchmarks.md and docs/possible.md from recorded runs."""
    need("vicinal bench report", "matplotlib")
    from vicinal.bench import pages

    if not results.is_dir():
        raise wrong(f"--results: no folder {results}")
    for page in (pages.README, pages.PAGE, pages.POSSIBLE):
        if not (root / page).is_file():
            raise wrong(f"--root: no file {root / page}")
        arguments.check_output("--root", root / page)
    try:
        changed = pages.update(results, root)
    except ValueError as error:
        raise wrong(str(error)) from error
    for path in changed:
        typer.echo(f"wrote {path}")


@bench.command("scaling", short_help="Training steps against the number of tokens.")
def run_scaling(
    kind: Annotated[list[str] | None, typer.Option(help="images or video; can be repeated; by default both.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Time in all, split between the systems.")] = 600.0,
    longest: Annotated[float, typer.Option(min=0.01, help="A step that would take more seconds is not run.")] = 5.0,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute blocks again in the backward pass, to save memory.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    device: Device = None,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw time and memory into this file, one for each kind.")] = None,
) -> None:
    """Time and peak memory of a training step, self attention beside windows, on growing images and videos."""
    arguments.check_output("--json", json)
    arguments.check_drawing("--plot", plot)
    from dataclasses import replace

    import torch

    from vicinal.bench import scaling, scaling_page

    on = arguments.device_of(device)
    setting = scaling.SETTINGS[on.type]
    unknown = [name for name in kind or () if name not in setting.shapes]
    if unknown:
        raise wrong(f"--kind: must be {' or '.join(setting.shapes)}, got {', '.join(map(repr, unknown))}")
    setting = scaling.of_kinds(setting, [k for k in setting.shapes if k in (kind or setting.shapes)])
    if threads is not None:
        torch.set_num_threads(threads)
    console = terminal()
    record = scaling.run(
        replace(setting, longest=longest, checkpointing=checkpointing),
        on,
        shlex.join(["vicinal", *sys.argv[1:]]),
        json,
        seconds,
        told=lambda point: console.print(scaling_page.in_words(point), soft_wrap=True),
    )
    if plot is not None:
        for name in setting.shapes:
            path = plot.with_stem(f"{plot.stem}-{name}")
            scaling_page.draw(record, name, path)
            console.print(f"wrote {path}", soft_wrap=True)
    if any(point["status"] == "wrong" for point in record["points"]):
        raise typer.Exit(1)


@bench.command("cp", short_help="Context parallelism over several processes.")
def run_cp(
    processes: Annotated[
        int | None, typer.Option(min=1, help="Start so many; by default one for each GPU. Not under torchrun.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Begin nothing new after so long.")] = 600.0,
    only: Annotated[str | None, typer.Option(help="Problems with this in their name.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="By default all; can be repeated.")] = None,
    device: Device = None,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw speedups from the records in --json's folder.")] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing; the table and --plot only.")] = False,
) -> None:
    """Strong and weak scaling of halo exchange, beside all-gather and Ulysses; results are checked first.

    Run by torchrun it takes its processes; otherwise it starts them.
    """
    arguments.check_output("--json", json)
    arguments.check_drawing("--plot", plot)
    if (plot is not None or report_only) and json is None:
        raise wrong("--plot and --report-only need --json")
    from vicinal.bench.cp import start
    from vicinal.bench.cp.methods import METHODS

    if unknown := [name for name in method or () if name not in METHODS]:
        raise wrong(f"--method: must be one of {'; '.join(METHODS)}, got {', '.join(map(repr, unknown))}")
    console = terminal()
    right = True
    if not report_only:
        on = arguments.device_of(device)
        if not start.is_started():
            raise typer.Exit(start.processes(on.type, processes, sys.argv[1:]))
        right = start.run(on.type, seconds, only, method, json, shlex.join(["vicinal", *sys.argv[1:]]), console)
    if json is not None and start.is_first():
        from vicinal.bench.cp import page

        records = page.read(sorted(json.parent.glob("*.json")))
        console.print(page.tables(records), soft_wrap=True, highlight=False, markup=False)
        if plot is not None:
            page.draw(records, plot)
            console.print(f"wrote {plot}", soft_wrap=True)
    if not right:
        raise typer.Exit(1)


@bench.command("paper", short_help="Run the paper's sweep.")
def run_paper(
    results: Annotated[Path, typer.Option(help="File of JSON lines; a rerun goes on where it ended.")] = Path(
        "paper.jsonl"
    ),
    sample: Annotated[int | None, typer.Option(min=1, help="Problems per dimension and dtype; by default all.")] = None,
    sample_others: Annotated[
        int | None, typer.Option(min=1, help="So many of dtypes after the first; by default as many.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    rank: Annotated[list[int] | None, typer.Option(min=1, max=3, help="1, 2 or 3; can be repeated.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float16 (default) or float32; can be repeated.")] = None,
    compiled: Annotated[
        int, typer.Option(min=0, help="On so many of each dimension also FlexAttention and compiled plain attention.")
    ] = 0,
    device: Device = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Stop before the next problem after so long.")] = None,
    problem_seconds: Annotated[float, typer.Option(min=1, help="Give up a problem that takes so long.")] = 120.0,
    compilers: Annotated[int, typer.Option(min=0, help="Processes that compile kernels ahead, on CUDA.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Processes that measure, on CUDA: in turns.")] = 6,
    retry: Annotated[bool, typer.Option("--retry", help="Also run problems again that have no result.")] = False,
    tables: Annotated[Path | None, typer.Option(help="Write the paper's tables to this Markdown file.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Draw the figures into this folder.")] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing; tables and figures only.")] = False,
) -> None:
    """The paper's sweep: naive, GEMM and fused neighborhood attention against self attention, on many problems."""
    names = dtype or ["float16"]
    if any(name not in ("float16", "float32") for name in names):
        raise wrong(f"--dtype: must be float16 or float32, got {', '.join(map(repr, names))}")
    for option, path in (("--results", results), ("--tables", tables)):
        arguments.check_output(option, path)
    if plots is not None:
        need("--plots", "matplotlib")
    from vicinal.bench.paper.command import report, run_with_progress
    from vicinal.problem import DTYPES

    console = terminal()
    right = True
    if not report_only:
        from vicinal.bench.paper.sweep import Sweep

        sweep = Sweep(
            results=results,
            device=arguments.device_of(device),
            ranks=tuple(dict.fromkeys(rank or (1, 2, 3))),
            dtypes=tuple(DTYPES[name] for name in dict.fromkeys(names)),
            sample=sample,
            sample_others=sample_others,
            seed=seed,
            compiled=compiled,
            seconds=seconds,
            problem_seconds=problem_seconds,
            compilers=compilers,
            workers=workers,
            retry=retry,
            command=shlex.join(["vicinal", *sys.argv[1:]]),
        )
        right = run_with_progress(sweep, console)
    try:
        report(results, tables, plots, console)
    except ValueError as error:
        raise wrong(f"--results: {error}") from error
    if not right:
        raise typer.Exit(1)


@bench.command("planning", short_help="How long planning takes; needs no GPU.")
def run_planning(
    planner: Annotated[
        list[str] | None, typer.Option(help="numba, triton, hopper or automatic (hopper or triton); by default all.")
    ] = None,
    problems: Annotated[int, typer.Option(min=1, help="Random problems, all different.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the problems.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
) -> None:
    """Plan random problems, forward and backward, up to the launch's arguments; GPUs' for one H100 or H200."""
    arguments.check_output("--json", json)
    from vicinal.bench.planning import PLANNERS, document, lines, save

    unknown = [name for name in planner or () if name not in PLANNERS]
    if unknown:
        raise wrong(f"--planner: must be one of {', '.join(PLANNERS)}, got {', '.join(map(repr, unknown))}")
    found = document(planner or list(PLANNERS), problems, seed, shlex.join(["vicinal", *sys.argv[1:]]))
    for line in lines(found):
        typer.echo(line)
    if json is not None:
        save(found, json)


@bench.command("models", short_help="Images per second of whole models.")
def run_models(
    table: Annotated[list[int] | None, typer.Option(min=5, max=8, help="Of the paper; can be repeated.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="As nat_mini, or stylenat_ffhq_256; can be repeated; with --table only those."),
    ] = None,
    results: Annotated[Path, typer.Option(help="File of JSON lines; a rerun goes on where it ended.")] = Path(
        "models.jsonl"
    ),
    batch: Annotated[int | None, typer.Option(min=1, help="Images at once; by default 1, or the table's.")] = None,
    side: Annotated[int | None, typer.Option(min=32, help="Pixels of the images; by default the model's own.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 (default), float16, bfloat16; repeatable.")] = None,
    training: Annotated[bool, typer.Option("--training", help="Whole training steps, under autocast.")] = False,
    system: Annotated[list[str] | None, typer.Option(help="What computes attention; by default all.")] = None,
    samples: Annotated[int, typer.Option(min=3, help="Timed samples per system.")] = 15,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for the samples of one system.")] = 10.0,
    prepare_seconds: Annotated[
        float, typer.Option(min=1, help="Give up a system that takes so long to prepare.")
    ] = 300.0,
    row_seconds: Annotated[
        float | None, typer.Option(min=1, help="Measure in another process; give up a row that takes so long.")
    ] = None,
    stop_after: Annotated[float | None, typer.Option(min=1, help="Begin no row after so many seconds.")] = None,
    compilers: Annotated[int, typer.Option(min=0, help="Processes that compile kernels ahead.")] = 0,
    compile_seconds: Annotated[float, typer.Option(min=1, help="Measure after so long, whatever is compiled.")] = 150.0,
    retry: Annotated[bool, typer.Option("--retry", help="Also run again what failed.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    device: Device = None,
) -> None:
    """Whole models, their attention computed by each system in turn; results are checked before they are timed."""
    need("vicinal bench models", "timm")
    names = dtype or ["float32"]
    if not set(names) <= {"float32", "float16", "bfloat16"}:
        raise wrong(f"--dtype: must be float32, float16 or bfloat16, got {', '.join(map(repr, names))}")
    if not table and not model:
        raise wrong("give --table or --model")
    if table and (dtype or training):
        raise wrong("--table has its own --dtype and --training")
    arguments.check_output("--results", results)
    import torch

    from vicinal.bench.measure import Effort
    from vicinal.bench.models.rows import chosen, known
    from vicinal.bench.models.run import Run, execute
    from vicinal.problem import DTYPES

    unknown = [name for name in model or () if name not in known()]
    if unknown:
        raise wrong(f"--model: must be one of {', '.join(known())}, got {', '.join(map(repr, unknown))}")
    if threads is not None:
        torch.set_num_threads(threads)
    run = Run(
        rows=chosen(table or (), model or (), [DTYPES[d] for d in dict.fromkeys(names)], batch, training, side),
        device=arguments.device_of(device),
        results=results,
        effort=Effort(samples, seconds, prepare_seconds=prepare_seconds),
        command=shlex.join(["vicinal", *sys.argv[1:]]),
        systems=tuple(system or ()),
        row_seconds=row_seconds,
        compilers=compilers,
        compile_seconds=compile_seconds,
        stop_after=stop_after,
        retry=retry,
    )
    try:
        right = execute(run, terminal())
    except ValueError as error:
        raise wrong(re.sub(r"^system\b", "--system", str(error))) from error
    if not right:
        raise typer.Exit(1)


@bench.command("models-report", short_help="Write the page of the paper's tables of models.")
def report_models(
    results: Annotated[Path, typer.Option(help="Folder of JSON lines of earlier runs.")] = Path("benchmarks/results"),
    page: Annotated[Path, typer.Option(help="The page to write.")] = Path("docs/model_tables.md"),
    plots: Annotated[Path | None, typer.Option(help="Draw the figures into this folder.")] = None,
) -> None:
    """Generate the tables of whole models, and pictures of them, from recorded runs."""
    need("vicinal bench models-report", "timm")
    if plots is not None:
        need("--plots", "matplotlib")
    if not results.is_dir():
        raise wrong(f"--results: no folder {results}")
    arguments.check_output("--page", page)
    from vicinal.bench.models.document import document, files
    from vicinal.bench.models.plots import draw
    from vicinal.files import write_text

    try:
        figures = [] if plots is None else draw(files(results), plots)
        text = document(results, figures, page)
    except ValueError as error:
        raise wrong(f"--results: {error}") from error
    write_text(page, text)
    for path in (page, *figures):
        typer.echo(f"wrote {path}")
