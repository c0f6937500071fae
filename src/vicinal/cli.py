"""The commands. A wrong argument gives one line that names the option, and exit status 2.

Only what is typed is handled here and in `vicinal.arguments`; the work is elsewhere, imported when a command needs it,
so that help does not wait for torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

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
from vicinal.bench_command import bench
from vicinal.extras import MissingExtra, need
from vicinal.geometry.neighborhood import per_axis
from vicinal.tuning import command
from vicinal.words import terminal

INTERRUPTED = 130
WHITE = 255  # of 8 bits

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
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
    queries: Annotated[int | None, typer.Option(help="--matrix: how many queries, on a grid of their own.")] = None,
    lines: Annotated[
        str | None, typer.Option(help="--matrix: lines of these lengths, packed one after the other, as 7,12,5.")
    ] = None,
    clamp: Annotated[
        bool, typer.Option("--clamp", help="The largest window that fits, where an axis is short.")
    ] = False,
    size: Annotated[int | None, typer.Option(help="Of the query's own window: odd, at most the window.")] = None,
    masked: Annotated[str | None, typer.Option(help="A box of masked keys, as 0:12,10:16.")] = None,
    shards: Annotated[
        str | None, typer.Option(help="Parts along each axis that ranks hold: 2x1. Draws a rank's shard and halo.")
    ] = None,
    rank: Annotated[int, typer.Option(min=0, help="With --shards: which one, in row-major order.")] = 0,
    png: Annotated[Path | None, typer.Option(help="Also draw into this file (.png, .pdf, .svg).")] = None,
) -> None:
    """Draw a neighborhood: a query, its keys, and the keys that its tile of queries reads."""
    from vicinal import show as drawing

    sizes = arguments.sizes("LENGTHS", lengths)
    typed = arguments.NeighborhoodOptions(window, stride, dilation, causal, boundary)
    neighborhood = typed.read(sizes, clamp)
    tiles = per_axis("tile", arguments.one_or_each("--tile", tile, len(sizes), int), len(sizes))
    at = tuple(n // 2 for n in sizes) if query is None else arguments.sizes("--query", query, least=0)
    arguments.check_drawing("--png", png)
    if queries is not None and (not matrix or queries < 1):
        raise wrong(f"--queries: a number of at least 1, together with --matrix; got {queries}")
    box = () if masked is None else arguments.box("--masked", masked, sizes)
    packed = () if lines is None else arguments.lines("--lines", lines, sizes)
    more = {"queries": queries, "lines": lines, "own size": size}
    title = f"{lengths}, {typed.title()}" + ", clamp" * clamp
    title += "".join(f", {name} {value}" for name, value in more.items() if value is not None)
    console = terminal()
    try:
        if matrix:
            if packed:
                rows = drawing.lines_matrix([typed.read((n,), clamp) for n in packed], packed)
            else:
                rows = drawing.matrix(neighborhood, sizes[0], queries)
            drawing.print_matrix(console, rows)
            if png is not None:
                drawing.save_matrix(rows, png, title)
        else:
            if shards is not None:
                shown = drawing.shard_picture(neighborhood, sizes, _parts(shards, len(sizes)), rank)
                title += f", rank {rank} of {shards}"
            else:
                shown = drawing.picture(neighborhood, sizes, at, tiles, box, size)
            drawing.print_picture(console, shown)
            if png is not None:
                drawing.save_picture(shown, png, title)
    except ValueError as error:
        raise wrong(re.sub(r"^(query|tile|matrix|rank|size)\b", r"--\1", str(error))) from error


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
    shards: Annotated[
        str | None, typer.Option(help="Parts along each axis that ranks hold: also what they send each other.")
    ] = None,
) -> None:
    """Why a problem runs on which backend and with which tiling."""
    from vicinal.explain import print_explanation

    sizes = arguments.sizes("LENGTHS", lengths)
    neighborhood = arguments.NeighborhoodOptions(window, stride, dilation, causal, boundary).read(sizes)
    case = arguments.ProblemOptions(batch, heads, kv_heads, head_dim, value_dim, dtype).read(sizes, neighborhood)
    parts = None if shards is None else _parts(shards, len(sizes))
    print_explanation(case.problem(arguments.device_of(device)), parts)


def _parts(typed: str, rank: int) -> tuple[int, ...]:
    """`--shards`: parts along each axis."""
    parts = per_axis("shards", arguments.one_or_each("--shards", typed, rank, int), rank)
    if min(parts) < 1:
        raise wrong(f"--shards must be at least 1 on every axis, got {typed}")
    return parts


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
    console = terminal()
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
    console = terminal()
    for guess in guesses:
        console.print(f"{100 * guess.probability:5.1f} %  {guess.name}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's); the exit status. Without any it tells them."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        status = typer.main.get_command(app).main(args=words or ["--help"], prog_name="vicinal", standalone_mode=False)
    except _USAGE_ERRORS as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        print(f"vicinal: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except MissingExtra as missing:
        print(f"vicinal: {missing}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    if status == INTERRUPTED:  # also what typer makes of a KeyboardInterrupt
        print("vicinal: interrupted", file=sys.stderr)
    return status if isinstance(status, int) else 0


# Typer raises click's errors, some releases from a copy of click inside Typer: BadParameter -> UsageError -> this one.
_USAGE_ERRORS: type[Exception] = typer.BadParameter.__mro__[2]
