"""What was measured, in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vicinal.tuning.table import Entry


def lines(entries: Iterable[Entry]) -> list[str]:
    """A line for each entry, and one for each of its timings, the fastest first."""
    found = []
    for entry in entries:
        found.append(f"{entry.direction} of {entry.measured}, for {entry.problems.in_words()}:")
        for timed in entry.timings:
            found.append(f"  {1e6 * timed.seconds:10.1f} us  {timed.backend:6}  {_words(timed.config)}")
    return found


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items() if each not in (None, False))
    if isinstance(value, list):
        nested = any(isinstance(each, list) for each in value)
        return (" and " if nested else "x").join(_words(each) for each in value)
    return "yes" if value is True else str(value)
