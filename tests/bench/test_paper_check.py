"""Sampled rows are the oracle's; a wrong result is caught, a right one passes."""

import pytest
import torch

from vicinal.bench.cases import Case, random_inputs
from vicinal.bench.paper_check import expected
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs
from vicinal.reference import reference

CASES = {
    "1-D": ((40,), {"kernel_size": 7, "dilation": 3}),
    "2-D": ((9, 8), {"kernel_size": (3, 5), "dilation": (2, 1)}),
    "3-D causal strided": ((4, 5, 6), {"kernel_size": 3, "stride": (1, 2, 1), "is_causal": (True, False, False)}),
    "self attention": ((6, 6), {"kernel_size": None}),
}


def solved(name: str, dtype: torch.dtype = torch.float32):
    lengths, geometry = CASES[name]
    neighborhood = Neighborhood.of(len(lengths), **geometry).resolve(lengths)
    problem = Case(name, lengths, neighborhood, 2, 8, 2, dtype=dtype).problem("cpu")
    inputs = random_inputs(problem)
    grad = torch.randn(inputs.query.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    leaves = [t.double().requires_grad_() for t in inputs[:3]]
    output, _ = reference(Inputs(*leaves), problem.neighborhoods, problem.scale)
    grads = torch.autograd.grad(output, leaves, grad.double())
    return expected(problem, inputs, grad), dict(zip(("output", "dq", "dk", "dv"), (output.detach(), *grads)))


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_passes(name):
    truth, results = solved(name)
    errors = truth.errors(results)
    checked = {"output", "dq"} if name == "self attention" else set(results)
    assert set(errors) == checked
    assert max(errors.values()) < 1e-12
    assert truth.faults(errors, False, torch.float32) == []


@pytest.mark.parametrize("name", CASES)
def test_everything_a_little_off_is_caught(name):
    truth, results = solved(name)
    errors = truth.errors({n: t * 1.001 for n, t in results.items()})
    assert len(truth.faults(errors, False, torch.float32)) == len(errors)


def test_one_value_that_is_not_finite_is_caught():
    truth, results = solved("1-D")
    results["output"][1, 3, 1, 2] = torch.nan
    assert "output" in truth.faults(truth.errors(results), False, torch.float32)[0]


def test_stored_weights_are_allowed_their_rounding():
    truth, results = solved("2-D", torch.float16)
    errors = truth.errors({"output": results["output"] * (1 + 2 * torch.finfo(torch.float16).eps)})
    assert truth.faults(errors, False, torch.float16)
    assert not truth.faults(errors, True, torch.float16)
