"""The sample's rows are the oracle's; a wrong result is caught, a right one passes."""

from dataclasses import replace

import pytest
import torch

from vicinal.bench import truth as module
from vicinal.bench.cases import Case, random_inputs
from vicinal.bench.truth import THOROUGH, Sampling, truth
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs
from vicinal.reference import reference

SAMPLED = Sampling(everything=0, keys=4, queries=5, chunk=500)  # every problem is too large, and comes in chunks
SAMPLINGS = pytest.mark.parametrize("sampling", [SAMPLED, THOROUGH], ids=["sampled", "whole"])


def results_of(problem, inputs, grad, dtype=torch.float32):
    """Output and gradients by the oracle, rounded to `dtype`."""
    leaves = [t.detach().double().requires_grad_() for t in inputs[:3]]
    output, _ = reference(Inputs(*leaves), problem.neighborhoods, problem.scale)
    grads = torch.autograd.grad(output, leaves, grad.double())
    return {name: t.detach().to(dtype) for name, t in zip(module.NAMES, (output, *grads), strict=True)}


def tensors(problem):
    inputs = random_inputs(problem)
    grad = torch.randn(*inputs.query.shape[:-1], problem.value_dim, generator=torch.Generator().manual_seed(2))
    return inputs, grad.to(problem.dtype)


@SAMPLINGS
def test_holds_the_values_of_the_oracle(case, sampling):
    problem = case.problem("cpu")
    inputs, grad = tensors(problem)
    expected = results_of(problem, inputs, grad, torch.float64)
    made = truth(problem, inputs, grad, sampling=sampling)
    assert made.sampled == (sampling is SAMPLED)
    for name in module.NAMES:
        assert made.rows[name].numel() > 1
        torch.testing.assert_close(made.values[name], expected[name].flatten(0, -2)[made.rows[name]])


@pytest.mark.parametrize(("scores", "names"), [(0, {"output", "dq"}), (1 << 20, set(module.NAMES))])
def test_self_attention_is_sampled_by_keys_where_that_is_cheap(case, scores, names):
    problem = case.self_attention().problem("cpu")
    inputs, grad = tensors(problem)
    expected = results_of(problem, inputs, grad, torch.float64)
    made = truth(problem, inputs, grad, sampling=replace(SAMPLED, scores=scores))
    assert set(made.values) == names
    for name in names:
        torch.testing.assert_close(made.values[name], expected[name].flatten(0, -2)[made.rows[name]])


@SAMPLINGS
def test_right_results_pass(case, sampling):
    problem = case.problem("cpu")
    inputs, grad = tensors(problem)
    made = truth(problem, inputs, grad, sampling=sampling)
    errors = made.errors(results_of(problem, inputs, grad))
    assert set(errors) == set(module.NAMES)
    assert made.faults(errors) == []


@SAMPLINGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_key_too_many_is_found(sampling, dtype):
    lengths = (160,)
    right, wrong = (Neighborhood.of(1, k, is_causal=True).resolve(lengths) for k in (80, 81))
    problem = Case("", lengths, right, 2, 16, dtype=dtype).problem("cpu")
    inputs, grad = tensors(problem)
    made = truth(problem, inputs, grad, sampling=sampling)
    other = results_of(replace(problem, neighborhoods=(wrong,)), inputs, grad, dtype)
    assert len(made.faults(made.errors(other))) == 4
    own = results_of(problem, inputs, grad, dtype)
    assert made.faults(made.errors(own)) == []


@pytest.mark.parametrize("name", module.NAMES)
def test_one_value_that_is_not_finite_is_found_anywhere(small_case, name):
    problem = small_case.problem("cpu")
    inputs, grad = tensors(problem)
    made = truth(problem, inputs, grad, sampling=SAMPLED)
    results = results_of(problem, inputs, grad)
    results[name] = results[name].contiguous()
    results[name].view(-1)[7] = float("nan")
    (fault,) = made.faults(made.errors(results))
    assert fault.startswith(name)


def test_without_gradients_there_is_the_output_only(small_case):
    problem = small_case.problem("cpu")
    inputs, grad = tensors(problem)
    made = truth(problem, inputs, grad, gradients=False, sampling=SAMPLED)
    assert set(made.values) == {"output"}
    output = results_of(problem, inputs, grad)["output"]
    assert made.faults(made.errors({"output": output})) == []


def test_stored_weights_are_allowed_their_rounding(small_case):
    problem = replace(small_case, dtype=torch.float16).problem("cpu")
    inputs, grad = tensors(problem)
    made = truth(problem, inputs, grad)
    output = results_of(problem, inputs, grad, torch.float64)["output"]
    errors = made.errors({"output": output * (1 + 2 * torch.finfo(torch.float16).eps)})
    assert made.faults(errors)
    assert not made.faults(errors, stored=torch.float16)
