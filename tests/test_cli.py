import json
from dataclasses import replace

import pytest

from vicinal.bench import cases, pages, scaling
from vicinal.cli import main

BENCH = ["bench", "--lengths", "8x8", "--window", "3"]
QUICK = ["--samples", "3", "--seconds", "0.01", "--heads", "1", "--head-dim", "8", "--no-peers"]

WRONG = {  # arguments, what the one line must say
    "no such command": (["fly"], "fly"),
    "no such option": (["info", "--fly"], "--fly"),
    "missing option": (["show", "8x8"], "--window"),
    "lengths that are no numbers": (["show", "8by8", "--window", "3"], "LENGTHS"),
    "four axes": (["show", "2x2x2x2", "--window", "1"], "LENGTHS: give 1 to 3 numbers"),
    "length 0": (["explain", "0x8", "--window", "1"], "LENGTHS"),
    "window too large": (["show", "8x8", "--window", "9"], "--window 9"),
    "window below 1": (["show", "8x8", "--window", "0"], "--window must be at least 1"),
    "window of another rank": (["show", "8x8", "--window", "3x3x3"], "--window: give one value or 2"),
    "window that is no number": (["show", "8x8", "--window", "big"], "--window: cannot read 'big'"),
    "stride over window": (["show", "8x8", "--window", "3", "--stride", "4"], "--stride must not exceed --window"),
    "dilation below 1": (["show", "8x8", "--window", "3", "--dilation", "0"], "--dilation must be at least 1"),
    "dilation too large": (["show", "8x8", "--window", "3", "--dilation", "3"], "--dilation 3"),
    "causal that is no answer": (["show", "8x8", "--window", "3", "--causal", "maybe"], "--causal"),
    "unknown boundary": (["show", "8x8", "--window", "3", "--boundary", "mirror"], "--boundary must be one of"),
    "query outside": (["show", "8x8", "--window", "3", "--query", "8,0"], "--query must lie in [0, 8) on axis 0"),
    "query of another rank": (["show", "8x8", "--window", "3", "--query", "1"], "--query must have 2 values"),
    "even size": (["show", "8x8", "--window", "3", "--size", "2"], "--size must be odd"),
    "lines of another sum": (
        ["show", "8", "--window", "3", "--matrix", "--lines", "3,4"],
        "--lines: give lengths that",
    ),
    "tile of 0": (["show", "8x8", "--window", "3", "--tile", "0"], "--tile must be at least 1"),
    "matrix of a plane": (["show", "8x8", "--window", "3", "--matrix"], "--matrix needs one axis"),
    "shards of 0": (["show", "8x8", "--window", "3", "--shards", "0x1"], "--shards must be at least 1"),
    "a rank that there is not": (
        ["show", "8x8", "--window", "3", "--shards", "2x1", "--rank", "2"],
        "--rank must be from",
    ),
    "a method that there is not": (["bench", "cp", "--method", "ring"], "--method: must be one of halo;"),
    "a report of nothing": (["bench", "cp", "--report-only"], "--report-only need --json"),
    "a circle in bench": ([*BENCH, "--boundary", "wrap"], "--boundary: circles are timed by"),
    "picture in no folder": (["show", "8x8", "--window", "3", "--png", "/no/a.png"], "--png: cannot write '/no/a.png'"),
    "picture of no known kind": (["show", "8x8", "--window", "3", "--png", "a.txt"], "--png: must end in"),
    "heads that do not divide": (["explain", "8", "--window", "3", "--heads", "3", "--kv-heads", "2"], "--kv-heads"),
    "no heads": (["explain", "8", "--window", "3", "--heads", "0"], "--heads: must be at least 1"),
    "head_dim that is no number": (["explain", "8", "--window", "3", "--head-dim", "x"], "--head-dim"),
    "unknown dtype": (["explain", "8", "--window", "3", "--dtype", "int8"], "--dtype"),
    "unknown device": (["explain", "8", "--window", "3", "--device", "abacus"], "--device"),
    "device that is not here": (["explain", "8", "--window", "3", "--device", "cuda:99"], "--device: there are"),
    "neither suite nor problem": (["bench"], "--suite"),
    "suite and problem": ([*BENCH, "--suite", "cpu"], "--suite"),
    "unknown suite": (["bench", "--suite", "all"], "--suite: must be one of cpu, gpu, new-sizes, got"),
    "no such case": (["bench", "--suite", "cpu", "--only", "nothing"], "--only"),
    "only without suite": ([*BENCH, "--only", "x"], "--only needs --suite"),
    "lengths without window": (["bench", "--lengths", "8x8"], "--window"),
    "unknown backend": ([*BENCH, "--backend", "tpu"], "--backend: must be one of"),
    "unknown peer": ([*BENCH, "--device", "cpu", "--peer", "tpu"], "--peer: none of SDPA with a mask"),
    "peers and none": ([*BENCH, "--peer", "SDPA", "--no-peers"], "--peer and --no-peers"),
    "too few samples": ([*BENCH, "--samples", "1"], "--samples"),
    "results in no folder": ([*BENCH, "--json", "/no/a.json"], "--json: cannot write '/no/a.json'"),
    "results in a folder": ([*BENCH, "--json", "/tmp"], "--json: cannot write '/tmp': Is a directory"),
    "plot in no folder": ([*BENCH, "--plot", "/no/a.png"], "--plot: cannot write"),
    "roofline of no known kind": ([*BENCH, "--roofline", "a.txt"], "--roofline: must end in"),
    "no results": (["bench", "report", "--results", "/no"], "--results: no folder /no"),
    "no page": (["bench", "report", "--results", "/tmp", "--root", "/no"], "--root: no file"),
    "tokens of no known kind": (["bench", "scaling", "--kind", "text"], "--kind: must be images or video, got 'text'"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_give_one_line_and_exit_2(arguments, words, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("vicinal: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err


def test_without_arguments_it_tells_the_commands(capsys):
    assert main([]) == 0
    told = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert told == capsys.readouterr().out
    assert "\n  denoise " in told


def test_info_names_the_versions(capsys):
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out


def test_show_draws_and_saves(tmp_path, capsys):
    path = tmp_path / "a.png"
    assert main(["show", "6x8", "--window", "3x5", "--query", "0,0", "--tile", "1", "--png", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["0", *"Q####..."]
    assert path.stat().st_size > 0


def test_show_takes_every_option(capsys):
    arguments = ["show", "12", "--window", "all", "--stride", "2", "--causal", "yes", "--matrix"]
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_show_draws_packed_lines(capsys):
    assert main(["show", "9", "--window", "5", "--clamp", "--matrix", "--lines", "6,3"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[8].split() == ["8", *"......##Q"]


def test_explain_tells_why(capsys):
    assert main(["explain", "8x8", "--window", "3", "--dtype", "bfloat16", "--device", "cpu"]) == 0
    assert "chosen" in capsys.readouterr().out


def test_bench_checks_times_and_records(tmp_path, capsys):
    path = tmp_path / "run.json"
    arguments = [*BENCH, *QUICK, "--backend", "torch", "--forward", "--device", "cpu", "--json", str(path)]
    assert main(arguments) == 0
    assert "vicinal torch" in capsys.readouterr().out
    document = json.loads(path.read_text())
    (case,) = document["cases"]
    (measured,) = case["measurements"]
    assert document["complete"]
    assert (measured["system"], measured["pass"], measured["status"]) == ("vicinal torch", "forward", "ok")
    assert measured["errors"]["output"] <= measured["tolerances"]["output"]
    assert measured["eager"]["median"] > 0


def test_bench_keeps_what_it_has_when_interrupted(tmp_path, monkeypatch, capsys):
    from vicinal.bench import runner

    done = []

    def measure_once(*arguments, **options):
        if done:
            raise KeyboardInterrupt
        done.append(arguments)
        return []

    monkeypatch.setattr(runner, "measure", measure_once)
    monkeypatch.setattr(runner, "measure_limits", lambda *_: runner.Limits(1.0, 1.0))
    path = tmp_path / "run.json"
    assert main(["bench", "--suite", "cpu", "--threads", "1", "--no-peers", "--json", str(path)]) == 130
    document = json.loads(path.read_text())
    assert not document["complete"]
    assert [case["name"] for case in document["cases"]] == [cases.SUITES["cpu"].cases[0].name]
    assert "interrupted" in capsys.readouterr().err


def test_wrong_result_is_an_exit_status(monkeypatch):
    from vicinal.bench import runner
    from vicinal.bench.measure import Measurement

    wrong = Measurement("vicinal torch", "neighborhood", "forward", "wrong", "output is off by 1 (allowed 0)")
    monkeypatch.setattr(runner, "measure", lambda *_: [wrong])
    monkeypatch.setattr(runner, "measure_limits", lambda *_: runner.Limits(1.0, 1.0))
    assert main([*BENCH, "--no-peers"]) == 1


@pytest.fixture
def checkout(tmp_path):
    """Pages with places for what is generated, and a folder for results."""
    for folder in ("docs", "results"):
        (tmp_path / folder).mkdir()
    for page, names in pages.PARTS.items():
        (tmp_path / page).write_text("".join("{}\n{}\n".format(*pages.comments(name)) for name in names))
    return tmp_path


def test_report_writes_the_pages(checkout, capsys):
    path = checkout / "results" / "run.json"
    assert main([*BENCH, *QUICK, "--backend", "torch", "--forward", "--device", "cpu", "--json", str(path)]) == 0
    assert main(["bench", "report", "--results", str(path.parent), "--root", str(checkout)]) == 0
    assert "8x8 B1 H1 D8 float32 window 3x3" in (checkout / pages.PAGE).read_text()
    assert f"wrote {checkout / pages.PAGE}\n" in capsys.readouterr().out


def test_unreadable_results_are_one_line(checkout, capsys):
    (checkout / "results" / "a.json").write_text("{")
    assert main(["bench", "report", "--results", str(checkout / "results"), "--root", str(checkout)]) == 2
    assert "a.json is not JSON" in capsys.readouterr().err


def test_scaling_tells_measures_and_draws(tmp_path, monkeypatch, capsys):
    small = replace(scaling.SETTINGS["cpu"], depth=1, windows={"images": ((3, 3),)}, shapes={"images": ((6, 6),)})
    monkeypatch.setitem(scaling.SETTINGS, "cpu", small)
    json, plot = tmp_path / "a.json", tmp_path / "a.png"
    assert main(["bench", "scaling", "--device", "cpu", "--json", str(json), "--plot", str(plot)]) == 0
    assert "images, window 3x3, 6x6 (36 tokens): " in capsys.readouterr().out
    assert json.exists()
    assert (tmp_path / "a-images.png").exists()


def test_output_check_leaves_no_file(tmp_path):
    path = tmp_path / "a.json"
    assert main([*BENCH, "--json", str(path), "--backend", "tpu"]) == 2
    assert not path.exists()
