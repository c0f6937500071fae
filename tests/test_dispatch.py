"""Choosing a backend."""

import pytest
import torch

from vicinal import Neighborhood, dispatch
from vicinal.problem import Inputs, Problem


@pytest.fixture
def problem():
    return Problem.of(Inputs(*(torch.zeros(1, 8, 2, 4) for _ in range(3))), [Neighborhood.of(1, 3)], 0.5)


def test_cpu_tensors_go_to_the_compiled_kernels(problem):
    chosen = dispatch.plan(problem)
    assert chosen.backend.name == "numba"
    assert chosen.forward in chosen.backend.configs(problem, "forward")
    assert chosen.backward in chosen.backend.configs(problem, "backward")


def test_without_numba_cpu_tensors_go_to_torch_s_operations(problem, monkeypatch):
    monkeypatch.setattr("vicinal.backends.numba.missing", lambda: "it needs numba")
    chosen = dispatch.plan.__wrapped__(problem)
    assert chosen.backend.name == chosen.gradients.name == "cpu"


def test_plans_are_made_once(problem):
    again = Problem.of(Inputs(*(torch.ones(1, 8, 2, 4) for _ in range(3))), [Neighborhood.of(1, 3)], 0.5)
    assert dispatch.plan(again) is dispatch.plan(problem)


def test_named_backend_is_taken(problem):
    assert dispatch.plan(problem, "cpu").backend.name == "cpu"


def test_named_backend_that_cannot_never_falls_back(problem):
    with pytest.raises(ValueError, match="backend 'hopper' cannot"):
        dispatch.plan(problem, "hopper")


def test_unknown_backend(problem):
    with pytest.raises(ValueError, match="backend must be one of 'hopper', .* got 'nope'"):
        dispatch.plan(problem, "nope")


def test_no_backend_at_all():
    tensors = Inputs(*(torch.zeros(1, 8, 2, 4, device="meta") for _ in range(3)))
    nowhere = Problem.of(tensors, [Neighborhood.of(1, 3)], 0.5)
    with pytest.raises(ValueError, match="no backend can run this problem: hopper: .*; triton: .*; numba: .*; cpu: "):
        dispatch.plan(nowhere)


def test_explain_answers_for_every_backend(problem):
    verdicts = {v.name: v for v in dispatch.explain(problem)}
    assert list(verdicts) == list(dispatch.BACKENDS)
    assert verdicts["cpu"].reason is None
    assert verdicts["cpu"].configs["forward"]
    assert verdicts["hopper"].reason
    assert not verdicts["hopper"].configs


CPU = dispatch.backend("cpu")


class Reluctant:
    """The CPU backend, which leaves some passes to another."""

    def __init__(self, name, *directions):
        self.name, self.directions = name, directions

    def declines(self, problem, direction):
        return "it is slower" if direction in self.directions else None

    def __getattr__(self, attribute):
        return getattr(CPU, attribute)


@pytest.mark.parametrize(
    ("declined", "expected"),
    [((), ("first", "first")), (("backward",), ("first", "cpu")), (("forward", "backward"), ("cpu", "cpu"))],
)
def test_a_backend_may_leave_a_pass_to_the_next(problem, monkeypatch, declined, expected):
    first = Reluctant("first", *declined)
    real = dispatch.backend
    monkeypatch.setattr(dispatch, "AUTOMATIC", ("first", "cpu"))
    monkeypatch.setattr(dispatch, "backend", lambda name: first if name == "first" else real(name))
    chosen = dispatch.plan.__wrapped__(problem)
    assert (chosen.backend.name, chosen.gradients.name) == expected


def test_what_all_decline_runs_on_the_first(problem, monkeypatch):
    only = Reluctant("cpu", "forward", "backward")
    monkeypatch.setattr(dispatch, "AUTOMATIC", ("cpu",))
    monkeypatch.setattr(dispatch, "backend", lambda name: only)
    assert dispatch.plan.__wrapped__(problem).backend is only


def test_a_named_backend_runs_what_it_would_decline(problem, monkeypatch):
    monkeypatch.setattr(dispatch, "backend", lambda name: Reluctant("cpu", "forward"))
    assert dispatch.plan.__wrapped__(problem, "cpu").backend.name == "cpu"
