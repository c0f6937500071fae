"""The modules that a version of NATTEN had, made from the table of all versions."""

from __future__ import annotations

import re
from functools import lru_cache
from types import ModuleType
from typing import Any

from vicinal.compat.tables import ROWS, Row
from vicinal.compat.versions import Version, as_text, parse

_SIZES = "kernel_size, dilation"
_SIZES_OF_DEPTH = "kernel_size_d, kernel_size, dilation_d, dilation"


def modules_of(version: Version) -> dict[str, ModuleType]:
    """The modules of `version` by the names under which they are imported."""
    modules = {"natten": _module("natten"), "natten.functional": _module("natten.functional")}
    for row in ROWS:
        arguments = _in_force(row, version)
        if arguments is None:
            continue
        ranks = re.search(r"\{(\d+)\}", row.key)
        for rank in ranks[1] if ranks else [None]:
            home, name = _with_rank(row.key, rank).rsplit(".", 1)
            made = _made(row.key, rank, version)
            for place in (home, *(_with_rank(other, rank) for other in row.also)):
                setattr(_within(modules, f"natten.{place}".rstrip(".")), name, made)
    modules["natten"].__dict__["__version__"] = as_text(version)
    if version >= (0, 20, 0):
        modules["natten.version"] = _module("natten.version")
        modules["natten.version"].__dict__["__version__"] = as_text(version)
    for module in modules.values():
        module.__dict__["__all__"] = sorted(name for name in vars(module) if not name.startswith("_"))
    return modules


def _within(modules: dict[str, ModuleType], full: str) -> ModuleType:
    """The module of this name, made with its parents where it is missing."""
    if full not in modules:
        modules[full] = _module(full)
        parent = full.rpartition(".")[0]
        if parent:
            _within(modules, parent)
    return modules[full]


def _module(name: str) -> ModuleType:
    return ModuleType(name, f"`{name}`, provided by vicinal.compat.")


def _in_force(row: Row, version: Version) -> str | None:
    """The argument list in force at `version`; None where there is no such name."""
    dated = sorted((parse(text), arguments) for text, arguments in row.lists.items())
    return next((arguments for since, arguments in reversed(dated) if since <= version), None)


@lru_cache(maxsize=4096)
def _made(key: str, rank: str | None, version: Version) -> Any:
    """The object of a name; the same object each time, so that pickles find their classes."""
    row = next(row for row in ROWS if row.key == key and _in_force(row, version) is not None)
    arguments = _in_force(row, version)
    assert arguments is not None
    home, name = _with_rank(key, rank).rsplit(".", 1)
    sizes = _SIZES_OF_DEPTH if rank == "3" else _SIZES
    given = {} if rank is None else {"rank": int(rank)}
    return row.make(name, arguments.replace("{sizes}", sizes), f"natten.{home}".rstrip("."), **given)


def _with_rank(text: str, rank: str | None) -> str:
    return text if rank is None else re.sub(r"\{\d+\}", rank, text)
