"""The command as a process: what it imports, what it does without its extras, where it cannot write."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vicinal
from vicinal.__main__ import main

# Runs the command where some modules cannot be found, and tells at the end whether torch was imported.
HARNESS = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {hidden!r} else PathFinder.find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from vicinal.__main__ import main
status = main({words!r})
print("torch" in sys.modules, file=sys.stderr)
sys.exit(status)
"""
CLI = ("rich", "typer", "PIL", "numpy")


def run(words, hidden=(), code=HARNESS, **options):
    script = code.format(words=list(words), hidden=tuple(hidden))
    return process(["-c", script], **options)


def process(arguments, **options):
    """A Python with this very vicinal."""
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(Path(vicinal.__file__).parents[1])}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment} | options
    return subprocess.run([sys.executable, *arguments], text=True, timeout=120, **options)


HELP = [["--help"], ["-h"], ["show", "-h"], ["explain", "--help"], ["denoise", "-h"], ["bench", "-h"], ["--version"]]


@pytest.mark.parametrize("words", [*HELP, ["show", "9", "--window", "3"]], ids=" ".join)
def test_torch_is_not_imported(words):
    done = run(words)
    assert done.returncode == 0
    assert done.stderr == "False\n"
    assert done.stdout


def test_version():
    assert run(["--version"]).stdout == f"vicinal {vicinal.__version__}\n"


NEEDS = {  # words, what is not installed, the one line
    "show": (["show", "9", "--window", "3"], CLI, "vicinal show needs typer and rich: pip install 'vicinal[cli]'"),
    "nothing": ([], CLI, "vicinal needs typer and rich: pip install 'vicinal[cli]'"),
    "denoise": (["denoise", "a.png", "b.png"], ("PIL",), "vicinal denoise needs PIL: pip install 'vicinal[cli]'"),
    "show --png": (
        ["show", "9", "--window", "3", "--png", "a.png"],
        ("matplotlib",),
        "--png needs matplotlib: pip install 'vicinal[plot]'",
    ),
    "bench --plot": (
        ["bench", "--suite", "cpu", "--plot", "a.png"],
        ("matplotlib",),
        "--plot needs matplotlib: pip install 'vicinal[plot]'",
    ),
    "bench paper --plots": (
        ["bench", "paper", "--report-only", "--plots", "folder"],
        ("matplotlib",),
        "--plots needs matplotlib: pip install 'vicinal[plot]'",
    ),
}


@pytest.mark.parametrize(("words", "hidden", "line"), NEEDS.values(), ids=NEEDS)
def test_what_to_install_is_said_before_any_work(words, hidden, line, tmp_path):
    done = run(words, hidden, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == f"vicinal: {line}"
    assert done.stderr.count("\n") == 2  # the line, and the harness's
    assert not list(tmp_path.iterdir())


def test_info_runs_with_torch_alone():
    done = run(["info"], (*CLI, "matplotlib", "numba", "scipy"))
    assert done.returncode == 0, done.stderr
    assert "it needs numba: pip install 'vicinal[cpu]'" in " ".join(done.stdout.split())


def test_version_needs_nothing():
    assert run(["--version"], CLI).stdout == f"vicinal {vicinal.__version__}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["show", "9", "--window", "3"], ["--version"], ["-h"]], ids=" ".join)
def test_a_full_disk_behind_standard_output_is_one_line(words):
    with open("/dev/full", "w") as full:
        done = process(["-m", "vicinal", *words], stdout=full)
    assert done.returncode == 1
    assert done.stderr == "vicinal: cannot write: No space left on device\n"


@pytest.mark.parametrize("words", [["show", "9", "--window", "3"], ["--version"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = process(["-m", "vicinal", *words], stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_may_lack_letters(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    monkeypatch.setattr("vicinal.__main__._run", lambda words: print("\N{LATIN SMALL LETTER E WITH ACUTE}") or 0)
    assert main([]) == 0
    assert printed.getvalue() == b"\\xe9\n"


def test_importing_vicinal_does_not_import_torch():
    assert process(["-c", "import sys, vicinal; sys.exit('torch' in sys.modules)"]).returncode == 0


def test_operators_are_registered_where_torch_is_there():
    code = "import torch, vicinal; print(torch.ops.vicinal.attend.default)"
    assert process(["-c", code]).stdout == "vicinal.attend.default\n"


def test_a_submodule_is_there_without_its_own_import():
    done = process(["-c", "import vicinal; print(vicinal.unfused.na1d_qk.__name__)"])
    assert done.stdout == "na1d_qk\n", done.stderr


@pytest.mark.parametrize("name", [*vicinal.__all__, "compat", "denoise", "nn", "reference", "unfused"])
def test_public_names_are_there(name):
    assert name in dir(vicinal)
    assert getattr(vicinal, name) is not None


def test_only_public_names_are_listed():
    listed = {name for name in dir(vicinal) if not name.startswith("__")}
    modules = {"compat", "denoise", "export", "models", "nn", "reference", "unfused"}
    assert listed == {name for name in vicinal.__all__ if not name.startswith("__")} | modules


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'vicinal' has no attribute 'na4d'"):
        _ = vicinal.na4d
