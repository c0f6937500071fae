"""The sweep on tiny CPU problems: results, resuming, and problems that go wrong."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from vicinal.bench.cases import Case
from vicinal.bench.paper import measure as paper_measure
from vicinal.bench.paper import sweep as paper
from vicinal.bench.paper.measure import empty_line, prepare
from vicinal.bench.paper.problems import problems
from vicinal.bench.paper.processes import Workers
from vicinal.bench.paper.sweep import Sweep, ends, headers, read, run
from vicinal.bench.paper.systems import FUSED, GEMM, NAIVE, PLAIN, systems
from vicinal.bench.peers import System, compiled_for
from vicinal.cli import main
from vicinal.geometry.neighborhood import Neighborhood

CPU = torch.device("cpu")
TINY = Case("tiny", (16,), Neighborhood.of(1, 5), 1, 8, dtype=torch.float16, passes=("forward", "forward+backward"))


@pytest.fixture
def few(monkeypatch):
    """Three tiny problems instead of the list."""
    cases = tuple(replace(TINY, name=f"tiny {i}", lengths=(16 + i,)) for i in range(3))
    monkeypatch.setattr(paper, "problems", lambda rank, dtype: tuple(replace(c, dtype=dtype) for c in cases))
    return cases


def measure_problem(case):
    return prepare(case, False, CPU).time(CPU)


def test_a_problem_is_measured_on_every_system():
    line = measure_problem(TINY)
    assert line["error"] is None
    assert line["fused"] == "numba"
    assert line["tilings"]["forward"].startswith("numba ")
    assert min(line["waste"].values()) >= 1
    assert set(line["systems"]) == {PLAIN, FUSED, "SDPA (self attention)"}
    for result in line["systems"].values():
        assert result["status"] == "ok"
        assert set(result["eager"]) == {"forward", "forward+backward"}
        assert min(result["eager"].values()) > 0
        assert set(result["errors"]) == {"output", "dq", "dk", "dv"}
    assert {"expected values", FUSED, "timing"} <= set(line["spent"])
    json.dumps(line)


def test_on_a_gpu_the_papers_systems_are_there():
    names = [s.name for s in systems(torch.device("cuda"), compiled=True)]
    assert names[:3] == [NAIVE, GEMM, FUSED]
    assert {"SDPA flash", "SDPA efficient", "SDPA cuDNN", "FlexAttention"} <= {n.split(" (")[0] for n in names}
    assert len(systems(torch.device("cuda"))) == len(names) - 2


def broken(attend) -> System:
    return System("broken", "neighborhood", "heads-last", lambda problem: None, lambda problem: attend)


@pytest.mark.parametrize(
    ("attend", "status"),
    [
        (lambda q, k, v: q + k + v, "wrong"),
        (lambda q, k, v: (q + k + v) * torch.nan, "wrong"),
        (lambda q, k, v: q @ v, "failed"),
    ],
)
def test_what_is_wrong_or_fails_is_not_timed_and_does_not_stop_the_others(monkeypatch, attend, status):
    monkeypatch.setattr(paper_measure, "systems", lambda device, compiled: [broken(attend), *systems(device)])
    line = measure_problem(TINY)
    assert line["systems"]["broken"]["status"] == status
    assert line["systems"]["broken"]["reason"]
    assert line["systems"]["broken"]["eager"] == {}
    assert line["systems"][FUSED]["status"] == "ok"


def test_a_run_goes_on_where_it_was_interrupted(few, tmp_path):
    file = tmp_path / "results.jsonl"
    sweep = Sweep(file, CPU, ranks=(1,), sample=2, command="a command")
    assert run(sweep).measured == 2
    assert [line["name"] for line in read(file)] == [case.name for case in sweep.cases()]
    text = file.read_text()
    file.write_text(text + '{"kind": "problem", "name": "cut o')  # an interruption in the middle of a line
    seen = []
    outcome = run(replace(sweep, sample=3), lambda done, total, what: seen.append((done, total)))
    assert (outcome.measured, outcome.present, outcome.complete) == (1, 2, True)
    assert len(read(file)) == 3
    assert file.read_text().startswith(text)
    assert seen == [(2, 3), (2, 3), (3, 3)]
    assert [h["command"] for h in headers(file)] == ["a command"] * 2
    assert {"device", "cpu"} <= set(headers(file)[0]["machine"])
    assert [end["problems"] for end in ends(file)] == [2, 1]


def test_time_limit_of_a_run(few, tmp_path):
    outcome = run(Sweep(tmp_path / "r.jsonl", CPU, ranks=(1,), seconds=0.0))
    assert (outcome.measured, outcome.complete) == (0, False)


def test_a_process_that_dies_or_hangs_is_recorded_and_replaced():
    another = replace(TINY, name="another")
    with Workers(CPU, 2) as workers:
        assert [line["error"] for line in workers.measure([(TINY, False), (another, False)], 60.0)] == [None, None]
        first = workers.each[0].process
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        dead, alive = workers.measure([(TINY, False), (another, False)], 60.0)
        assert "died" in dead["error"]
        assert (alive["name"], alive["error"]) == ("another", None)
        (late,) = workers.measure([(TINY, False)], 1e-6)
        assert late["error"].startswith("took longer")
        (line,) = workers.measure([(another, False)], 60.0)
        assert (line["name"], line["error"]) == ("another", None)


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("an illegal memory access"), False),
    ],
)
def test_too_little_memory_for_a_system_is_noticed(monkeypatch, error, short):
    def attend(query, key, value):
        raise error

    monkeypatch.setattr(paper_measure, "systems", lambda device, compiled: [broken(attend), *systems(device)])
    ready = prepare(TINY, False, CPU)
    assert ready.line["systems"]["broken"]["status"] == "failed"
    assert ready.short == short


class Process:
    """In a worker's place: what it is asked, in order; `short` says how often memory is short for its problem."""

    def __init__(self, name, short, asked):
        self.name, self.short, self.asked = name, short, asked

    def attempt(self, line, what, *arguments):
        self.asked.append((self.name, what))
        self.what = what

    def answer(self, line, seconds):
        if self.what == "prepare":
            self.short -= 1
            return self.short >= 0
        return {"seconds": 1.0}, True

    def give_back(self, seconds):
        self.asked.append((self.name, "give back"))


