"""Runs an unmodified program with vicinal as NATTEN: `python -m vicinal.compat --natten 0.17 script.py arguments`."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from vicinal.compat import install_as_natten
from vicinal.compat.versions import GENERATIONS

SHIM = Path(__file__).parent / "as_natten"  # a directory whose `natten` is vicinal


def main() -> None:
    """Installs the version, for child processes too, and runs the program as Python would."""
    parser = argparse.ArgumentParser(prog="python -m vicinal.compat", description=__doc__)
    parser.add_argument("--natten", metavar="VERSION", default="0.21", help=f"{', '.join(GENERATIONS)} or as 0.17.3")
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module's name")
    parser.add_argument("program", help="a script's path")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own")
    given = parser.parse_args()
    try:
        install_as_natten(given.natten)
    except ValueError as error:
        parser.error(str(error))
    os.environ["VICINAL_NATTEN"] = given.natten
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SHIM), os.environ.get("PYTHONPATH"))))
    sys.argv = [given.program, *given.arguments]
    if given.module and not _is_module(given.program):
        parser.error(f"no such module: {given.program!r}")
    elif given.module:
        runpy.run_module(given.program, run_name="__main__", alter_sys=True)
    elif not Path(given.program).exists():
        parser.error(f"no such program: {given.program!r}")
    else:
        sys.path[0] = str(Path(given.program).resolve().parent)
        runpy.run_path(given.program, run_name="__main__")


def _is_module(name: str) -> bool:
    """Whether there is a module of that name; imports the packages around it."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # no package of that name
        return False


if __name__ == "__main__":
    main()
