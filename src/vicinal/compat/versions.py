"""Which version of NATTEN a text means, and what that version had."""

from __future__ import annotations

import re

Version = tuple[int, int, int]

FIRST = {(0, 14): 1, (0, 15): 0, (0, 17): 0, (0, 20): 0, (0, 21): 0}  # of each generation that was released
LAST = {(0, 14): 6, (0, 15): 1, (0, 17): 5, (0, 20): 1, (0, 21): 7}
GENERATIONS = tuple(f"{major}.{minor}" for major, minor in LAST)


def parse(text: str) -> Version:
    """The version that `text` means: "0.17" is the last 0.17, "0.21.3" itself; suffixes as "+torch250cu121" go.

    Raises:
        ValueError: no such version was released, or it is newer than those known here.
    """
    found = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[.-]?(?:a|b|rc|dev|post)\d*)?(?:\+.*)?", str(text))
    generation = (int(found[1]), int(found[2])) if found else None
    if found is None or generation not in LAST:
        raise ValueError(f"generation must be one of {', '.join(GENERATIONS)} or a version of these, got {text!r}")
    first, last = FIRST[generation], LAST[generation]
    patch = last if found[3] is None else int(found[3])
    if not first <= patch <= last:
        name = f"{generation[0]}.{generation[1]}"
        raise ValueError(f"versions of NATTEN {name} known here are {name}.{first} to {name}.{last}, got {text!r}")
    return (*generation, patch)


def as_text(version: Version) -> str:
    """As NATTEN writes it: "0.17.5"."""
    return ".".join(map(str, version))