@pytest.mark.parametrize("times", [1, 2])
def test_where_memory_is_short_all_give_theirs_back_and_the_problem_is_run_alone_once_more(times):
    asked = []
    workers = Workers(CPU, 2)
    workers.each = [Process("a", times, asked), Process("b", 0, asked)]
    lines = workers.measure([(TINY, False), (replace(TINY, name="another"), False)], 1.0)
    assert asked[:3] == [("a", "prepare"), ("b", "prepare"), ("b", "time")]
    assert asked[3:] == [("a", "give back"), ("b", "give back"), ("a", "prepare"), ("a", "time")]
    assert [(line["name"], line["seconds"]) for line in lines] == [("tiny", 1.0), ("another", 1.0)]


def test_a_process_that_gave_its_memory_back_goes_on_and_ends_by_itself():
    with Workers(CPU, 1) as workers:
        begun = workers.begin([(TINY, False)])
        begun[0].wait(60.0)
        workers.each[0].give_back(60.0)
        begun[0].prepare()
        (line,) = workers.finish(begun, 60.0)
        assert line["systems"][FUSED]["status"] == "ok"
        process = workers.each[0].process
    assert process.exitcode == 0


def test_problems_with_an_error_are_retried_only_when_asked(few, tmp_path):
    file = tmp_path / "results.jsonl"
    sweep = Sweep(file, CPU, ranks=(1,), sample=1)
    case = sweep.cases()[0]
    file.write_text(json.dumps({**empty_line(case, case.problem("cpu")), "error": "was broken"}) + "\n")
    assert run(sweep).present == 1
    assert run(replace(sweep, retry=True)).measured == 1
    assert [line["error"] for line in read(file)] == [None]


def test_dimensions_take_turns(tmp_path):
    sweep = Sweep(tmp_path / "r.jsonl", CPU, sample=2, dtypes=(torch.float16, torch.float32), compiled=1)
    cases = sweep.cases()
    assert [len(case.lengths) for case in cases] == [1, 2, 3] * 4
    assert [case.dtype for case in cases] == ([torch.float16] * 3 + [torch.float32] * 3) * 2
    assert all(case in problems(len(case.lengths), case.dtype) for case in cases)
    assert sweep.groups() == [[case] for case in cases[:3]]


def test_other_dtypes_may_have_fewer_problems_spread_over_the_run(tmp_path):
    sweep = Sweep(tmp_path / "r", CPU, (1,), (torch.float16, torch.float32), sample=10, sample_others=2)
    dtypes = [case.dtype for case in sweep.cases()]
    assert [i for i, dtype in enumerate(dtypes) if dtype == torch.float32] == [3, 9]
    assert len(dtypes) == 12


def test_problems_under_compile_have_processes_of_their_own(few, tmp_path, monkeypatch):
    """One for each group, which takes its problems in turn once all others are done; more are not begun when late."""
    seen = []
    groups = [[few[0]], [few[1], replace(few[1], name="on the same tensors")]]
    begin = Workers.begin
    monkeypatch.setattr(Workers, "begin", lambda self, batch: seen.append(batch) or begin(self, batch))
    monkeypatch.setattr(Workers, "finish", lambda self, begun, seconds: [{**each.line, "error": "x"} for each in begun])
    monkeypatch.setattr(Sweep, "groups", lambda self: groups)
    sweep = Sweep(tmp_path / "r.jsonl", CPU, ranks=(1,), sample=3, compiled=3)
    assert run(sweep).failed == 4
    assert seen == [[(few[1], True), (few[0], True)], [(few[2], False)], [(groups[1][1], True)]]
    assert [line["name"] for line in read(sweep.results)] == [few[2].name, few[1].name, few[0].name, groups[1][1].name]
    assert run(sweep).present == 4

    hurried = replace(sweep, results=tmp_path / "hurried.jsonl", seconds=0.0)
    outcome = run(hurried)
    assert (outcome.failed, outcome.complete) == (2, False)


def test_the_command_runs_and_reports(few, tmp_path, capsys):
    file, tables = tmp_path / "r.jsonl", tmp_path / "tables.md"
    arguments = ["bench", "paper", "--results", str(file), "--rank", "1", "--device", "cpu", "--tables", str(tables)]
    assert main([*arguments, "--sample", "1"]) == 0
    assert "1 problems measured" in capsys.readouterr().out
    assert "Table 1" in tables.read_text()
    assert main([*arguments, "--report-only"]) == 0
    assert main(["bench", "paper", "--results", str(file), "--dtype", "int8"]) == 2
    assert "--dtype" in capsys.readouterr().err


def test_what_is_compiled_is_kept_for_tensors_of_the_same_shapes(monkeypatch):
    resets = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(1))
    window = replace(TINY, neighborhood=Neighborhood.of(1, 3))
    longer = replace(TINY, lengths=(32,))
    for case, expected in [(longer, 1), (TINY, 2), (window, 2), (longer, 3)]:
        compiled_for(case.problem(CPU), lambda x: x)
        assert len(resets) == expected
