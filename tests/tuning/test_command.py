import sys
from dataclasses import replace

import pytest
import torch

from vicinal.bench.measure import Timing
from vicinal.cli import main
from vicinal.machine import device_name
from vicinal.tuning import cache, precompile, search
from vicinal.tuning.command import EXPORTED
from vicinal.tuning.table import Table

DEVICE = device_name(torch.device("cpu"))
ONE = ["--lengths", "9x12", "--window", "3", "--heads", "2", "--head-dim", "8", "--device", "cpu"]

pytestmark = pytest.mark.usefixtures("quick")

WRONG = {
    "nothing to tune": (["tune"], "give one of SCRIPT, --suite, --lengths, --show, --clear, --export, --fit"),
    "two things": (["tune", "--show", *ONE], "; got --lengths and --show"),
    "no window": (["tune", "--lengths", "9x12"], "--lengths needs --window"),
    "wrong lengths": (["tune", "--lengths", "9by12", "--window", "3"], "--lengths: cannot read"),
    "unknown suite": (["tune", "--suite", "all"], "--suite: must be one of"),
    "only without suite": (["tune", *ONE, "--only", "x"], "--only needs --suite"),
    "no script": (["tune", "--", "/no/train.py"], "SCRIPT: no file '/no/train.py'"),
    "export in no folder": (["tune", "--export", "/no/a.json"], "--export: cannot write"),
    "nothing to export": (["tune", "--device", "cpu", "--export", "/tmp/vicinal-none.json"], "nothing was measured"),
    "nothing to compile": (["precompile"], "give either --suite or --lengths"),
    "unknown target": (["precompile", *ONE[:-2], "--target", "sm_1"], "--target must be one of sm_80"),
    "processors unknown": (["precompile", *ONE[:-2], "--target", "sm_80"], "--processors must be given"),
    "target and device": (["precompile", *ONE, "--target", "sm_90"], "--target and --device exclude each other"),
}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Candidates take so many seconds; the last is the fastest."""
    monkeypatch.setattr(
        search, "time_cold", lambda calls, device, effort: {i: Timing(0.1 / (i + 1), 0, 0, 3, 1) for i in calls}
    )


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_give_one_line_and_exit_2(arguments, words, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err


def test_one_problem_is_measured_shown_exported_and_forgotten(tmp_path, capsys):
    assert main(["tune", *ONE]) == 0
    measured = capsys.readouterr().out
    assert "forward of 9x12 B1 H2 D8 float32 window 3x3, for D8 float32 window 2x2+ of 8x8+" in measured
    assert measured.count("us  numba") == 2 * search.SHORT
    assert main(["tune", "--show", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == f"{DEVICE}: {cache.path_of(DEVICE)}"
    assert shown.split("\n", 1)[1] == measured
    exported = tmp_path / "table.json"
    assert main(["tune", "--export", str(exported), "--device", "cpu"]) == 0
    kept = {key: replace(entry, timings=entry.timings[:EXPORTED]) for key, entry in cache.read(DEVICE).entries.items()}
    assert Table.from_json(exported.read_text()).entries == kept
    assert main(["tune", *ONE]) == 0
    assert "nothing was measured: all is known" in capsys.readouterr().out
    assert main(["tune", "--clear", "--device", "cpu"]) == 0
    assert main(["tune", "--clear", "--device", "cpu"]) == 0
    assert f"nothing was measured on {DEVICE}" in capsys.readouterr().out
    assert cache.read(DEVICE).entries == {}


def test_passes_and_thorough(capsys):
    assert main(["tune", *ONE, "--forward", "--thorough"]) == 0
    printed = capsys.readouterr().out
    assert "backward" not in printed
    assert printed.count("us  numba") > search.SHORT


def test_a_suite(monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    assert main(["tune", "--suite", "cpu", "--only", "NAT stage 4", "--forward"]) == 0
    assert "forward of 7x7" in capsys.readouterr().out


SCRIPT = """
import sys, torch, vicinal
from beside import LENGTHS
assert __name__ == "__main__" and sys.argv[1:] == ["--epochs", "2"]
vicinal.na2d(*torch.ones(3, 1, *LENGTHS, 2, 8), 3)
sys.exit({status})
"""


@pytest.mark.parametrize(("status", "measured"), [(0, 1), (None, 1), (3, 0)])
def test_what_a_script_meets(tmp_path, capsys, status, measured):
    (tmp_path / "train.py").write_text(SCRIPT.format(status=status))
    (tmp_path / "beside.py").write_text("LENGTHS = (9, 12)")
    before = list(sys.argv), list(sys.path)
    arguments = ["tune", "--", str(tmp_path / "train.py"), "--epochs", "2"]
    if status == 3:
        with pytest.raises(SystemExit, match="3"):
            main(arguments)
    else:
        assert main(arguments) == 0
    assert capsys.readouterr().out.count("forward of 9x12 B1 H2") == measured
    assert (sys.argv, sys.path) == before
    sys.modules.pop("beside", None)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("vicinal.extras.find_spec", lambda module: None)
    assert main(["tune", *ONE]) == 2
    assert capsys.readouterr().err.startswith("vicinal: tuning needs filelock: pip install")


@pytest.mark.parametrize(("options", "count"), [([], 2), (["--forward"], 1), (["--lengths", "10x13"], 4)])
def test_precompile(options, count, capsys):
    assert main(["precompile", *ONE, *options]) == 0
    assert capsys.readouterr().out == f"{count} kernels are compiled\n"


def test_precompile_for_a_target(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(precompile, "precompile", lambda problems, **options: asked.append((problems, options)) or 3)
    assert main(["precompile", *ONE[:-2], "--dtype", "float16", "--target", "sm_80", "--processors", "108"]) == 0
    (((problem,), options),) = asked
    assert (problem.lengths, problem.device.type) == ((9, 12), "cpu")
    assert options == {"target": "sm_80", "processors": 108, "directions": ("forward", "backward")}
    assert capsys.readouterr().out == "3 kernels are compiled\n"
