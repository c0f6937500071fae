"""Where tables are: the user's, one file per device, and those of the package. What plans read is read once.

The user's folder is `VICINAL_CACHE_DIR`, or the one that `platformdirs` names. Reading needs neither of the libraries
of `vicinal[tune]`; without them, and without the variable, there is no user's table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib import metadata, resources
from pathlib import Path

import torch

from vicinal.backends.protocol import Direction
from vicinal.extras import need
from vicinal.files import write_text
from vicinal.machine import device_name
from vicinal.problem import Problem
from vicinal.tuning.table import Entry, ProblemClass, Table, Versions
from vicinal.warning import warn

VARIABLE = "VICINAL_CACHE_DIR"
LOCK_SECONDS = 30

_Entries = dict[tuple[ProblemClass, Direction], Entry]
_forgetters: list[Callable[[], None]] = []


def look_up(problem: Problem, direction: Direction) -> Entry | None:
    """What is known of a problem's class: from the user's table of these versions, or else from the package's."""
    for entries in _tables(_name(problem.device)):
        if entries:
            entry = entries.get((ProblemClass.of(problem), direction))
            if entry is not None:
                return entry
    return None


def is_measured(device: torch.device) -> bool:
    """Whether there is any entry for the device."""
    return any(_tables(_name(device)))


_name = cache(device_name)


@cache
def _tables(name: str) -> tuple[_Entries, _Entries]:
    """The user's, and the package's."""
    shipped = _shipped(name)
    return dict(read(name).of_versions(versions())), {} if shipped is None else shipped.latest()


def kept_plans(forget: Callable[[], None]) -> None:
    """Call `forget` whenever a table has changed: it drops plans that were made by the old one."""
    _forgetters.append(forget)


def publish(device: torch.device, entries: list[Entry]) -> None:
    """Plan by these entries too, in this process, from now on."""
    own, _ = _tables(_name(device))
    own.update({entry.key[:2]: entry for entry in entries})
    forget_plans()


def reload() -> None:
    """Read all tables again when they are needed."""
    _tables.cache_clear()
    forget_plans()


def forget_plans() -> None:
    """Drop all plans; they are made anew."""
    for forget in _forgetters:
        forget()


# Files ----------------------------------------------------------------------------------------------------------


def folder() -> Path | None:
    """The folder of the user's tables; None where nothing names one."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named) / "tuning"
    try:
        from platformdirs import user_cache_path
    except ImportError:
        return None
    return user_cache_path("vicinal", appauthor=False) / "tuning"


def file_name(device: str) -> str:
    """The name of a device's table."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def path_of(device: str) -> Path | None:
    """The file of the user's table."""
    found = folder()
    return None if found is None else found / file_name(device)


def read(device: str) -> Table:
    """The user's table; an empty one where there is none, or none that can be read, which a warning says."""
    path = path_of(device)
    if path is None:
        return Table(device)
    try:
        return Table.from_json(path.read_text("utf-8"))
    except FileNotFoundError:
        return Table(device)
    except (OSError, ValueError) as error:
        warn(f"the tuning table {path} is left out: {error}")
        return Table(device)


def check_writable() -> None:
    """That tables can be kept, before anything is measured.

    Raises:
        MissingExtra: a library of `vicinal[tune]` is not installed.
        OSError: the folder cannot be written.
    """
    _writable_folder()


def save(device: str, entries: list[Entry]) -> Path:
    """Add entries to the user's table; other processes may do the same. Returns the file.

    Raises:
        MissingExtra, OSError: see `check_writable`.
    """
    from filelock import FileLock

    path = _writable_folder() / file_name(device)
    with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS):
        table = read(device)
        for entry in entries:
            table.add(entry)
        write_text(path, table.to_json())
    return path


def clear(device: str) -> bool:
    """Delete the user's table; whether there was one."""
    path = path_of(device)
    found = path is not None and path.exists()
    if found and path is not None:
        path.unlink()
        path.with_suffix(".lock").unlink(missing_ok=True)
    reload()
    return found


def _writable_folder() -> Path:
    need("tuning", "platformdirs", "filelock")
    found = folder()
    assert found is not None
    found.mkdir(parents=True, exist_ok=True)
    if not os.access(found, os.W_OK):
        raise PermissionError(f"the folder of tuning tables, {found}, cannot be written; {VARIABLE} names another")
    return found


def _shipped(device: str) -> Table | None:
    file = resources.files("vicinal.tuning") / "tables" / file_name(device)
    return Table.from_json(file.read_text("utf-8")) if file.is_file() else None


@cache
def versions() -> Versions:
    """Of what is installed here."""
    found = {}
    for package in ("triton", "numba"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return Versions(torch.__version__, found["triton"], found["numba"], _digest())


def _digest() -> str:
    """Of the kernels' source."""
    root = Path(__file__).parents[1] / "backends"
    digest = sha256()
    for file in sorted(root.glob("*/kernels/**/*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
