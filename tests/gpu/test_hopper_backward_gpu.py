"""The `hopper` backend's backward, in two passes and in one, on a Hopper GPU: against the oracle and SDPA's error."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from closeness import gradients, gradients_of
from hopper_calls import BF16, CASES, ON_HOPPER, RANDOM, error, make, sdpa
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference

pytestmark = ON_HOPPER


def check_backward(case: tuple, with_lse: bool = True, one_pass: bool | None = None) -> None:
    from vicinal.backends.hopper import BACKEND

    problem, own, inputs = make(case)
    leaves = [t.double().requires_grad_() for t in inputs[:3]]
    want_out, want_lse = reference(Inputs(*leaves), own, problem.scale)
    grad = torch.randn_like(want_out).to(problem.dtype)
    grad_lse = torch.randn_like(want_lse).float()
    loss = (want_out * grad.double()).sum() + (want_lse * grad_lse.double()).sum() * with_lse
    want = torch.autograd.grad(loss, leaves)
    low = [t.detach().requires_grad_() for t in inputs[:3]]
    low_grads = torch.autograd.grad(sdpa(problem, own, *low), low, grad)
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    every = BACKEND.configs(problem, "backward")
    for config in [c for c in every if one_pass is None or c.one_pass == one_pass][:1]:
        got = gradients_of(BACKEND, problem, config, inputs, out, lse, grad, grad_lse if with_lse else None)
        for field, ours, exact, theirs in zip(("query", "key", "value"), got, want, low_grads):
            limit = 1.3 * (1e-2 if with_lse else error(theirs, exact)) + 3e-3  # SDPA has no gradient of the lse
            assert error(ours, exact) <= limit, (config, field, error(ours, exact), limit)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_backward(case):
    check_backward(case, with_lse=False)


@pytest.mark.parametrize("case", RANDOM.values(), ids=RANDOM)
def test_backward_random(case):
    check_backward(case, with_lse=False)


@pytest.mark.parametrize("case", ["1d", "2d-ragged", "2d-gqa", "3d-dilated", "2d-dilated-ragged"])
def test_backward_of_the_lse(case):
    check_backward(CASES[case])


ONE_PASS = {name: case for name, case in {**CASES, **RANDOM}.items() if case[4] == case[5] and case[4] in (64, 128)}


@pytest.mark.parametrize("case", ONE_PASS.values(), ids=ONE_PASS)
def test_backward_in_one_pass(case, any_order):
    check_backward(case, with_lse=False, one_pass=True)


@pytest.mark.parametrize("case", ["1d", "2d-ragged", "2d-gqa", "3d-dilated", "2d-dilated-ragged"])
def test_backward_of_the_lse_in_one_pass(case, any_order):
    check_backward(CASES[case], one_pass=True)


def test_one_pass_in_a_graph(any_order):
    """Its scratch is cleared in the graph too: a second replay adds to nothing of the first."""
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make((1, (64, 64), 4, 2, 128, 128, BF16, {"kernel_size": 21}))
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    grad = torch.randn_like(out)
    config = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass)
    eager = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
    for _ in range(3):
        graph.replay()
        torch.cuda.synchronize()
        assert error(grads.query, eager.query) < 1e-3
        assert torch.equal(grads.key, eager.key)
        assert torch.equal(grads.value, eager.value)


def test_backward_repeats():
    """The same bits every run where algorithms are to be deterministic, also with a one-pass tiling."""
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make((1, (64, 64), 4, 2, 128, 128, BF16, {"kernel_size": 21}))
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    grad = torch.randn_like(out)
    config = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass)
    first = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
    for _ in range(10):
        again = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
        for a, b in zip(first[:3], again[:3]):
            assert torch.equal(a, b)


@pytest.mark.parametrize("one_pass", [False, True])
def test_backward_per_head(one_pass, any_order):
    from vicinal.backends.hopper import BACKEND

    _, _, inputs = make((1, (30, 34), 4, 2, 64, 64, BF16, {"kernel_size": 5}))
    own = [Neighborhood.of(2, k, 1, 1, k == 9).resolve((30, 34)) for k in (3, 9, 30, 12)]
    problem = Problem.of(inputs, own, 0.125)
    leaves = [t.double().requires_grad_() for t in inputs[:3]]
    want_out, _ = reference(Inputs(*leaves), own, 0.125)
    grad = torch.randn_like(want_out).to(BF16)
    want = torch.autograd.grad(want_out, leaves, grad.double())
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    config = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass == one_pass)
    got = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
    for ours, exact in zip(got, want):
        assert error(ours, exact) < 1e-2


@pytest.mark.parametrize("needed", list(product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("name", ["2d-gqa", "3d-dilated-ragged", "dim-96", "dim-192-128"])
def test_only_wanted_gradients(name, needed):
    """The same bits as when all are wanted; nothing for the others."""
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make(CASES[name])
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    upstream = Upstream(out, lse, torch.randn_like(out), None)
    config = BACKEND.configs(problem, "backward")[0]
    every = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    some = BACKEND.backward(problem, config, inputs, upstream, Wanted(*needed, False, False, False))
    for gradient, whole, is_wanted in zip(some[:3], every, needed):
        assert (gradient is not None) == is_wanted
        assert gradient is None or torch.equal(gradient, whole)


@pytest.mark.parametrize("one_pass", [False, True])
def test_rows_without_a_finite_score(one_pass, any_order):
    """Scores that overflow to minus infinity: output 0, log-sum-exp minus infinity, and such rows have no gradients."""
    from vicinal.backends.hopper import BACKEND

    problem, own, inputs = make(CASES["2d-gqa"])
    lost = torch.zeros(problem.lengths, dtype=torch.bool, device="cuda")
    lost[7:9, 11:30] = True
    query = (inputs.query * 1e-30).masked_fill(lost[..., None, None], -1e30)
    inputs = inputs._replace(query=query, key=inputs.key.abs() * 1e30)
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    assert (out[:, lost] == 0).all()
    assert (lse[:, lost] == float("-inf")).all()
    grad = torch.randn_like(out)
    config = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass == one_pass)
    grads = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
    assert (grads.query[:, lost] == 0).all()
    silent = grad.masked_fill(lost[..., None, None], 0.0)  # the oracle's scores, in float64, are finite
    double = Inputs(*(t.double() for t in inputs[:3]))
    want = gradients(lambda given: reference(given, own, problem.scale), double, silent.double(), None)
    for ours, exact in zip((out, lse, grads.query), (want[0], want[1], want[2])):
        assert error(ours[:, ~lost], exact[:, ~lost]) < 1e-2
    for ours, exact in zip(grads[1:3], want[3:5]):
        assert error(ours, exact) < 1e-2
