"""Files that are written whole or not at all: a full disk or an interruption leaves what was there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when all is written, and is gone when not. Permissions and links stay.

    What is there and is no file (a device, a pipe) is written to as it is.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    final = path.resolve()  # of a link, what it points to
    mode = final.stat().st_mode & 0o777 if final.exists() else 0o666 & ~_umask()
    handle, beside = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, mode)
        os.replace(beside, final)
    except BaseException:
        os.unlink(beside)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` so, in UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
