"""Make the pictures of the documentation again: run every `vicinal show ... --png ...` command found in docs/*.md."""

import re
import shlex
import sys
from pathlib import Path

from vicinal.__main__ import main

DOCS = Path(__file__).parent


def commands() -> list[list[str]]:
    """The arguments of every such command, in the order of the pages."""
    pages = sorted(DOCS.glob("*.md"))
    found = (line for page in pages for line in re.findall(r"^vicinal show .*--png .*$", page.read_text(), re.M))
    return [shlex.split(line)[1:] for line in found]


if __name__ == "__main__":
    for arguments in commands():
        path = DOCS.parent / arguments[-1]
        status = main([*arguments[:-1], str(path)])
        if status:
            sys.exit(status)
