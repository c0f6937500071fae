"""Triton's digest of itself, remembered: every process needs it for the first kernel that it finds on disk.

Triton 3.6 reads all of its compiler for it, 400 MB, which takes 0.4 s. Here it is kept in Triton's cache with the sizes
and the dates of what it is of: as long as those are the same, so is the digest. What else takes long to make of files
that hardly change is kept in the same way (`remembered`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

import triton
from triton import knobs

from vicinal.files import write_text

NAME = "vicinal-triton-digest.json"  # another form of it gets another name: versions of vicinal share the folder
READ = (
    "_C/libtriton.*",
    "runtime/cache.py",
    "compiler/**/*.py",
    "language/**/*.py",
    "backends/*.py",
    "backends/*/*.py",
)


@cache
def remember_triton_key() -> None:
    """Have Triton look its digest up on disk, or keep it there; where that fails, all is as before."""
    from triton.runtime import cache as runtime

    original = getattr(runtime, "triton_key", None)
    if original is None:  # another Triton
        return
    key: str | None = None

    def triton_key() -> str:
        nonlocal key
        if key is None:
            key = remembered(NAME, triton_files(), lambda: {"triton": str(original())})["triton"]
        return key

    runtime.triton_key = triton_key


def remembered(name: str, of: Iterable[Path], make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What `make` returns, keys made of these files: from Triton's cache, where they were kept under a name.

    They are made, and kept where that is possible, if there are none, or if a file has another size or date. Whatever
    is there instead costs making them again.
    """
    path, files = Path(knobs.cache.dir) / name, sorted(_about(file) for file in of)
    with suppress(Exception):
        kept = json.loads(path.read_text("utf-8"))
        found = kept["value"]
        if kept["files"] == files and found.keys() and all(isinstance(key, str) for key in found.values()):
            return dict(found)
    keys = make()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"files": files, "value": keys}))
    return keys


@cache
def triton_files() -> tuple[Path, ...]:
    """What Triton's digest of itself is of."""
    root = Path(triton.__file__).parent
    return tuple(file for pattern in READ for file in root.glob(pattern))


def _about(file: Path) -> list[str | int]:
    """Path, bytes, and nanoseconds of the last change."""
    about = file.stat()
    return [str(file), about.st_size, about.st_mtime_ns]
