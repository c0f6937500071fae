"""The Triton backend where scores or inputs are no finite numbers; without a GPU by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from closeness import gradients_of, random_gradients
from triton_calls import call, device, in_launches, of
from vicinal.backends import triton as backend
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.problem import Inputs, Problem

pytestmark = pytest.mark.usefixtures("interpreting")


def run_values(inputs, neighborhood, scale, together=False):
    """Output, log-sum-exp, and all gradients for random gradients from above."""
    problem = Problem.of(inputs, (neighborhood,), scale)
    output, lse = backend.BACKEND.forward(problem, backend.BACKEND.configs(problem, "forward")[0], inputs)
    config = backend.BACKEND.configs(problem, "backward")[0]
    config = in_launches(config, together)
    grad_output, grad_lse = random_gradients(output, lse, 3)
    return output, lse, gradients_of(backend.BACKEND, problem, config, inputs, output, lse, grad_output, grad_lse)


@pytest.mark.parametrize("together", [False, True])
def test_rows_without_a_finite_score(together):
    """By a bias of -inf: output 0, log-sum-exp -inf, gradients 0, in one head of two."""
    drawn = call((6, 5), of(2, 3), heads=2, kv_heads=2, has_rpb=True)
    inputs = drawn.inputs(torch.float32, device)
    inputs.rpb[0] = float("-inf")
    output, lse, grads = run_values(inputs, drawn.neighborhoods[0], 0.3, together)
    assert (output[..., 0, :] == 0).all()
    assert (lse[..., 0] == float("-inf")).all()
    assert all((g[..., 0, :] == 0).all() for g in grads[:3])
    assert (grads.rpb[0] == 0).all()
    other = Inputs(*(t[..., 1:, :] for t in inputs[:3]), rpb=inputs.rpb[1:])
    expected, expected_lse, _ = run_values(other, drawn.neighborhoods[0], 0.3)
    assert torch.equal(output[..., 1:, :], expected)
    assert torch.equal(lse[..., 1:], expected_lse)
    assert not any(t.isnan().any() for t in grads if t is not None)


def test_rows_whose_only_finite_scores_are_additional():
    drawn = call((5,), of(1, 3), additional=1, has_rpb=True)
    inputs = drawn.inputs(torch.float32, device)
    inputs.rpb[:] = float("-inf")
    inputs.additional_values[:] = 7.0
    output, _, grads = run_values(inputs, drawn.neighborhoods[0], 0.3)
    torch.testing.assert_close(output, torch.full_like(output, 7.0))
    assert all((g == 0).all() for g in (grads.key, grads.value, grads.rpb))
    assert not any(t.isnan().any() for t in grads if t is not None)


@pytest.mark.parametrize("additional", [0, 2])
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_scores_that_overflow_to_minus_infinity(scale, additional):
    drawn = call((5,), of(1, 3), head_dim=1, additional=additional)
    inputs = drawn.inputs(torch.float32, device)
    inputs.query[:] = 1e30
    inputs.key[:] = -1e30 * scale
    if additional:
        inputs.additional_keys[:] = -1e30 * scale
    output, lse, grads = run_values(inputs, drawn.neighborhoods[0], scale)
    assert (output == 0).all()
    assert (lse == float("-inf")).all()
    assert all(g is None or (g == 0).all() for g in grads)


@pytest.mark.parametrize("least", [-1e10, -1.1e38, -2.2e38])
def test_any_finite_score_counts(least):
    """However low: the window is one key, so the result is its value."""
    drawn = call((4,), of(1, 1), head_dim=1, value_dim=1)
    inputs = drawn.inputs(torch.float32, device)
    inputs.query[:] = 1e19
    inputs.key[:] = least / 1e19
    inputs.value[:] = torch.arange(4.0).view(1, 4, 1, 1)
    problem = Problem.of(inputs, drawn.neighborhoods, 1.0)
    output, _ = backend.BACKEND.forward(problem, backend.BACKEND.configs(problem, "forward")[0], inputs)
    assert torch.equal(output, inputs.value)


def test_keys_outside_a_window_change_nothing():
    drawn = call((40,), of(1, 5))
    inputs = drawn.inputs(torch.float32, device)
    expected, expected_lse, _ = run_values(inputs, drawn.neighborhoods[0], 0.3)
    inputs.key[:, 20:] = 1e18
    output, lse, _ = run_values(inputs, drawn.neighborhoods[0], 0.3)
    assert torch.equal(output[:, :18], expected[:, :18])
    assert torch.equal(lse[:, :18], expected_lse[:, :18])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", range(4))
def test_what_is_no_number_stays_in_its_batch_element_head_and_dilation_group(tensor, bad):
    drawn = call((12,), of(1, 3, dilation=2), heads=2, kv_heads=2, batch=2)
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    tiling = Tiling((16,), (16,))  # not of several groups
    output, lse = backend.BACKEND.forward(problem, tiling, inputs)
    grad_output, grad_lse = random_gradients(output, lse, 3)
    (grad_output, *inputs[:3])[tensor][0, 4, 1] = bad
    output, lse = backend.BACKEND.forward(problem, tiling, inputs)
    grads = gradients_of(
        backend.BACKEND, problem, GradientTilings(tiling, tiling), inputs, output, lse, grad_output, grad_lse
    )
    for result in (output, lse, *grads[:3]):
        result[0, ::2, 1] = 0  # may hold anything
        assert result.isfinite().all()


@pytest.mark.parametrize("tensor", range(4))
def test_what_is_no_number_stays_in_its_batch_element_and_head_where_tiles_hold_several_groups(tensor):
    drawn = call((12,), of(1, 3, dilation=2), heads=2, kv_heads=2, batch=2)
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    tiling = Tiling((8, 2), (8, 2), unfolded=0)
    output, lse = backend.BACKEND.forward(problem, tiling, inputs)
    grad_output, grad_lse = random_gradients(output, lse, 3)
    (grad_output, *inputs[:3])[tensor][0, 4, 1] = float("nan")
    output, lse = backend.BACKEND.forward(problem, tiling, inputs)
    grads = gradients_of(
        backend.BACKEND, problem, GradientTilings(tiling, tiling), inputs, output, lse, grad_output, grad_lse
    )
    for result in (output, lse, *grads[:3]):
        result[0, :, 1] = 0  # may hold anything
        assert result.isfinite().all()
