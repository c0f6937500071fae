"""Every picture of the concepts has its command, and every command its picture."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = runpy.run_path(str(ROOT / "docs" / "pictures.py"))["commands"]()


@pytest.mark.parametrize("arguments", COMMANDS, ids=[c[-1] for c in COMMANDS])
def test_command_makes_its_picture(arguments, tmp_path):
    from vicinal.__main__ import main

    path = tmp_path / "made.png"
    assert main([*arguments[:-1], str(path)]) == 0
    assert path.stat().st_size > 0
    assert (ROOT / arguments[-1]).is_file(), "run docs/pictures.py"


def test_pictures_of_the_concepts_are_those_of_the_commands():
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("concepts.md", "distributed.md"))
    shown = re.findall(r"\(pictures/([^)/]+)\)", pages)  # those of folders below are drawn from measurements
    assert shown == [Path(arguments[-1]).name for arguments in COMMANDS]
