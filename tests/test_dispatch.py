"""Choosing a backend."""

import random
import warnings

import pytest
import torch

from vicinal import Neighborhood, dispatch
from vicinal.backends.gpu.hardware import standing_for
from vicinal.bench.planning import CARD, PLANNERS, random_problem
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
    monkeypatch.setattr(dispatch, "_warned", set())
    with pytest.warns(UserWarning, match="plain torch operations, slowly.*numba': it needs numba") as told:
        chosen = dispatch.plan.__wrapped__(problem)
    assert told[0].filename == __file__  # the caller's line
    assert chosen.backend.name == chosen.gradients.name == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch.plan.__wrapped__(problem)  # told once


def test_plans_are_made_once(problem):
    again = Problem.of(Inputs(*(torch.ones(1, 8, 2, 4) for _ in range(3))), [Neighborhood.of(1, 3)], 0.5)
    assert dispatch.plan(again) is dispatch.plan(problem)


def test_named_backend_is_taken(problem):
    assert dispatch.plan(problem, "torch").backend.name == "torch"


def test_named_backend_that_cannot_never_falls_back(problem):
    with pytest.raises(ValueError, match="backend 'hopper' cannot"):
        dispatch.plan(problem, "hopper")


def test_unknown_backend(problem):
    with pytest.raises(ValueError, match="backend must be one of 'hopper', .* got 'nope'"):
        dispatch.plan(problem, "nope")


def test_no_backend_at_all():
    tensors = Inputs(*(torch.zeros(1, 8, 2, 4, dtype=torch.complex64) for _ in range(3)))
    nowhere = Problem.of(tensors, [Neighborhood.of(1, 3)], 0.5)
    with pytest.raises(ValueError, match="no backend can run this problem: hopper: .*; triton: .*; numba: .*; torch: "):
        dispatch.plan(nowhere)


def test_explain_answers_for_every_backend(problem):
    verdicts = {v.name: v for v in dispatch.explain(problem)}
    assert list(verdicts) == list(dispatch.BACKENDS)
    assert verdicts["torch"].reason is None
    assert verdicts["torch"].configs["forward"]
    assert verdicts["hopper"].reason
    assert not verdicts["hopper"].configs


TORCH = dispatch.backend("torch")


class Estimated:
    """The torch backend with estimates of its own."""

    def __init__(self, name, forward, backward):
        self.name, self.estimates = name, {"forward": forward, "backward": backward}

    def best(self, problem, direction):
        return TORCH.best(problem, direction)[0], self.estimates[direction]

    def __getattr__(self, attribute):
        return getattr(TORCH, attribute)


@pytest.mark.parametrize(
    ("first", "second", "third", "expected"),
    [
        ((1.0, 1.0), (0.96, 0.94), (None, None), ("first", "second")),  # a little faster is not enough
        ((1.0, 1.0), (0.9, 2.0), (0.8, None), ("third", "first")),
        ((None, 1.0), (0.1, None), (0.1, 0.5), ("first", "third")),  # without an estimate, by preference
    ],
)
def test_each_pass_is_given_to_the_backend_estimated_to_be_clearly_faster(
    problem, monkeypatch, first, second, third, expected
):
    names = ("first", "second", "third")
    known = {name: Estimated(name, *times) for name, times in zip(names, (first, second, third), strict=True)}
    monkeypatch.setattr(dispatch, "AUTOMATIC", names)
    monkeypatch.setattr(dispatch, "backend", known.get)
    chosen = dispatch.plan.__wrapped__(problem)
    assert (chosen.backend.name, chosen.gradients.name) == expected
    assert dispatch.plan.__wrapped__(problem, "first").backend.name == "first"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["triton", "hopper"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_best_guess_comes_with_its_seconds(direction, name, seed):
    with standing_for(CARD):
        given = random_problem(random.Random(seed), PLANNERS["hopper"].dtypes)
        backend = dispatch.backend(name)
        config, seconds = backend.best(given, direction)
        assert seconds == backend.seconds(given, direction, config)
        assert config == backend.configs(given, direction)[0]
