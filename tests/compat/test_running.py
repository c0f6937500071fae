"""Unmodified programs: `python -m vicinal.compat`, and an environment variable."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vicinal
from vicinal.compat.__main__ import SHIM, main

PROGRAM = """
import sys
from importlib.metadata import version

import natten
import torch
from natten.functional import {function}

if __name__ == "__main__":
    print(natten.__version__, natten.__doc__.split()[-1], __file__ == sys.argv[0], *sys.argv[1:])
"""


@pytest.fixture
def write(tmp_path):
    def write(function):
        path = tmp_path / "script.py"
        path.write_text(PROGRAM.format(function=function))
        return path

    return write


@pytest.fixture
def run(monkeypatch):
    """`python -m vicinal.compat` in this process; what it changes is undone."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["python -m vicinal.compat", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", ["", *sys.path])
        monkeypatch.setattr(os, "environ", os.environ.copy())
        main()
        return os.environ

    return run


def test_a_script_runs_with_its_arguments(write, run, capsys):
    run("--natten", "0.17", write("na2d_qk"), "--natten", "x")
    assert capsys.readouterr().out.split() == ["0.17.5", "vicinal.compat.", "True", "--natten", "x"]


def test_a_module_runs(write, run, capsys, monkeypatch):
    monkeypatch.chdir(write("na2d").parent)
    run("--natten", "0.21.1", "-m", "script", "x")
    assert capsys.readouterr().out.split() == ["0.21.1", "vicinal.compat.", "True", "x"]


def test_child_processes_have_it_by_their_environment(write, run):
    environment = run("--natten", "0.20.0", write("na2d"))
    assert environment["VICINAL_NATTEN"] == "0.20.0"
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(SHIM)


def test_an_environment_variable_says_the_version(write):
    """And torch's compiler, which takes seconds to import, is not imported."""
    source = str(Path(vicinal.__file__).parents[1])
    script = write("natten2dqkrpb")
    script.write_text(script.read_text() + "    print('torch._dynamo' in sys.modules)\n")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SHIM), source]), "VICINAL_NATTEN": "0.14.6"},
        timeout=120,
    )
    assert done.stdout.split() == ["0.14.6", "vicinal.compat.", "True", "False"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--natten", "0.13", "x.py"], "generation must be one of 0.14"),
        (["--natten", "0.17", "missing.py"], "no such program: 'missing.py'"),
        (["--natten", "0.17", "-m", "missing"], "no such module: 'missing'"),
        (["--natten", "0.17", "-m", "missing.part"], "no such module: 'missing.part'"),
        ([], "the following arguments are required: program"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments, message, run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
