"""The unfused backend obeys the protocol: forward, log-sum-exp and all gradients, for each variant."""

import pytest
import torch

import vicinal
from closeness import gradients_of
from vicinal.backends.unfused import BACKEND
from vicinal.dispatch import explain
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem
from vicinal.reference import reference

CASES = {
    "2-D grouped queries, bias, additional keys": ((4, 3), {"kernel_size": (3, 2), "dilation": (1, 1)}, 2, 1, 2, True),
    "1-D causal": ((7,), {"kernel_size": 3, "is_causal": True}, 1, 1, 0, False),
    "1-D short dilation groups": ((10,), {"kernel_size": 2, "dilation": 4}, 2, 1, 0, True),
    "2-D short dilation groups": ((5, 7), {"kernel_size": 2, "dilation": (2, 3)}, 1, 1, 0, True),
    "3-D": ((2, 3, 3), {"kernel_size": (2, 3, 2)}, 1, 1, 0, True),
}


def make(case: str) -> tuple[Inputs, Neighborhood]:
    lengths, geometry, heads, kv_heads, additional, has_rpb = CASES[case]
    neighborhood = Neighborhood.of(len(lengths), **geometry).resolve(lengths)
    torch.manual_seed(0)
    rpb_shape = (heads, *(2 * k - 1 for k in neighborhood.window))
    return (
        Inputs(
            torch.randn(2, *lengths, heads, 4),
            torch.randn(2, *lengths, kv_heads, 4),
            torch.randn(2, *lengths, kv_heads, 6),
            torch.randn(2, additional, kv_heads, 4) if additional else None,
            torch.randn(2, additional, kv_heads, 6) if additional else None,
            torch.randn(rpb_shape) if has_rpb else None,
        ),
        neighborhood,
    )


@pytest.mark.parametrize("with_grad_lse", [False, True])
@pytest.mark.parametrize("variant", ["torch", "naive", "gemm"])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(case, variant, with_grad_lse):
    if variant == "naive" and not with_grad_lse:
        pytest.skip("interpreted slowly; grad_lse is handled before the kernels, the same for all variants")
    inputs, neighborhood = make(case)
    problem = Problem.of(inputs, (neighborhood,), 0.4)
    config = next(c for c in BACKEND.configs(problem, "forward") if c.variant == variant)
    leaves = [None if t is None else t.double().requires_grad_() for t in inputs]
    expected, expected_lse = reference(Inputs(*leaves), [neighborhood], 0.4)
    grad, grad_lse = torch.randn_like(expected), torch.randn_like(expected_lse)
    given = [t for t in leaves if t is not None]
    wanted = torch.autograd.grad((expected * grad).sum() + (expected_lse * grad_lse).sum() * with_grad_lse, given)

    output, lse = BACKEND.forward(problem, config, inputs)
    grads = gradients_of(
        BACKEND, problem, config, inputs, output, lse, grad.float(), grad_lse.float() if with_grad_lse else None
    )
    assert output.is_contiguous()
    assert lse.is_contiguous()
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)
    assert [None if g is None else g.shape for g in grads] == [None if t is None else t.shape for t in inputs]
    for name, got, want in zip(inputs._fields, (g for g in grads if g is not None), wanted):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_runs_by_name_through_the_public_functions():
    x = torch.randn(1, 6, 6, 2, 8)
    torch.testing.assert_close(
        vicinal.na2d(x, x, x, 3, backend="unfused"), vicinal.na2d(x, x, x, 3), rtol=1e-5, atol=1e-5
    )


def test_a_neighborhood_per_head_is_refused_with_a_reason():
    x = torch.randn(1, 6, 2, 4)
    each = [Neighborhood.of(1, 3), Neighborhood.of(1, 5)]
    with pytest.raises(ValueError, match="one neighborhood for all heads"):
        vicinal.neighborhood_attention(x, x, x, each, backend="unfused")


def test_explain_lists_its_variants():
    x = torch.randn(1, 6, 2, 4)
    problem = Problem.of(Inputs(x, x, x), (Neighborhood.of(1, 3),), 1.0)
    verdict = next(v for v in explain(problem) if v.name == "unfused")
    assert verdict.reason is None
    assert next(c.variant for c in verdict.configs["forward"]) == "torch"
