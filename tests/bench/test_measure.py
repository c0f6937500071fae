import time

import pytest
import torch

from vicinal.bench.measure import Effort, measure, time_calls
from vicinal.bench.peers import System
from vicinal.problem import Inputs
from vicinal.reference import reference

QUICK = Effort(samples=3, seconds=0.01, sample_seconds=0.0)


def oracle(problem):
    def attend(query, key, value):
        output, _ = reference(Inputs(query, key, value), problem.neighborhoods, problem.scale)
        return output.to(query.dtype)

    return attend


def system(prepare, name="it", **options):
    return System(name, "neighborhood", "heads-last", options.pop("unsupported", lambda p: None), prepare, **options)


def run(case, *systems, effort=QUICK):
    return measure(case, list(systems), "cpu", effort)


def test_right_results_are_timed(small_case):
    forward, backward, both = run(small_case, system(oracle))
    for result in (forward, backward, both):
        assert result.status == "ok"
        assert 0 < result.eager.lower <= result.eager.median <= result.eager.upper
        assert result.kernel is None
        assert set(result.errors) == {"output", "dq", "dk", "dv"}
    problem = small_case.problem("cpu")
    assert forward.flops == problem.forward_flops
    assert both.flops == problem.forward_flops + problem.backward_flops


def test_wrong_output_is_never_timed(small_case):
    def prepare(problem):
        right = oracle(problem)
        return lambda *tensors: right(*tensors) * 1.001

    results = run(small_case, system(prepare, "wrong"), system(oracle, "right"))
    assert [(m.system, m.status, m.eager is None) for m in results] == [
        ("wrong", "wrong", True),
        ("right", "ok", False),
    ] * 3
    assert "output is off by 0.001" in results[0].reason


def test_wrong_gradient_is_never_timed(small_case):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    def prepare(problem):
        right = oracle(problem)
        return lambda q, k, v: right(Doubled.apply(q), k, v)

    forward, backward, both = run(small_case, system(prepare))
    assert forward.status == "ok"
    assert backward.status == both.status == "wrong"
    assert backward.eager is None
    assert backward.reason.startswith("dq is off")


def test_error_is_reported_and_others_go_on(small_case):
    def prepare(problem):
        raise RuntimeError("first line\nsecond line")

    results = run(small_case, system(prepare, "broken"), system(oracle, "right"))
    assert {m.status for m in results if m.system == "right"} == {"ok"}
    broken = [m for m in results if m.system == "broken"]
    assert {(m.status, m.reason) for m in broken} == {("failed", "RuntimeError: first line")}


def test_slow_preparation_is_cut_short(small_case):
    def prepare(problem):
        time.sleep(10)

    start = time.perf_counter()
    results = run(small_case, system(prepare), effort=Effort(samples=3, prepare_seconds=0.05))
    assert time.perf_counter() - start < 5
    assert {m.reason for m in results} == {"TimeoutError: took longer than 0.05 s to prepare"}


def test_unsupported_and_forward_only_are_skipped(small_case):
    refused = system(oracle, "refused", unsupported=lambda p: "no such device")
    forward_only = system(oracle, "forward only", no_backward=lambda p: "no backward")
    results = {(m.system, m.passed): m for m in run(small_case, refused, forward_only)}
    assert results["refused", "forward"].reason == "no such device"
    assert results["forward only", "forward"].status == "ok"
    assert results["forward only", "backward"].status == "skipped"
    assert results["forward only", "backward"].reason == "no backward"


def test_calls_are_taken_in_turns():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = time_calls(calls, "cpu", Effort(samples=4, sample_seconds=0.0))
    assert order[-8:] == ["a", "b"] * 4
    assert all(t.samples == 4 and t.calls == 1 for t in timings.values())


def test_times_are_per_call():
    calls = {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.1)}
    timings = time_calls(calls, "cpu", Effort(samples=3, seconds=1.0, sample_seconds=0.08))  # ample on a busy machine
    assert timings["short"].calls > timings["long"].calls == 1
    assert timings["long"].median >= 0.1
    assert 0.001 <= timings["short"].median < timings["long"].median


def test_sampling_stops_when_time_is_up():
    timings = time_calls({"it": lambda: time.sleep(0.01)}, "cpu", Effort(samples=50, seconds=0.02, sample_seconds=0.0))
    assert timings["it"].samples == 3


@pytest.mark.parametrize("passed", ["forward", "backward"])
def test_only_the_passes_of_the_case(small_case, passed):
    from dataclasses import replace

    (result,) = run(replace(small_case, passes=(passed,)), system(oracle))
    assert (result.passed, result.status) == (passed, "ok")


def test_missing_truth_is_a_failure_of_that_case_only(small_case, monkeypatch):
    def broken(*arguments):
        raise MemoryError("too large")

    monkeypatch.setattr("vicinal.bench.measure.truth", broken)
    results = run(small_case, system(oracle))
    assert {(m.status, m.reason) for m in results} == {("failed", "no expected values: MemoryError: too large")}


def test_pass_that_stops_working_is_reported(small_case):
    def prepare(problem):
        right, calls = oracle(problem), []

        def attend(*tensors):
            calls.append(tensors)
            if len(calls) > 2:  # the checks went well
                raise RuntimeError("out of memory")
            return right(*tensors)

        return attend

    forward, backward, both = run(small_case, system(prepare))
    assert (forward.status, forward.reason) == ("failed", "RuntimeError: out of memory")
    assert backward.status == "ok"
    assert both.status == "failed"
