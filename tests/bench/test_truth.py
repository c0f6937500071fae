from dataclasses import replace

import pytest
import torch

from vicinal.bench import truth as module
from vicinal.bench.cases import Case, random_inputs
from vicinal.bench.truth import truth
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs
from vicinal.reference import reference


def results_of(problem, inputs, grad, dtype=torch.float32):
    """Output and gradients by the oracle, rounded to `dtype`."""
    leaves = [t.detach().double().requires_grad_() for t in inputs[:3]]
    output, _ = reference(Inputs(*leaves), problem.neighborhoods, problem.scale)
    grads = torch.autograd.grad(output, leaves, grad.double())
    return {name: t.detach().to(dtype) for name, t in zip(module.NAMES, (output, *grads), strict=True)}


@pytest.fixture
def sampled(monkeypatch):
    """Make every problem too large for the whole oracle, and sampled keys come in chunks."""
    monkeypatch.setattr(module, "ORACLE_SCORES", 0)
    monkeypatch.setattr(module, "CHUNK_SCORES", 500)


def tensors(problem):
    inputs = random_inputs(problem)
    grad = torch.randn(*inputs.query.shape[:-1], problem.value_dim, generator=torch.Generator().manual_seed(2))
    return inputs, grad.to(problem.dtype)


def test_sample_holds_the_values_of_the_oracle(case, sampled):
    problem = case.problem("cpu")
    inputs, grad = tensors(problem)
    expected = results_of(problem, inputs, grad, torch.float64)
    made = truth(problem, inputs, grad)
    assert made.sampled
    for name in module.NAMES:
        torch.testing.assert_close(made.values[name], expected[name].flatten(0, -2)[made.rows[name]])


@pytest.mark.parametrize("limit", [0, 1 << 25], ids=["sampled", "whole"])
def test_right_results_pass(case, limit, monkeypatch):
    monkeypatch.setattr(module, "ORACLE_SCORES", limit)
    problem = case.problem("cpu")
    inputs, grad = tensors(problem)
    made = truth(problem, inputs, grad)
    errors = made.errors(results_of(problem, inputs, grad))
    assert set(errors) == set(module.NAMES)
    assert made.faults(errors) == []


@pytest.mark.parametrize("limit", [0, 1 << 25], ids=["sampled", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_key_too_many_is_found(limit, dtype, monkeypatch):
    monkeypatch.setattr(module, "ORACLE_SCORES", limit)
    lengths = (160,)
    right, wrong = (Neighborhood.of(1, k, is_causal=True).resolve(lengths) for k in (80, 81))
    problem = Case("", lengths, right, 2, 16, dtype=dtype).problem("cpu")
    inputs, grad = tensors(problem)
    made = truth(problem, inputs, grad)
    other = results_of(replace(problem, neighborhoods=(wrong,)), inputs, grad, dtype)
    assert len(made.faults(made.errors(other))) == 4
    own = results_of(problem, inputs, grad, dtype)
    assert made.faults(made.errors(own)) == []


@pytest.mark.parametrize("name", module.NAMES)
def test_one_value_that_is_not_finite_is_found_anywhere(small_case, sampled, name):
    problem = small_case.problem("cpu")
    inputs, grad = tensors(problem)
    made = truth(problem, inputs, grad)
    results = results_of(problem, inputs, grad)
    results[name] = results[name].contiguous()
    results[name].view(-1)[7] = float("nan")
    (fault,) = made.faults(made.errors(results))
    assert fault.startswith(name)


def test_sample_without_gradients_leaves_out_keys(small_case, sampled):
    problem = small_case.problem("cpu")
    inputs, grad = tensors(problem)
    made = truth(problem, inputs, grad, gradients=False)
    assert set(made.values) == {"output", "dq"}
    output = results_of(problem, inputs, grad)["output"]
    assert made.faults(made.errors({"output": output})) == []
