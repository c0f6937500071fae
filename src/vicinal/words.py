"""Plain text: sizes as `8x16`, lines that fit the terminal, and the terminal itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from textwrap import TextWrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 120  # columns of what is not printed to a terminal
LABEL = 8  # columns of a label, right-aligned
NARROWEST = 30  # columns that lines have at least


def by(sizes: Iterable[int | None]) -> str:
    """One size per axis, as `8x16`."""
    return "x".join(map(str, sizes))


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns."""
    return TextWrapper(max(width, NARROWEST)).wrap(text)


def labelled(label: str, text: str, width: int) -> list[str]:
    """The same behind a label, under which nothing else stands."""
    indent = " " * (LABEL + 2)
    return TextWrapper(max(width, NARROWEST), initial_indent=f"{label:>{LABEL}}  ", subsequent_indent=indent).wrap(text)


def terminal() -> Console:
    """Where `rich` prints to. Without markup: what stands in brackets is printed as it is."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH, markup=False, highlight=False)
