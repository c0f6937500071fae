"""Heads whose dilations differ are run in parts, whose results together are the whole's."""

from __future__ import annotations

import pytest
import torch

from vicinal.backends.hopper.runs import backward, forward, likeness, runs_of
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream
from vicinal.reference import reference

LENGTHS = (6, 8)
# dilations of query heads, key heads -> heads of each run
CASES = {
    "alike": ((2, 2, 2, 2), 2, [(0, 4)]),
    "halves": ((1, 1, 2, 2), 4, [(0, 2), (2, 4)]),
    "halves, grouped": ((1, 1, 2, 2), 2, [(0, 2), (2, 4)]),
    "in turns": ((1, 2, 1, 2), 4, [(0, 1), (1, 2), (2, 3), (3, 4)]),
    "within a group": ((1, 1, 2, 2), 1, [(0, 2), (2, 4)]),
    "across groups": ((1, 2, 2, 2, 2, 2, 3, 3), 2, [(0, 1), (1, 4), (4, 6), (6, 8)]),
    "whole groups between": ((1, 2, 2, 2, 2, 1), 3, [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)]),
}


def problem_of(dilations, kv_heads) -> tuple[Problem, Inputs]:
    torch.manual_seed(0)
    heads = (len(dilations), kv_heads, kv_heads)
    inputs = Inputs(*(torch.randn(2, *LENGTHS, h, 8, dtype=torch.float64) for h in heads))
    more = (torch.randn(2, 5, kv_heads, 8, dtype=torch.float64) for _ in range(2))
    inputs = Inputs(*inputs[:3], *more)
    return Problem.of(inputs, [Neighborhood.of(2, 2, 1, d) for d in dilations], 0.4), inputs


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_runs_are_of_one_dilation_and_of_whole_groups_or_of_one(case):
    dilations, kv_heads, spans = case
    problem, _ = problem_of(dilations, kv_heads)
    runs = runs_of(problem)
    assert [run.heads for run in runs] == spans
    for run in runs:
        first, stop = run.heads
        assert run.problem.heads == stop - first
        assert run.problem.heads % run.problem.kv_heads == 0
        size = problem.group_size
        assert {h // size for h in range(first, stop)} == set(range(*run.kv_heads))
        assert len({n.dilation for n in run.problem.neighborhoods}) == 1
    assert likeness(problem).group_size == 1


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_together_they_are_the_whole(case):
    problem, inputs = problem_of(*case[:2])

    def of(part: Problem, own: Inputs):
        each = [n.resolve(LENGTHS) for n in part.neighborhoods]
        return reference(own, each, part.scale)

    def gradients(part: Problem, own: Inputs, above: Upstream) -> Inputs:
        leaves = Inputs(*(None if t is None else t.detach().requires_grad_() for t in own))
        results = of(part, leaves)
        return Inputs(*torch.autograd.grad(results, leaves[:5], (above.grad_output, above.grad_lse)))

    whole = of(problem, inputs)
    for ours, exact in zip(forward(problem, inputs, of), whole):
        torch.testing.assert_close(ours, exact)
    above = Upstream(*whole, torch.randn_like(whole[0]), torch.randn_like(whole[1]))
    want = gradients(problem, inputs, above)
    for ours, exact in zip(backward(problem, inputs, above, gradients)[:5], want[:5]):
        torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-5)  # what heads share is summed in float32
