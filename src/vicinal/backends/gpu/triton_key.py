"""Triton's digest of itself, remembered: every process needs it for the first kernel that it finds on disk.

Triton 3.6 reads all of its compiler for it, 400 MB, which takes 0.4 s. Here it is kept in Triton's cache with the sizes
and the dates of what it is of: as long as those are the same, so is the digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton import knobs

from vicinal.files import write_text

NAME = "vicinal-triton-key.json"
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
            key = _found_or_made(original)
        return key

    runtime.triton_key = triton_key


def _found_or_made(make: Any) -> str:
    path, files = Path(knobs.cache.dir) / NAME, sorted(_files())
    with suppress(OSError, ValueError, TypeError):
        kept = json.loads(path.read_text("utf-8"))
        if kept["files"] == files and isinstance(kept["key"], str):
            return str(kept["key"])
    key = str(make())
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"files": files, "key": key}))
    return key


def _files() -> Iterator[list[str | int]]:
    """Path, bytes, and nanoseconds of the last change of each."""
    root = Path(triton.__file__).parent
    for pattern in READ:
        for file in root.glob(pattern):
            about = file.stat()
            yield [str(file), about.st_size, about.st_mtime_ns]
