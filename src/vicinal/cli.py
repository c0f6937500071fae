"""The commands. A wrong argument gives one line that names the option, and exit status 2.

Only what is typed is handled here and in `vicinal.arguments`; the work is elsewhere, imported when a command needs it,
so that help does not wait for torch.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vicinal import __version__, arguments
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
    Lengths,
    Stride,
    ValueDim,
    Window,
    wrong,
)
from vicinal.extras import MissingExtra, need
from vicinal.geometry.neighborhood import per_axis
from vicinal.tuning import command

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
WHITE = 255  # of 8 bits
WIDTH = 120  # of what is not printed to a terminal

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(rich_markup_mode=None)
app.add_typer(bench, name="bench", invoke_without_command=True, short_help="Time our backends and their peers.")

app.command("tune", short_help="Measure what runs fastest here.")(command.tune)
app.command("precompile", short_help="Compile kernels before they are needed.")(command.precompile)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vicinal {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Neighborhood attention in one, two and three dimensions."""


@app.command(short_help="Versions, devices, and what can run here.")
def info() -> None:
    """Versions, devices, and which backends can run here, or why not."""
    from vicinal.info import print_info

    print_info()


@app.command(short_help="Draw a neighborhood.")
def show(
    lengths: Lengths,
    window: Window,
    query: Annotated[str | None, typer.Option(help="Position of the query, as 3,5; by default the middle.")] = None,
    stride: Stride = "1",
    dilation: Dilation = "1",
    causal: Causal = "no",
    boundary: Boundary = "shift",
    tile: Annotated[str, typer.Option(help="Queries per tile, in units of the dilation: 4, or 2x8.")] = "4",
    matrix: Annotated[bool, typer.Option("--matrix", help="1-D: a row per query, a column per key.")] = False,
    png: Annotated[Path | None, typer.Option(help="Also draw into this file (.png, .pdf, .svg).")] = None,
) -> None:
    """Draw a neighborhood: a query, its keys, and the keys that its tile of queries reads."""
    from vicinal import show as drawing

    sizes = arguments.sizes("LENGTHS", lengths)
    typed = arguments.NeighborhoodOptions(window, stride, dilation, causal, boundary)
    neighborhood = typed.read(sizes)
    tiles = per_axis("tile", arguments.one_or_each("--tile", tile, len(sizes), int), len(sizes))
    at = tuple(n // 2 for n in sizes) if query is None else arguments.sizes("--query", query, least=0)
    arguments.check_drawing("--png", png)
    title = f"{lengths}, {typed.title()}"
    console = _console()
    try:
        if matrix:
            drawing.print_matrix(console, neighborhood, sizes[0])
            if png is not None:
                drawing.save_matrix(neighborhood, sizes[0], png, title)
        else:
            shown = drawing.picture(neighborhood, sizes, at, tiles)
            drawing.print_picture(console, shown)
            if png is not None:
                drawing.save_picture(shown, png, title)
    except ValueError as error:
        raise wrong(re.sub(r"^(query|tile|matrix)\b", r"--\1", str(error))) from error


@app.command(short_help="Why a problem runs how.")
def explain(
    lengths: Lengths,
    window: Window,
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
) -> None:
    """Why a problem runs on which backend and with which tiling."""
    from vicinal.explain import print_explanation

    sizes = arguments.sizes("LENGTHS", lengths)
    neighborhood = arguments.NeighborhoodOptions(window, stride, dilation, causal, boundary).read(sizes)
    case = arguments.ProblemOptions(batch, heads, kv_heads, head_dim, value_dim, dtype).read(sizes, neighborhood)
    print_explanation(case.problem(arguments.device_of(device)))


@bench.callback()
def run_bench(
    context: typer.Context,
    suite: Annotated[str | None, typer.Option(help="A named suite instead of one problem: cpu or gpu.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Of the suite, the cases whose name contains this; can be repeated.")
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Tokens along each axis: 4096, 64x64, 8x32x32.")] = None,
    window: Annotated[str | None, typer.Option(help="Keys per query: 7, or 3x7x7; `all` for an axis.")] = None,
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
    """Time one problem, or a suite, across our backends and the peers; every result is checked first."""
    if context.invoked_subcommand is not None:
        return
    if (suite is None) == (lengths is None):
        raise wrong("give either --suite or --lengths with --window")
    arguments.check_output("--json", json)
    arguments.check_drawing("--plot", plot)
    arguments.check_drawing("--roofline", roofline)
    import torch

    from vicinal.bench.measure import Effort
    from vicinal.bench.runner import Run, execute

    arguments.check_backends(backend or [])
    if suite is not None:
        cases, own_threads, on = arguments.suite(suite, only, device)
        threads = own_threads if threads is None else threads
    elif only:
        raise wrong("--only needs --suite")
    elif lengths is None or window is None:
        raise wrong("--lengths needs --window")
    else:
        sizes = arguments.sizes("--lengths", lengths)
        neighborhood = arguments.NeighborhoodOptions(window, stride, dilation, causal, boundary).read(sizes)
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
    if not execute(run, _console()):
        raise typer.Exit(1)


@bench.command("report", short_help="Write the tables of recorded runs.")
def report_results(
    results: Annotated[Path, typer.Option(help="Folder of JSON files of earlier runs.")] = Path("benchmarks/results"),
    page: Annotated[Path, typer.Option(help="The page to write into, between its markers.")] = Path(
        "docs/benchmarks.md"
    ),
) -> None:
    """Generate the tables of docs/benchmarks.md from recorded runs."""
    from vicinal.bench.report import update_document

    if not results.is_dir():
        raise wrong(f"--results: no folder {results}")
    if not page.is_file():
        raise wrong(f"--page: no file {page}")
    arguments.check_output("--page", page)
    try:
        changed = update_document(results, page)
    except ValueError as error:
        raise wrong(str(error)) from error
    typer.echo(f"{page} {'written' if changed else 'is up to date'}")


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

    console = _console()
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


@bench.command("models", short_help="Images per second of whole models.")
def run_models(
    model: Annotated[list[str], typer.Option(help="As nat_mini, or stylenat_ffhq_256; can be repeated.")],
    results: Annotated[Path, typer.Option(help="File of JSON lines; a rerun goes on where it ended.")] = Path(
        "models.jsonl"
    ),
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 (default), float16, bfloat16; repeatable.")] = None,
    training: Annotated[bool, typer.Option("--training", help="Forward and backward pass, under autocast.")] = False,
    system: Annotated[list[str] | None, typer.Option(help="What computes attention; by default all.")] = None,
    samples: Annotated[int, typer.Option(min=3, help="Timed samples per system.")] = 15,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for the samples of one system.")] = 10.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    device: Device = None,
) -> None:
    """Whole models, their attention computed by each system in turn; outputs are checked before they are timed."""
    need("vicinal bench models", "timm")
    names = dtype or ["float32"]
    if not set(names) <= {"float32", "float16", "bfloat16"}:
        raise wrong(f"--dtype: must be float32, float16 or bfloat16, got {', '.join(map(repr, names))}")
    arguments.check_output("--results", results)
    import torch

    from vicinal.bench.measure import Effort
    from vicinal.bench.models import Setting, known, run
    from vicinal.problem import DTYPES

    unknown = [name for name in model if name not in known()]
    if unknown:
        raise wrong(f"--model: must be one of {', '.join(known())}, got {', '.join(map(repr, unknown))}")
    on = arguments.device_of(device)
    if threads is not None:
        torch.set_num_threads(threads)
    settings = [Setting(name, DTYPES[d], batch, training) for name in model for d in dict.fromkeys(names)]
    command = shlex.join(["vicinal", *sys.argv[1:]])
    try:
        right = run(settings, on, results, Effort(samples, seconds), command, system or (), _console())
    except ValueError as error:
        raise wrong(re.sub(r"^system\b", "--system", str(error))) from error
    if not right:
        raise typer.Exit(1)


@app.command(short_help="Remove noise from an image file.")
def denoise(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The image to denoise, grey or colour.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write it; the suffix chooses the format.")],
    window: Annotated[int, typer.Option(help="Side of the search window in pixels, odd.")] = 21,
    patch: Annotated[int, typer.Option(help="Side of the patches that are compared in pixels, odd.")] = 5,
    strength: Annotated[float, typer.Option(help="How different patches may be, in units of the noise.")] = 0.8,
    sigma: Annotated[
        float | None,
        typer.Option(help="Noise: up to 1 where white is 1, above 1 where white is 255; by default estimated."),
    ] = None,
    frame: Annotated[int | None, typer.Option(help="Which image of a file of several, from 0.")] = None,
    device: Device = None,
) -> None:
    """Remove noise from an image file: non-local means, as neighborhood attention over patches."""
    need("vicinal denoise", "PIL", "numpy")
    from rich.progress import Progress

    from vicinal.image_file import denoise_file

    if sigma is not None and sigma > WHITE:
        raise wrong(f"--sigma: must be up to 1 (white is 1) or up to 255 (white is 255), got {sigma:g}")
    console = _console()
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("denoising", total=None)
            done = denoise_file(
                source,
                target,
                window=window,
                patch=patch,
                strength=strength,
                sigma=sigma if sigma is None or sigma <= 1 else sigma / WHITE,
                frame=frame,
                device=arguments.device_of(device),
                progress=lambda done, of: progress.update(task, completed=done, total=of),
                forecast=lambda seconds: console.print(
                    f"this will take about {seconds / 60:.0f} minutes; a smaller --window takes less", soft_wrap=True
                ),
            )
    except (OSError, ValueError, MemoryError) as error:
        names = {"source": "IN", "target": "OUT"}
        names |= {name: f"--{name}" for name in ("window", "patch", "strength", "sigma", "frame")}
        message = re.sub(r"^(" + "|".join(names) + r")\b", lambda found: names[found.group()], str(error))
        raise wrong(message) from error
    estimated = "estimated " if sigma is None else ""
    noise = f"{estimated}noise {done.sigma:.3f} (of 255: {WHITE * done.sigma:.1f})"
    console.print(f"{target}: {done.width}x{done.height}, {noise}, {done.seconds:.1f} s", soft_wrap=True)
    if done.lost:
        console.print(f"left out, for {target.suffix} holds none: {', '.join(done.lost)}", soft_wrap=True)


@app.command(short_help="Say what is in an image file.")
def classify(
    image: Annotated[Path, typer.Argument(help="The image.")],
    model: Annotated[str, typer.Option(help="A model, as dinat_mini, or a published file, as dinat_mini_in1k_224.")],
    weights: Annotated[
        Path | None,
        typer.Option(help="File of its weights; by default the published one, downloaded or from the cache."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="So many classes.")] = 5,
    device: Device = None,
) -> None:
    """Say what is in an image file: the most probable classes, by a model and its weights."""
    need("vicinal classify", "timm", "PIL")
    from vicinal.models.classify import classify_file

    try:
        guesses = classify_file(image, model, weights, top, arguments.device_of(device))
    except (OSError, ValueError) as error:
        message = re.sub(r"^(model|weights)\b", r"--\1", str(error))
        raise wrong(re.sub(r"^image\b", "IMAGE", message)) from error
    console = _console()
    for guess in guesses:
        console.print(f"{100 * guess.probability:5.1f} %  {guess.name}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's); the exit status."""
    try:
        status = typer.main.get_command(app).main(
            args=None if argv is None else list(argv), prog_name="vicinal", standalone_mode=False
        )
    except _USAGE_ERRORS as error:
        words = error.format_message() if hasattr(error, "format_message") else str(error)
        print(f"vicinal: {' '.join(words.split())}", file=sys.stderr)
        return 2
    except MissingExtra as missing:
        print(f"vicinal: {missing}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    if status == INTERRUPTED:  # also what typer makes of a KeyboardInterrupt
        print("vicinal: interrupted", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _console() -> Console:
    from rich.console import Console

    # Without markup: what stands in brackets is printed as it is.
    return Console(width=None if sys.stdout.isatty() else WIDTH, markup=False, highlight=False)


# Typer raises click's errors, some releases from a copy of click inside Typer: BadParameter -> UsageError -> this one.
_USAGE_ERRORS: type[Exception] = typer.BadParameter.__mro__[2]
