"""Plain text: sizes as `8x16`, lines that fit the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import TextWrapper

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
