"""The `vicinal` command: argument parsing only. A wrong argument gives one line that names the option, and exit 2."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vicinal.geometry.neighborhood import Neighborhood, per_axis

if TYPE_CHECKING:
    import torch

    from vicinal.bench.cases import Case, Pass

T = TypeVar("T")
INTERRUPTED = 130
IMAGES = (".png", ".pdf", ".svg")

app = typer.Typer(
    help="Neighborhood attention in one, two and three dimensions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench = typer.Typer(help="Time backends and peers, checked against the oracle in the same run.", rich_markup_mode=None)
app.add_typer(bench, name="bench", invoke_without_command=True)

Window = Annotated[str, typer.Option(help="Keys per query: 7, or 3x7x7; `all` for a whole axis.")]
Stride = Annotated[str, typer.Option(help="Queries that share a window: 1, or 1x4x8.")]
Dilation = Annotated[str, typer.Option(help="Distance between neighboring keys: 1, or 1x2x2.")]
Causal = Annotated[str, typer.Option(help="Whether a query sees no later key: yes, no, or per axis, as yes,no,no.")]
Boundary = Annotated[str, typer.Option(help="At a border: shift or clip; or per axis, as clip,shift.")]
Batch = Annotated[int, typer.Option(help="Batch size.")]
Heads = Annotated[int, typer.Option(help="Query heads.")]
KVHeads = Annotated[int | None, typer.Option(help="Key and value heads; by default as many as query heads.")]
HeadDim = Annotated[int, typer.Option(help="Dimensions of a query or key head.")]
ValueDim = Annotated[int | None, typer.Option(help="Dimensions of a value head; by default --head-dim.")]
DType = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default cuda where there is one.")]


@app.command()
def info() -> None:
    """Versions, devices, and which backends can run here, or why not."""
    from rich.console import Console

    from vicinal.info import print_info

    print_info(Console())


@app.command()
def show(
    lengths: Annotated[str, typer.Argument(help="Tokens along each axis: 64, 16x16, 4x8x8.")],
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
    from rich.console import Console

    from vicinal import show as drawing

    sizes = _sizes("LENGTHS", lengths)
    rank = len(sizes)
    neighborhood = _neighborhood(sizes, window, stride, dilation, causal, boundary)
    tiles = per_axis("tile", _one_or_each("--tile", tile, rank, _size), rank)
    at = tuple(n // 2 for n in sizes) if query is None else _sizes("--query", query, least=0)
    _check_image("--png", png)
    title = f"{lengths}, window {window}" + "".join(
        f", {name} {value}"
        for name, value, usual in (
            ("stride", stride, "1"),
            ("dilation", dilation, "1"),
            ("causal", causal, "no"),
            ("boundary", boundary, "shift"),
        )
        if value != usual
    )
    console = Console()
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
        raise _wrong(re.sub(r"^(query|tile|matrix)\b", r"--\1", str(error))) from error


@app.command()
def explain(
    lengths: Annotated[str, typer.Argument(help="Tokens along each axis: 4096, 64x64, 8x32x32.")],
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
    from rich.console import Console

    from vicinal.info import print_explanation

    neighborhood = _neighborhood(_sizes("LENGTHS", lengths), window, stride, dilation, causal, boundary)
    case = _case("LENGTHS", lengths, neighborhood, batch, heads, kv_heads, head_dim, value_dim, dtype)
    print_explanation(Console(), case.problem(_device(device)))


@bench.callback()
def run_bench(
    context: typer.Context,
    suite: Annotated[str | None, typer.Option(help="A named suite instead of one problem: cpu or gpu.")] = None,
    only: Annotated[str | None, typer.Option(help="Of the suite, the cases whose name contains this.")] = None,
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
    import torch
    from rich.console import Console

    from vicinal.bench.measure import Effort
    from vicinal.bench.runner import Run, execute

    if (suite is None) == (lengths is None):
        raise _wrong("give either --suite or --lengths with --window")
    _check_output("--json", json)
    _check_image("--plot", plot)
    _check_image("--roofline", roofline)
    _check_backends(backend or [])
    if suite is not None:
        chosen, own_threads, on = _suite(suite, only, device)
        threads = own_threads if threads is None else threads
    else:
        if only is not None:
            raise _wrong("--only needs --suite")
        if lengths is None or window is None:
            raise _wrong("--lengths needs --window")
        neighborhood = _neighborhood(_sizes("--lengths", lengths), window, stride, dilation, causal, boundary)
        chosen = (_case("--lengths", lengths, neighborhood, batch, heads, kv_heads, head_dim, value_dim, dtype),)
        on = _device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    run = Run(
        cases=[_with_passes(case, forward, backward) for case in chosen],
        device=on,
        effort=Effort(samples=samples, seconds=seconds),
        command=shlex.join(["vicinal", *sys.argv[1:]]),
        suite=suite,
        backends=tuple(backend or ()),
        with_peers=not no_peers,
        json=json,
        plot=plot,
        roofline=roofline,
    )
    console = Console()
    if not execute(run, console):
        raise typer.Exit(1)


@bench.command("report")
def report_results(
    results: Annotated[Path, typer.Option(help="Folder of JSON files of earlier runs.")] = Path("benchmarks/results"),
    page: Annotated[Path, typer.Option(help="The page to write into, between its markers.")] = Path(
        "docs/benchmarks.md"
    ),
) -> None:
    """Generate the tables of docs/benchmarks.md from recorded runs."""
    from vicinal.bench.report import update_document

    if not results.is_dir():
        raise _wrong(f"--results: no folder {results}")
    if not page.is_file():
        raise _wrong(f"--page: no file {page}")
    _check_output("--page", page)
    try:
        changed = update_document(results, page)
    except ValueError as error:
        raise _wrong(str(error)) from error
    typer.echo(f"{page} {'written' if changed else 'is up to date'}")


@app.command()
def denoise(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The image to denoise, grey or colour.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write it; the suffix chooses the format.")],
    window: Annotated[int, typer.Option(help="Side of the search window in pixels, odd.")] = 21,
    patch: Annotated[int, typer.Option(help="Side of the patches that are compared in pixels, odd.")] = 5,
    strength: Annotated[float, typer.Option(help="How different patches may be, in units of the noise.")] = 0.8,
    sigma: Annotated[float | None, typer.Option(help="Noise, where white is 1; by default estimated.")] = None,
) -> None:
    """Remove noise from an image file: non-local means, as neighborhood attention over patches."""
    from rich.console import Console
    from rich.progress import Progress

    from vicinal.image_file import denoise_file

    console = Console()
    try:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("denoising", total=None)
            done = denoise_file(
                source,
                target,
                window=window,
                patch=patch,
                strength=strength,
                sigma=sigma,
                progress=lambda rows, of: progress.update(task, completed=rows, total=of),
            )
    except (OSError, ValueError) as error:
        names = {"source": "IN", "target": "OUT"}
        names |= {name: f"--{name}" for name in ("window", "patch", "strength", "sigma")}
        message = re.sub(r"^(" + "|".join(names) + r")\b", lambda found: names[found.group()], str(error))
        raise _wrong(message) from error
    noise = f"{'estimated ' if sigma is None else ''}noise {done.sigma:.3f}"
    console.print(f"{target}: {done.width}x{done.height}, {noise}, {done.seconds:.1f} s", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    try:
        status = typer.main.get_command(app).main(
            args=None if arguments is None else list(arguments), prog_name="vicinal", standalone_mode=False
        )
    except _USAGE_ERRORS as error:
        print(f"vicinal: {_one_line(error)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    if status == INTERRUPTED:  # also what typer makes of a KeyboardInterrupt
        print("vicinal: interrupted", file=sys.stderr)
    return status if isinstance(status, int) else 0


# Typer raises click's errors, some releases from a copy of click inside Typer: BadParameter -> UsageError -> this one.
_USAGE_ERRORS: type[Exception] = typer.BadParameter.__mro__[2]


def _one_line(error: BaseException) -> str:
    words = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(words.split())


def _wrong(message: str) -> typer.BadParameter:
    error = typer.BadParameter(message)
    error.format_message = lambda: message  # type: ignore[method-assign] # without click's "Invalid value: "
    return error


def _split(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"[x,]", text.strip())]


def _size(text: str) -> int:
    return int(text)


def _window(text: str) -> int | None:
    return None if text == "all" else int(text)


def _yes(text: str) -> bool:
    return {"yes": True, "no": False, "1": True, "0": False, "true": True, "false": False}[text.lower()]


def _each(option: str, text: str, parse: Callable[[str], T]) -> list[T]:
    try:
        return [parse(part) for part in _split(text)]
    except (ValueError, KeyError):
        raise _wrong(f"{option}: cannot read {text!r}; see --help for its form") from None


def _one_or_each(option: str, text: str, rank: int, parse: Callable[[str], T]) -> T | tuple[T, ...]:
    values = _each(option, text, parse)
    if len(values) not in (1, rank):
        raise _wrong(f"{option}: give one value or {rank}, one per axis; got {text!r}")
    return values[0] if len(values) == 1 else tuple(values)


def _sizes(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    values = tuple(_each(option, text, _size))
    if not 1 <= len(values) <= 3 or min(values) < least:
        raise _wrong(f"{option}: give 1 to 3 numbers of at least {least}, as 64x64; got {text!r}")
    return values


def _neighborhood(
    lengths: tuple[int, ...], window: str, stride: str, dilation: str, causal: str, boundary: str
) -> Neighborhood:
    rank = len(lengths)
    values = (
        _one_or_each("--window", window, rank, _window),
        _one_or_each("--stride", stride, rank, _size),
        _one_or_each("--dilation", dilation, rank, _size),
        _one_or_each("--causal", causal, rank, _yes),
        boundary if "," not in boundary else tuple(boundary.split(",")),
    )
    try:
        return Neighborhood.of(rank, *values).resolve(lengths)  # type: ignore[arg-type]
    except ValueError as error:
        raise _wrong(_in_options(str(error))) from error


def _in_options(message: str) -> str:
    """An error about the arguments of `Neighborhood`, in the names of the options."""
    names = {"kernel_size": "--window", "is_causal": "--causal", "stride": "--stride", "dilation": "--dilation"}
    names["boundary"] = "--boundary"
    return re.sub(r"\b(" + "|".join(names) + r")\b", lambda found: names[found.group()], message)


def _case(
    option: str,
    lengths: str,
    neighborhood: Neighborhood,
    batch: int,
    heads: int,
    kv_heads: int | None,
    head_dim: int,
    value_dim: int | None,
    dtype: str,
) -> Case:
    from vicinal.bench.cases import Case
    from vicinal.info import DTYPES

    sizes = {
        "--batch": batch,
        "--heads": heads,
        "--kv-heads": kv_heads,
        "--head-dim": head_dim,
        "--value-dim": value_dim,
    }
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise _wrong(f"{name}: must be at least 1, got {size}")
    if kv_heads is not None and heads % kv_heads != 0:
        raise _wrong(f"--heads: must be a multiple of --kv-heads, got {heads} and {kv_heads}")
    if dtype not in DTYPES:
        raise _wrong(f"--dtype: must be one of {', '.join(DTYPES)}, got {dtype!r}")
    window = "x".join(map(str, neighborhood.window))
    return Case(
        name=f"{lengths} B{batch} H{heads} D{head_dim} {dtype} window {window}",
        lengths=_sizes(option, lengths),
        neighborhood=neighborhood,
        heads=heads,
        head_dim=head_dim,
        batch=batch,
        kv_heads=kv_heads,
        value_dim=value_dim,
        dtype=DTYPES[dtype],
    )


def _with_passes(case: Case, forward: bool, backward: bool) -> Case:
    from dataclasses import replace

    from vicinal.bench.cases import PASSES

    if not forward and not backward:
        return case
    passes: tuple[Pass, ...] = tuple(p for p in PASSES if (forward if p == "forward" else backward))
    return replace(case, passes=passes)


def _suite(name: str, only: str | None, device: str | None) -> tuple[tuple[Case, ...], int | None, torch.device]:
    from vicinal.bench.cases import SUITES

    if name not in SUITES:
        raise _wrong(f"--suite: must be one of {', '.join(SUITES)}, got {name!r}")
    suite = SUITES[name]
    cases = tuple(case for case in suite.cases if only is None or only in case.name)
    if not cases:
        raise _wrong(f"--only: no case of suite {name} has {only!r} in its name")
    return cases, suite.threads, _device(device if device is not None else suite.device)


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise _wrong(f"--device: must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise _wrong(f"--device: there are {torch.cuda.device_count()} CUDA devices here, got {name!r}")
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _check_backends(names: Sequence[str]) -> None:
    from vicinal.dispatch import BACKENDS

    for name in names:
        if name not in BACKENDS:
            raise _wrong(f"--backend: must be one of {', '.join(BACKENDS)}, got {name!r}")


def _check_image(option: str, path: Path | None) -> None:
    if path is not None and path.suffix not in IMAGES:
        raise _wrong(f"{option}: must end in {', '.join(IMAGES)}, got {str(path)!r}")
    _check_output(option, path)


def _check_output(option: str, path: Path | None) -> None:
    """That a file can be written, before any long work; leaves no trace."""
    if path is None:
        return
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise _wrong(f"{option}: cannot write {str(path)!r}: {os.strerror(error.errno or 0)}") from error
    if not existed:
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
