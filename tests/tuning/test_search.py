import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vicinal
from vicinal import Neighborhood, dispatch, na2d
from vicinal.backends.protocol import settings
from vicinal.bench.cases import Case
from vicinal.bench.measure import Timing
from vicinal.machine import device_name
from vicinal.tuning import cache, search
from vicinal.tuning.search import Task, candidates
from vicinal.tuning.table import Entry, ProblemClass, Timed

DEVICE = device_name(torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def clock(monkeypatch):
    """Candidates take so many seconds; the last is the fastest."""
    timed = []

    def time_cold(calls, device, effort):
        for call in calls.values():
            timed.append(call.args[:2])
        return {i: Timing(1.0 / (i + 1), 0.0, 0.0, 3, 1) for i in calls}

    monkeypatch.setattr(search, "time_cold", time_cold)
    return timed


def tensors(*lengths, heads=2):
    return [torch.randn(1, *lengths, heads, 8, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("thorough", [False, True])
def test_the_fastest_candidate_is_planned_and_kept(problem, clock, thorough):
    entries = vicinal.tune(problem, thorough=thorough)
    listed = dispatch.backend("numba").configs(problem, "forward")
    last = listed[-1] if thorough else listed[search.SHORT - 1]
    assert len(listed) > search.SHORT
    assert [e.direction for e in entries] == ["forward", "backward"]
    assert dispatch.plan(problem).forward == dispatch.plan(problem).backward == last
    cache.reload()  # as in another process
    assert dispatch.plan(problem).forward == last
    assert [t.seconds for t in entries[0].timings] == sorted(t.seconds for t in entries[0].timings)


def test_real_timings(problem):
    (forward, backward) = vicinal.tune(problem)
    for entry in (forward, backward):
        assert len(entry.timings) == search.SHORT
        assert all(0 < t.seconds < 10 for t in entry.timings)
    assert settings(dispatch.plan(problem).forward) == forward.timings[0].config
    assert cache.read(DEVICE).entries == {e.key: e for e in (forward, backward)}


def test_with_measures_at_its_end_what_the_code_met(clock):
    na2d(*tensors(9, 12), 3)  # met before: is met again
    with vicinal.tune() as found:
        na2d(*tensors(9, 12), 3)
        output = na2d(*tensors(9, 12), 3)
        output.sum().backward()
        with torch.no_grad():
            na2d(*tensors(9, 12, heads=8), 3)
        assert not clock
    na2d(*tensors(9, 40), 3)
    assert [(e.direction, e.problems.queries) for e in found] == [("forward", 64), ("backward", 64), ("forward", 256)]
    assert dispatch.chosen_by == []


def test_compiled_code_is_met_when_it_runs(clock):
    compiled = torch.compile(lambda *t: na2d(*t, 3), backend="aot_eager", fullgraph=True)
    with vicinal.tune() as found:
        compiled(*tensors(9, 12)).sum().backward()
    assert [e.direction for e in found] == ["forward", "backward"]


def test_what_fails_within_is_raised_and_nothing_timed(clock):
    with pytest.raises(ValueError, match="kernel_size"), vicinal.tune():
        na2d(na2d(*tensors(9, 12), 3), *tensors(9, 12)[1:], 13)
    assert not clock
    assert dispatch.chosen_by == []


def test_what_is_known_is_not_measured_again(problem, clock):
    vicinal.tune(problem)
    clock.clear()
    assert vicinal.tune(problem) == []
    assert not clock
    assert len(vicinal.tune(problem, thorough=True)) == 2  # more candidates than are known


@pytest.mark.parametrize("directions", [("forward",), ("backward",)])
def test_only_the_passes_asked_for(problem, clock, directions):
    assert tuple(e.direction for e in vicinal.tune([problem], directions=directions)) == directions


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_candidate_with_another_result_is_left_out(problem, clock, monkeypatch, direction):
    numba = dispatch.backend("numba")
    (_, first), (_, wrong), *_ = candidates(Task(problem, direction))
    run = getattr(type(numba), direction)

    def broken(self, problem, config, *rest):
        results = run(self, problem, config, *rest)
        return type(results)(*(t if t is None else t + 1 for t in results)) if config == wrong else results

    def simple(self, problem, config, *rest):
        output, lse = run(self, problem, config, *rest)
        return (output, lse + 1) if config == wrong else (output, lse)

    monkeypatch.setattr(type(numba), direction, simple if direction == "forward" else broken)
    with pytest.warns(UserWarning, match="left out, its result differs by"):
        (entry,) = vicinal.tune(problem, directions=(direction,))
    configs = [t.config for t in entry.timings]
    assert settings(wrong) not in configs
    assert settings(first) in configs


def test_a_candidate_that_fails_is_left_out(problem, clock, monkeypatch):
    numba = dispatch.backend("numba")
    _, (_, bad), *_ = candidates(Task(problem, "forward"))
    run = type(numba).forward

    def forward(self, problem, config, inputs):
        if config == bad:
            raise RuntimeError("out of registers")
        return run(self, problem, config, inputs)

    monkeypatch.setattr(type(numba), "forward", forward)
    with pytest.warns(UserWarning, match="fails with RuntimeError: out of registers"):
        (entry,) = vicinal.tune(problem, directions=("forward",))
    assert len(entry.timings) == search.SHORT - 1


def test_interrupted_it_keeps_what_it_has(problem, clock, monkeypatch):
    told = search.time_cold

    def interrupted(calls, device, effort):
        if len(clock) > search.SHORT:  # the first pass was timed, roughly and then with effort
            raise KeyboardInterrupt
        return told(calls, device, effort)

    monkeypatch.setattr(search, "time_cold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vicinal.tune(problem)
    assert [e.direction for e in cache.read(DEVICE).entries.values()] == ["forward"]
    assert dispatch.plan(problem).forward == candidates(Task(problem, "forward"))[-1][1]


@pytest.mark.parametrize("warn_only", [False, True])
def test_with_deterministic_algorithms_tables_are_read_and_nothing_is_timed(problem, clock, warn_only):
    vicinal.tune(problem, directions=("forward",))
    chosen = dispatch.plan(problem).forward
    clock.clear()
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    cache.reload()
    with pytest.warns(UserWarning, match="nothing was timed: deterministic"):
        assert vicinal.tune(problem, thorough=True) == []
    assert not clock
    assert dispatch.plan(problem).forward == chosen


@pytest.mark.parametrize(
    ("name", "words"),
    [("torch.compiler.is_compiling", "tracing"), ("torch.cuda.is_current_stream_capturing", "CUDA graph")],
)
def test_nothing_is_timed_while_others_record(problem, clock, monkeypatch, name, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(search, "_own", lambda: torch.device("cpu"))
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(name, lambda: True)
    with pytest.warns(UserWarning, match=f"nothing was timed: .*{words}"):
        assert vicinal.tune(problem) == []
    assert not clock


def test_where_there_is_nothing_to_choose_nothing_is_timed(clock):
    problem = search_problem(lengths=(40,))
    assert len(dispatch.backend("numba").configs(problem, "forward")) == 1
    assert vicinal.tune(problem) == []


def search_problem(lengths, **fields):
    neighborhood = Neighborhood.of(len(lengths), 3).resolve(lengths)
    return Case("", lengths, neighborhood, 2, 8, **fields).problem("cpu")


@pytest.mark.parametrize("fields", [{"has_rpb": True}, {"additional": 3}, {"dtype": torch.float16}])
def test_every_feature_is_measured(problem, fields):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(vicinal.tune(replace(problem, **fields))) == 2


@given(choice=st.integers(0, 7))
def test_the_same_table_gives_the_same_bits(choice):
    problem = search_problem((9, 12))
    listed = dispatch.backend("numba").configs(problem, "forward")
    entry = {"backend": "numba", "config": settings(listed[choice % len(listed)]), "seconds": 1.0}
    q, k, v = (torch.randn(1, 9, 12, 2, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    results = []
    for _ in range(2):
        publish(problem, entry)
        results.append(na2d(q, k, v, 3))
        na2d(q[:, :7], k[:, :7], v[:, :7], 3)  # what is called before changes nothing
    assert torch.equal(*results)
    cache.reload()


def publish(problem, timed):
    timings = (Timed(**timed),)
    cache.publish(problem.device, [Entry(ProblemClass.of(problem), "forward", cache.versions(), "a test", timings)])


def test_the_extra_is_asked_for_before_the_code_runs(monkeypatch):
    monkeypatch.setattr("vicinal.extras.find_spec", lambda module: None)
    with pytest.raises(ImportError, match="tuning needs"):
        vicinal.tune()


def test_candidates_that_are_far_behind_are_timed_no_more(problem, monkeypatch):
    efforts = []

    def time_cold(calls, device, effort):
        efforts.append((list(calls), effort))
        return {i: Timing(1.0 if i in (1, 3) else 2.0, 0.0, 0.0, effort.samples, 1) for i in calls}

    monkeypatch.setattr(search, "time_cold", time_cold)
    (entry,) = vicinal.tune(problem, directions=("forward",))
    assert efforts == [([0, 1, 2, 3], search.ROUGH), ([1, 3], search.EFFORT)]
    assert [t.seconds for t in entry.timings] == [1.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("thorough", [False, True])
def test_what_is_estimated_to_take_far_longer_is_not_measured(problem, monkeypatch, thorough):
    numba = dispatch.backend("numba")
    first, *_, last = numba.configs(problem, "forward")
    monkeypatch.setattr(type(numba), "configs", lambda self, problem, direction: [first, last])
    monkeypatch.setattr(
        type(numba), "seconds", lambda self, problem, direction, config: 1.0 if config == first else 2.1
    )
    own = [config for _, config in candidates(Task(problem, "forward"), thorough)]
    assert own == ([first, last] if thorough else [first])
