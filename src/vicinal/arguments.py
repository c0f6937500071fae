"""Reading the command line's arguments: text to sizes, neighborhoods, cases and devices; files that can be written.

Every function raises `typer.BadParameter` with one line that names the option, what was given and what is allowed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vicinal.extras import need
from vicinal.geometry.neighborhood import Neighborhood

if TYPE_CHECKING:
    import torch

    from vicinal.bench.cases import Case, Pass

T = TypeVar("T")
IMAGES = (".png", ".pdf", ".svg")

# What several commands take.
Lengths = Annotated[str, typer.Argument(help="Tokens along each axis: 4096, 64x64, 8x32x32.")]
Window = Annotated[str, typer.Option(help="Keys per query: 7, or 3x7x7; `all` for a whole axis.")]
Stride = Annotated[str, typer.Option(help="Queries that share a window: 1, or 1x4x8.")]
Dilation = Annotated[str, typer.Option(help="Distance between neighboring keys: 1, or 1x2x2.")]
Causal = Annotated[str, typer.Option(help="Whether a query sees no later key: yes, no, or per axis, as yes,no,no.")]
Boundary = Annotated[str, typer.Option(help="At a border: shift, clip or wrap; or per axis, as clip,shift.")]
Batch = Annotated[int, typer.Option(help="Batch size.")]
Heads = Annotated[int, typer.Option(help="Query heads.")]
KVHeads = Annotated[int | None, typer.Option(help="Key and value heads; by default as many as query heads.")]
HeadDim = Annotated[int, typer.Option(help="Dimensions of a query or key head.")]
ValueDim = Annotated[int | None, typer.Option(help="Dimensions of a value head; by default --head-dim.")]
DType = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")]
Suite = Annotated[str | None, typer.Option(help="A named suite instead of one problem: cpu or gpu.")]
Only = Annotated[
    list[str] | None, typer.Option(help="Of the suite, the cases whose name contains this; can be repeated.")
]
SomeWindow = Annotated[str | None, typer.Option(help="Keys per query: 7, or 3x7x7; `all` for an axis.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default cuda where there is one.")]


@dataclass(frozen=True)
class NeighborhoodOptions:
    """The options of a neighborhood, as typed."""

    window: str
    stride: str
    dilation: str
    causal: str
    boundary: str

    def read(self, lengths: tuple[int, ...], clamp: bool = False) -> Neighborhood:
        """The neighborhood, resolved for tokens of `lengths`; with `clamp` of the largest windows that fit."""
        rank = len(lengths)
        values = (
            one_or_each("--window", self.window, rank, _window),
            one_or_each("--stride", self.stride, rank, int),
            one_or_each("--dilation", self.dilation, rank, int),
            one_or_each("--causal", self.causal, rank, _yes),
            tuple(self.boundary.split(",")) if "," in self.boundary else self.boundary,
        )
        try:
            neighborhood = Neighborhood.of(rank, *values)  # type: ignore[arg-type]
            return (neighborhood.clamp(lengths) if clamp else neighborhood).resolve(lengths)
        except ValueError as error:
            names = {"kernel_size": "window", "is_causal": "causal"}
            raise wrong(in_options(str(error), ("stride", "dilation", "boundary"), names)) from error

    def title(self) -> str:
        """What was typed, without what is usual."""
        usual = NeighborhoodOptions(self.window, "1", "1", "no", "shift")
        parts = [(name, getattr(self, name)) for name in self.__dataclass_fields__]
        return ", ".join(
            f"{name} {value}" for name, value in parts if name == "window" or value != getattr(usual, name)
        )


@dataclass(frozen=True)
class ProblemOptions:
    """The options of a problem's sizes, as typed."""

    batch: int
    heads: int
    kv_heads: int | None
    head_dim: int
    value_dim: int | None
    dtype: str

    def read(self, lengths: tuple[int, ...], neighborhood: Neighborhood) -> Case:
        """The case, named after its problem."""
        from vicinal.bench.cases import Case
        from vicinal.problem import DTYPES

        for name in ("batch", "heads", "kv_heads", "head_dim", "value_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise wrong(f"--{name.replace('_', '-')}: must be at least 1, got {value}")
        if self.kv_heads is not None and self.heads % self.kv_heads != 0:
            raise wrong(f"--heads: must be a multiple of --kv-heads, got {self.heads} and {self.kv_heads}")
        if self.dtype not in DTYPES:
            raise wrong(f"--dtype: must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        case = Case(
            "",
            lengths,
            neighborhood,
            self.heads,
            self.head_dim,
            self.batch,
            self.kv_heads,
            self.value_dim,
            DTYPES[self.dtype],
        )
        return replace(case, name=case.problem("cpu").in_words())


def wrong(message: str) -> typer.BadParameter:
    """The error of a wrong argument, with nothing but `message`."""
    error = typer.BadParameter(message)
    error.format_message = lambda: message  # type: ignore[method-assign] # without click's "Invalid value: "
    return error


def in_options(message: str, arguments: Sequence[str], renamed: dict[str, str] | None = None) -> str:
    """An error about `arguments` (and `renamed` ones) of a function, in the names of the options."""
    names = {name: name for name in arguments} | (renamed or {})
    return re.sub(r"\b(" + "|".join(names) + r")\b", lambda found: f"--{names[found.group()]}", message)


def sizes(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    """One to three numbers, as `64x64`."""
    values = tuple(_each(option, text, int))
    if not 1 <= len(values) <= 3 or min(values) < least:
        raise wrong(f"{option}: give 1 to 3 numbers of at least {least}, as 64x64; got {text!r}")
    return values


def lines(option: str, text: str, lengths: Sequence[int]) -> tuple[int, ...]:
    """Lengths of lines that make up the one of `lengths`, as `7,12,5`."""
    values = tuple(_each(option, text, int))
    if len(lengths) != 1 or min(values) < 1 or sum(values) != lengths[0]:
        raise wrong(f"{option}: give lengths that add up to the one axis, as 7,12,5 for 24; got {text!r}")
    return values


def box(option: str, text: str, lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """An interval for each axis, as `0:12,10:16`."""
    found = re.findall(r"(\d+):(\d+)", text)
    whole = re.fullmatch(r"\d+:\d+(,\d+:\d+)*", text.strip()) is not None
    intervals = tuple((int(start), int(stop)) for start, stop in found)
    if not whole or len(intervals) != len(lengths) or any(not a < b <= n for (a, b), n in zip(intervals, lengths)):
        raise wrong(f"{option}: give start:stop within each of {len(lengths)} axes, as 0:12,10:16; got {text!r}")
    return intervals


def one_or_each(option: str, text: str, rank: int, parse: Callable[[str], T]) -> T | tuple[T, ...]:
    """One value for all axes, or one for each of `rank`."""
    values = _each(option, text, parse)
    if len(values) not in (1, rank):
        raise wrong(f"{option}: give one value or {rank}, one per axis; got {text!r}")
    return values[0] if len(values) == 1 else tuple(values)


def with_passes(case: Case, forward: bool, backward: bool) -> Case:
    """The case with the passes asked for; with all where none is."""
    from vicinal.bench.cases import PASSES

    if not forward and not backward:
        return case
    passes: tuple[Pass, ...] = tuple(p for p in PASSES if (forward if p == "forward" else backward))
    return replace(case, passes=passes)


def suite(
    name: str, only: Sequence[str] | None, device: str | None, others: Sequence[str] = ()
) -> tuple[tuple[Case, ...], int | None, torch.device]:
    """A suite's cases (those with one of `only` in their name), its threads, and the device to run on.

    `others`: names that the command takes besides.
    """
    from vicinal.bench.cases import SUITES

    if name not in SUITES:
        raise wrong(f"--suite: must be one of {', '.join((*SUITES, *others))}, got {name!r}")
    found = SUITES[name]
    cases = tuple(case for case in found.cases if not only or any(part in case.name for part in only))
    if not cases:
        raise wrong(f"--only: no case of suite {name} has {' or '.join(map(repr, only or ()))} in its name")
    return cases, found.threads, device_of(device if device is not None else found.device)


def device_of(name: str | None) -> torch.device:
    """A device that is here; by default a CUDA device where there is one."""
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise wrong(f"--device: must be cpu, cuda or cuda:N, got {name!r}")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (0 if device.index is None else device.index) >= count:
        raise wrong(f"--device: there are {count} CUDA devices here, got {name!r}")
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def check_backends(names: Sequence[str]) -> None:
    """That backends of these names exist."""
    from vicinal.dispatch import BACKENDS

    for name in names:
        if name not in BACKENDS:
            raise wrong(f"--backend: must be one of {', '.join(BACKENDS)}, got {name!r}")


def peers(parts: Sequence[str] | None, none: bool, device: torch.device) -> tuple[str, ...] | None:
    """Parts of the names of the peers to run: none, those given, or (None) all."""
    from vicinal.bench.peers import OPTIONAL, peers

    if none and parts:
        raise wrong("--peer and --no-peers exclude each other")
    if none or not parts:
        return () if none else None
    names = [peer.name for peer in peers(device)]
    for part in parts:
        if not any(part in name for name in names):
            needs = next((f"; that needs {package}" for name, package in OPTIONAL.items() if part in name), "")
            raise wrong(f"--peer: none of {', '.join(names)} has {part!r} in its name{needs}")
    return tuple(parts)


def check_drawing(option: str, path: Path | None) -> None:
    """That a picture can be drawn and written there, before any long work."""
    if path is None:
        return
    need(option, "matplotlib")
    if path.suffix not in IMAGES:
        raise wrong(f"{option}: must end in {', '.join(IMAGES)}, got {str(path)!r}")
    check_output(option, path)


def check_output(option: str, path: Path | None) -> None:
    """That a file can be written there, before any long work; leaves no trace."""
    if path is None:
        return
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise wrong(f"{option}: cannot write {str(path)!r}: {os.strerror(error.errno or 0)}") from error
    if not existed:
        path.unlink()


def _each(option: str, text: str, parse: Callable[[str], T]) -> list[T]:
    try:
        return [parse(part.strip()) for part in re.split(r"[x,]", text.strip())]
    except (ValueError, KeyError):
        raise wrong(f"{option}: cannot read {text!r}; see --help for its form") from None


def _window(text: str) -> int | None:
    return None if text == "all" else int(text)


def _yes(text: str) -> bool:
    return {"yes": True, "no": False}[text]
