"""The formulas of the torch backend against the oracle: values, gradients, second order, forward mode, vmap."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from vicinal.backends.torch import tiles
from vicinal.backends.torch.formulas import attend
from vicinal.geometry import Neighborhood
from vicinal.problem import Inputs
from vicinal.reference import reference

EXACT = {"rtol": 1e-9, "atol": 1e-10}

# name -> lengths, neighborhoods' arguments (one, or one per head), heads, kv heads, D, Dv, additional, bias
CASES = {
    "1d": ((11,), [{"kernel_size": 4}], 2, 2, 3, 3, 0, False),
    "causal": ((9,), [{"kernel_size": 3, "is_causal": True}], 1, 1, 3, 3, 0, False),
    "clip": ((8,), [{"kernel_size": 11, "boundary": "clip"}], 1, 1, 3, 2, 0, False),
    "2d dilated, bias": ((5, 6), [{"kernel_size": (2, 3), "dilation": (2, 1)}], 2, 1, 3, 2, 0, True),
    "strided, additional": ((6, 5), [{"kernel_size": (4, 3), "stride": (2, 3)}], 2, 2, 3, 3, 2, False),
    "3d": ((3, 3, 2), [{"kernel_size": (2, 3, 1), "is_causal": (True, False, False)}], 2, 1, 2, 3, 1, True),
    "per head": (
        (7,),
        [{"kernel_size": 3}, {"kernel_size": 3, "dilation": 2}, {"kernel_size": 3}],
        3,
        1,
        2,
        2,
        1,
        True,
    ),
}


def make(name, dtype=torch.float64, batch=2):
    lengths, arguments, heads, kv_heads, head_dim, value_dim, additional, has_rpb = CASES[name]
    torch.manual_seed(0)
    neighborhoods = [Neighborhood.of(len(lengths), **a).resolve(lengths) for a in arguments]
    shapes = [(batch, *lengths, heads, head_dim), (batch, *lengths, kv_heads, head_dim)]
    shapes += [(batch, *lengths, kv_heads, value_dim)]
    if additional:
        shapes += [(batch, additional, kv_heads, head_dim), (batch, additional, kv_heads, value_dim)]
    tensors = [torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    extra = tensors[3:] if additional else [None, None]
    bias = None
    if has_rpb:
        bias_shape = (heads, *(2 * k - 1 for k in neighborhoods[0].window))
        bias = torch.randn(bias_shape, dtype=torch.float64).to(dtype).requires_grad_()
    return Inputs(*tensors[:3], *extra, bias), neighborhoods, 0.6


def present(inputs):
    return [t for t in inputs if t is not None]


def as_function(inputs, neighborhoods, scale):
    """`attend` of the present tensors only."""

    def function(*tensors):
        left = iter(tensors)
        return attend(Inputs(*(None if t is None else next(left) for t in inputs)), neighborhoods, scale)

    return function


@pytest.fixture(params=[1, 1 << 22], ids=["one tile a chunk", "one chunk"], autouse=True)
def chunking(request, monkeypatch):
    monkeypatch.setitem(tiles.SCORES_PER_CHUNK, "cpu", request.param)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_reference_s(name):
    inputs, neighborhoods, scale = make(name)
    got, want = attend(inputs, neighborhoods, scale), reference(inputs, neighborhoods, scale)
    torch.testing.assert_close(got, want, **EXACT)
    grads = [torch.randn_like(t) for t in want]
    torch.testing.assert_close(
        torch.autograd.grad(got, present(inputs), grads),
        torch.autograd.grad(want, present(inputs), grads),
        **EXACT,
    )


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_are_the_reference_s(name):
    def second(function):
        inputs, neighborhoods, scale = make(name)
        tensors = present(inputs)
        loss = sum(t.square().sum() for t in function(inputs, neighborhoods, scale))
        grads = torch.autograd.grad(loss, tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)

    torch.testing.assert_close(second(attend), second(reference), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["2d dilated, bias", "strided, additional"])
def test_gradcheck(name):
    inputs, neighborhoods, scale = make(name, batch=1)
    function = as_function(inputs, neighborhoods, scale)
    assert gradcheck(function, present(inputs), fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(function, present(inputs), fast_mode=True)


@pytest.mark.parametrize("name", CASES)
def test_jvp_is_the_product_with_the_jacobian(name):
    inputs, neighborhoods, scale = make(name)
    tensors = [t.detach() for t in present(inputs)]
    tangents = [torch.randn_like(t) for t in tensors]
    function = as_function(inputs, neighborhoods, scale)
    values, got = torch.func.jvp(function, tuple(tensors), tuple(tangents))
    step = 1e-6
    plus = function(*(t + step * d for t, d in zip(tensors, tangents)))
    minus = function(*(t - step * d for t, d in zip(tensors, tangents)))
    torch.testing.assert_close(values, function(*tensors), **EXACT)
    torch.testing.assert_close(got, tuple((a - b) / (2 * step) for a, b in zip(plus, minus)), rtol=1e-6, atol=1e-7)


def test_hessian_is_symmetric_and_the_reference_s():
    inputs, neighborhoods, scale = make("causal", batch=1)
    key, value = inputs.key.detach(), inputs.value.detach()

    def loss(function):
        return lambda query: function(Inputs(query, key, value), neighborhoods, scale)[0].square().sum()

    query = inputs.query.detach()
    got = torch.func.hessian(loss(attend))(query)
    size = query.numel()
    torch.testing.assert_close(got.reshape(size, size), got.reshape(size, size).T, **EXACT)
    torch.testing.assert_close(got, torch.autograd.functional.hessian(loss(reference), query), **EXACT)


def test_vmap_over_the_batch():
    inputs, neighborhoods, scale = make("1d", batch=3)
    tensors = [t.detach() for t in present(inputs)]
    got = torch.vmap(lambda *t: attend(Inputs(*(x[None] for x in t)), neighborhoods, scale))(*tensors)
    want = attend(Inputs(*tensors), neighborhoods, scale)
    torch.testing.assert_close(tuple(t.squeeze(1) for t in got), want, **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["1d", "strided, additional"])
def test_half_precision_is_rounded_once(name, dtype):
    inputs, neighborhoods, scale = make(name, dtype)
    (output, lse), (want, want_lse) = (
        attend(inputs, neighborhoods, scale),
        reference(inputs, neighborhoods, scale),
    )
    assert (output.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(output.double(), want, rtol=torch.finfo(dtype).eps / 2 * 1.01, atol=1e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-6, atol=1e-6)


def test_autocast_does_not_reach_the_products():
    inputs, neighborhoods, scale = make("1d", torch.float32)
    plain = attend(inputs, neighborhoods, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(attend(inputs, neighborhoods, scale), plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_empty_batch(name):
    inputs, neighborhoods, scale = make(name, batch=0)
    output, lse = attend(inputs, neighborhoods, scale)
    assert output.shape == (*inputs.query.shape[:-1], inputs.value.shape[-1])
    assert lse.shape == inputs.query.shape[:-1]
    grads = torch.autograd.grad([output.sum() + lse.sum()], present(inputs))
    assert [g.shape for g in grads] == [t.shape for t in present(inputs)]
