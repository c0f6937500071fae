"""Sampled errors are small for the oracle's results, and see a single wrong token."""

from __future__ import annotations

import torch

from closeness import gradients
from sampled import sampled_errors
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream
from vicinal.reference import reference


def test_the_oracle_has_no_error_and_a_wrong_token_has():
    torch.manual_seed(0)
    shapes = ((2, 7, 9, 4, 8), (2, 7, 9, 2, 8), (2, 7, 9, 2, 8))
    inputs = Inputs(*(torch.randn(shape, dtype=torch.float64) for shape in shapes))
    own = [Neighborhood.of(2, (3, 2), (2, 1), (2, 3), (False, True)).resolve((7, 9))]
    problem = Problem.of(inputs, own, 0.3)
    grad = torch.randn(2, 7, 9, 4, 8, dtype=torch.float64)
    out, lse, *grads = gradients(lambda given: reference(given, own, 0.3), inputs, grad, None)
    errors = sampled_errors(problem, inputs, Upstream(out, lse, grad), Inputs(*grads))
    assert errors.keys() == {"output", "log-sum-exp", "query", "key", "value"}
    assert max(errors.values()) < 1e-5
    for name, tensor in zip(("query", "key", "value"), grads):
        tensor[-1, -1, -1, 0] += 1.0
        assert sampled_errors(problem, inputs, Upstream(out, lse, grad), Inputs(*grads))[name] > 1e-2
