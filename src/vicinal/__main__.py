"""The `vicinal` command. With torch alone, `info` and `--version` run, and the rest says what to install."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper

from vicinal._version import __version__
from vicinal.extras import MissingExtra, need


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's); the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack a letter of a file's name
    try:
        status = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # of standard output, or of a file that no command has told about
        _close_output()
        if not isinstance(error, BrokenPipeError):  # whoever reads has seen enough
            what = "cannot write" if error.filename is None else error.filename
            print(f"vicinal: {what}: {error.strerror or error}", file=sys.stderr)
        return 1
    return status


def _run(words: list[str]) -> int:
    try:
        need(" ".join(["vicinal", *words[:1]]), "typer", "rich")
    except MissingExtra as missing:
        if words == ["info"]:
            from vicinal.info import print_info

            print_info()
        elif words == ["--version"]:
            print(f"vicinal {__version__}")
        else:
            print(f"vicinal: {missing}", file=sys.stderr)
            return 2
        return 0
    from vicinal.cli import main

    return main(words)


def _close_output() -> None:
    """Let the interpreter's own flush at its end go nowhere instead of failing once more."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
