"""Where tables are: the user's, one file per device, and those of the package. What plans read is read once.

The user's folder is `VICINAL_CACHE_DIR`, or the one that `platformdirs` names. Reading needs neither of the libraries
of `vicinal[tune]`; without them, and without the variable, there is no user's table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from hashlib import sha256
from importlib import metadata, resources
from pathlib import Path
from typing import NamedTuple

import torch

from vicinal.backends.gpu import hardware
from vicinal.backends.protocol import Direction
from vicinal.extras import need
from vicinal.files import write_text
from vicinal.machine import device_name
from vicinal.problem import Problem
from vicinal.tuning.table import Entry, ProblemClass, Table, Versions
from vicinal.warning import warn

VARIABLE = "VICINAL_CACHE_DIR"
LOCK_SECONDS = 30
NEAR = 2  # the distance of classes up to which one stands for the other
KEPT = 4096  # classes whose entries are not searched for again

_forgetters: list[Callable[[], None]] = []


class Found(NamedTuple):
    """What is known of a problem.

    Attributes:
        distance: of the entry's class from the problem's (`ProblemClass.distance`); 0: it is that one.
        shipped: whether it is of the package's table, not of the user's.
    """

    entry: Entry
    distance: int
    shipped: bool


def look_up(problem: Problem, direction: Direction) -> Found | None:
    """The entry of the problem's class, or of the nearest within `NEAR`: of the user's table, or else of the package's.

    The user's are those of the versions that are installed; the package's are of any.
    """
    known = _known(_name(problem.device))
    return known.find(class_of(problem), direction) if known.kin else None


def is_measured(device: torch.device) -> bool:
    """Whether there is any entry for the device."""
    return bool(_known(_name(device)).kin)


_name = cache(device_name)


class _Known:
    """A device's entries, the user's in place of the package's; by what is the same in classes that are near."""

    def __init__(self, shipped: Iterable[Entry], own: Iterable[Entry]) -> None:
        self.kin: dict[tuple[object, ...], dict[ProblemClass, Found]] = {}
        self.found: dict[tuple[ProblemClass, Direction], Found | None] = {}
        self.add(shipped, True)
        self.add(own)

    def add(self, entries: Iterable[Entry], shipped: bool = False) -> None:
        """Entries, in place of those of the same classes."""
        for entry in entries:
            kin = (*entry.problems.kin, entry.direction)
            self.kin.setdefault(kin, {})[entry.problems] = Found(entry, 0, shipped)
        self.found.clear()

    def find(self, problems: ProblemClass, direction: Direction) -> Found | None:
        """See `look_up`; of several that are as near the user's, the first."""
        key = (problems, direction)
        if key not in self.found:
            if len(self.found) >= KEPT:
                self.found.clear()
            near = self.kin.get((*problems.kin, direction), {})
            each = [own._replace(distance=problems.distance(other)) for other, own in near.items()]
            best = min(each, key=lambda found: (found.distance, found.shipped), default=None)
            self.found[key] = best if best is not None and best.distance <= NEAR else None
        return self.found[key]


@cache
def _known(name: str) -> _Known:
    shipped, own = _shipped(name), read(name)
    current = own.of_versions(versions()) if own.entries else {}
    return _Known(() if shipped is None else shipped.latest().values(), current.values())


class_of = lru_cache(maxsize=4096)(ProblemClass.of)


def fitted_to(device: str) -> dict[str, float]:
    """Constants of estimates that were fitted to a device: the user's, or else the package's."""
    shipped = _shipped(device)
    return read(device).fitted or ({} if shipped is None else shipped.fitted)


hardware.fitted_to = fitted_to


def kept_plans(forget: Callable[[], None]) -> None:
    """Call `forget` whenever a table has changed: it drops plans that were made by the old one."""
    _forgetters.append(forget)


def publish(device: torch.device, entries: list[Entry]) -> None:
    """Plan by these entries too, in this process, from now on."""
    _known(_name(device)).add(entries)
    forget_plans()


def reload() -> None:
    """Read all tables again when they are needed."""
    _known.cache_clear()
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


def save(device: str, entries: Iterable[Entry], fitted: Mapping[str, float] | None = None) -> Path:
    """Add entries and constants to the user's table; other processes may do the same. Returns the file.

    Raises:
        MissingExtra, OSError: see `check_writable`.
    """
    from filelock import FileLock

    path = _writable_folder() / file_name(device)
    with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS):
        table = read(device)
        for entry in entries:
            table.add(entry)
        table.fitted |= fitted or {}
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
    need("tuning", *(() if os.environ.get(VARIABLE) else ("platformdirs",)), "filelock")
    found = folder()
    assert found is not None
    found.mkdir(parents=True, exist_ok=True)
    if not os.access(found, os.W_OK):
        raise PermissionError(f"the folder of tuning tables, {found}, cannot be written; {VARIABLE} names another")
    return found


@cache
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
