"""The unfused backend obeys the protocol: forward, log-sum-exp and all gradients, for each variant."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
import vicinal
from closeness import assert_as_close_as_torch, gradients_of, random_gradients
from vicinal.backends.gpu import tables
from vicinal.backends.unfused import BACKEND, launch
from vicinal.dispatch import explain
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference

CASES = {
    "2-D grouped queries, bias, additional keys": ((4, 3), {"kernel_size": (3, 2), "dilation": (1, 1)}, 2, 1, 2, True),
    "1-D causal": ((7,), {"kernel_size": 3, "is_causal": True}, 1, 1, 0, False),
    "1-D short dilation groups": ((10,), {"kernel_size": 2, "dilation": 4}, 2, 1, 0, True),
    "2-D short dilation groups": ((4, 7), {"kernel_size": 2, "dilation": (2, 3)}, 1, 1, 0, True),
    "3-D": ((2, 3, 3), {"kernel_size": (2, 3, 2)}, 1, 1, 0, True),
}


def make(case: str) -> tuple[Inputs, Neighborhood]:
    lengths, geometry, heads, kv_heads, additional, has_rpb = CASES[case]
    neighborhood = Neighborhood.of(len(lengths), **geometry).resolve(lengths)
    torch.manual_seed(0)
    batch = 2 if len(lengths) == 1 else 1  # kernels are interpreted
    rpb_shape = (heads, *(2 * k - 1 for k in neighborhood.window))
    return (
        Inputs(
            torch.randn(batch, *lengths, heads, 4),
            torch.randn(batch, *lengths, kv_heads, 4),
            torch.randn(batch, *lengths, kv_heads, 6),
            torch.randn(batch, additional, kv_heads, 4) if additional else None,
            torch.randn(batch, additional, kv_heads, 6) if additional else None,
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


def both_passes(inputs, neighborhood, variant, upstream_of=lambda upstream: upstream):
    """Output, log-sum-exp, gradients, and the gradients from above."""
    problem = Problem.of(inputs, (neighborhood,), 0.4)
    config = next(c for c in BACKEND.configs(problem, "forward") if c.variant == variant)
    output, lse = BACKEND.forward(problem, config, inputs)
    upstream = upstream_of(Upstream(output, lse, *random_gradients(output, lse, 3)))
    return output, lse, BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs)), upstream[2:]


@pytest.mark.parametrize("variant", ["torch", "naive", "gemm"])
def test_rows_without_a_finite_score(variant):
    inputs, neighborhood = make("1-D short dilation groups")
    inputs.rpb[:] = -torch.inf
    output, lse, grads, _ = both_passes(inputs, neighborhood, variant)
    assert (output == 0).all()
    assert (lse == -torch.inf).all()
    assert all(g is None or (g == 0).all() for g in grads)


@pytest.mark.parametrize("variant", ["torch", "gemm"])
def test_rows_whose_only_finite_scores_are_additional(variant):
    inputs, neighborhood = make("2-D grouped queries, bias, additional keys")
    inputs.rpb[:] = -torch.inf
    inputs.additional_values[:] = 7.0
    output, _, grads, _ = both_passes(inputs, neighborhood, variant)
    torch.testing.assert_close(output, torch.full_like(output, 7.0))
    assert all((g == 0).all() for g in (grads.key, grads.value, grads.rpb))


@settings(max_examples=3)
@given(
    strategies.calls(ranks=(1, 2), per_head=False),
    strategies.any_layouts(),
    st.sampled_from(["torch", "torch", "gemm"]),
)
def test_random_calls_in_any_layout(drawn, layouts, variant):
    inputs = layouts.inputs(drawn.inputs(torch.float32))
    output, lse, grads, upstream = both_passes(inputs, drawn.neighborhoods[0], variant, layouts.upstream)
    assert all(t is None or t.is_contiguous() for t in (output, lse, *grads))
    results = [output, lse, *(g for g in grads if g is not None)]
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, 0.4, *upstream)


@pytest.mark.parametrize("name", ["query", "value", "rpb", "additional_keys"])
def test_only_what_is_wanted(name, monkeypatch):
    inputs, neighborhood = make("2-D grouped queries, bias, additional keys")
    problem = Problem.of(inputs, (neighborhood,), 0.4)
    config = next(c for c in BACKEND.configs(problem, "forward") if c.variant == "torch")
    output, lse, every, upstream = both_passes(inputs, neighborhood, "torch")
    wanted = Wanted(*(field == name for field in Wanted._fields))
    called = []
    products = launch.pn
    monkeypatch.setattr(launch, "pn", lambda *a: (called.append("pn"), products(*a))[1])
    grads = BACKEND.backward(problem, config, inputs, Upstream(output, lse, *upstream), wanted)
    assert len(called) == (1 if name == "value" else 2)  # scores; their gradients
    for grad, full, field in zip(grads, every, Wanted._fields):
        assert grad is None if field != name else torch.equal(grad, full)


def test_what_torch_makes_by_default_changes_nothing():
    """Tables are kept: neither a default device nor a default dtype may get into them."""
    inputs, neighborhood = make("1-D causal")
    output, lse, every, above = both_passes(inputs, neighborhood, "torch")
    problem = Problem.of(inputs, (neighborhood,), 0.4)
    config = next(c for c in BACKEND.configs(problem, "forward") if c.variant == "torch")
    tables._tables.clear()
    with torch.device("meta"):
        again = BACKEND.forward(problem, config, inputs)[0]
        grads = BACKEND.backward(problem, config, inputs, Upstream(output, lse, *above), Wanted.of(inputs))
    assert torch.equal(again, output)
    assert torch.equal(grads.key, every.key)


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
