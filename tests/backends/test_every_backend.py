"""What every backend that runs on a CPU keeps, through the public functions: any layout, and only inputs matter."""

import contextlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from closeness import assert_as_close_as_torch, gradients, in_double, random_gradients
from strategies import Layouts, any_layouts, calls, whole
from vicinal import dispatch, na1d, na2d, neighborhood_attention
from vicinal.geometry.neighborhood import MOST, Neighborhood
from vicinal.problem import Inputs, Problem
from vicinal.reference import reference

EXACT = {"rtol": 1e-9, "atol": 1e-11}
BACKENDS = [name for name in dispatch.BACKENDS if name not in ("hopper", "triton")]  # these run on GPUs: tests/gpu


def run(name, call):
    """The call by a backend, as a function of inputs."""

    def by_backend(inputs):
        query, key, value, more_keys, more_values, rpb, key_mask, sizes = inputs
        neighborhood = call.neighborhoods[0] if len(call.neighborhoods) == 1 else call.neighborhoods
        return neighborhood_attention(
            query, key, value, neighborhood, scale=call.scale, additional_keys=more_keys,
            additional_values=more_values, rpb=rpb, key_mask=key_mask, window_sizes=sizes, return_lse=True,
            backend=name,
        )  # fmt: skip

    return by_backend


def can_run(name, inputs, call):
    return dispatch.unsupported(name, Problem.of(inputs, call.neighborhoods, call.scale)) is None


def assert_exact(name, call, inputs, layouts: Layouts, with_lse):
    """Results and all gradients, those from above in layouts of their own, against the oracle."""
    output, lse = run(name, call)(inputs)
    above = layouts.gradients(*random_gradients(output, lse, call.seed, with_lse))
    found = gradients(run(name, call), inputs, *above)
    truth = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, *above)
    torch.testing.assert_close(found, truth, **EXACT)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=60)
@given(call=calls(spans=True), layouts=any_layouts(), with_lse=st.booleans())
def test_any_layout(name, call, layouts: Layouts, with_lse):
    inputs = layouts.inputs(call.inputs())
    if not can_run(name, inputs, call):
        return
    assert_exact(name, call, inputs, layouts, with_lse)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    "rule", [{"dilation": MOST}, {"kernel_size": MOST}, {"kernel_size": MOST, "stride": MOST}], ids=str
)
def test_numbers_as_large_as_they_may_be(name, rule):
    if name == "unfused" and "kernel_size" in rule:
        pytest.skip("its memory grows with the window")
    whole = {n: min(33, value) for n, value in ({"kernel_size": 3} | rule).items()}
    x = torch.randn(1, 33, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = na1d(x, x, x, is_causal=True, backend=name, **({"kernel_size": 3} | rule))
    torch.testing.assert_close(found, na1d(x, x, x, is_causal=True, backend="torch", **whole), **EXACT)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=15)
@given(call=calls(spans=True), layouts=any_layouts())
def test_any_layout_of_smaller_dtypes(name, dtype, call, layouts: Layouts):
    inputs = layouts.inputs(call.inputs(dtype))
    if not can_run(name, inputs, call):
        return
    found = run(name, call)(inputs)
    if name == "unfused" and dtype != torch.float32:  # its weights are rounded, as no fused attention's are
        truth = reference(in_double(inputs), call.neighborhoods, call.scale)
        torch.testing.assert_close(found[0].double(), truth[0], rtol=0.05, atol=0.05)
    else:
        assert_as_close_as_torch(found, inputs, call.neighborhoods, call.scale)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=25)
@given(call=calls(), layouts=any_layouts(), masked=st.sampled_from([0.1, 0.5, 0.95]), with_lse=st.booleans())
def test_masked_keys(name, call, layouts: Layouts, masked, with_lse):
    call = replace(call, masked=masked)
    inputs = layouts.inputs(call.inputs())
    if not can_run(name, inputs, call):
        return
    assert_exact(name, call, inputs, layouts, with_lse)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=12)
@given(call=calls(), masked=st.sampled_from([0.0, 0.3]))
def test_windows_per_token(name, call, masked):
    call = replace(call.unstrided(), sized=True, masked=masked)
    inputs = call.inputs()
    if not can_run(name, inputs, call):
        return
    above = random_gradients(*run(name, call)(inputs), call.seed)
    found = gradients(run(name, call), inputs, *above)
    truth = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, *above)
    torch.testing.assert_close(found, truth, **EXACT)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=15)
@given(call=calls(), masked=st.sampled_from([0.3, 0.8]))
def test_masked_tokens_are_never_numbers(name, call, masked):
    """All of a masked token is NaN, its gradient from above too: nothing of it shows."""
    call = replace(call, masked=masked)
    inputs = call.inputs()
    if not can_run(name, inputs, call):
        return
    gone = ~inputs.key_mask[..., None]
    nan = float("nan")
    query, key, value = (t.masked_fill(gone[..., None], nan) for t in inputs[:3])
    holes = inputs._replace(query=query, key=key, value=value)
    output, lse = run(name, call)(holes)
    own = gone.expand_as(lse)
    assert torch.equal(output[own], torch.zeros_like(output[own]))
    assert torch.equal(lse[own], torch.full_like(lse[own], -float("inf")))
    grad, grad_lse = random_gradients(output, lse, call.seed)
    found = gradients(run(name, call), holes, grad.masked_fill(own[..., None], nan), grad_lse.masked_fill(own, nan))
    above = grad.masked_fill(own[..., None], 0.0), grad_lse.masked_fill(own, 0.0)
    truth = gradients(lambda i: reference(i, call.neighborhoods, call.scale), holes, *above)
    torch.testing.assert_close(found, truth, **EXACT)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    before = torch.get_default_device()
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(before if before.type != "cpu" else None)


@contextlib.contextmanager
def memory_as_it_comes():
    """Neither filled nor deterministic: what users have."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = before


SURROUNDINGS = {
    "device meta": lambda: torch.device("meta"),
    "default device meta": lambda: default_device("meta"),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "deterministic": lambda: contextlib.nullcontext(),  # conftest's: with uninitialised memory filled
    "not deterministic": memory_as_it_comes,
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("features", ["plain", "everything"])
def test_surroundings_change_nothing_now_or_later(name, surroundings, features):
    # Lengths of their own, so that whatever is kept between calls is made under these surroundings first.
    length = 23 + 7 * list(SURROUNDINGS).index(surroundings) + (3 if features == "plain" else 0)
    generator = torch.Generator().manual_seed(0)
    q, k, v, above = (torch.randn(1, length, 2, 16, generator=generator) for _ in range(4))
    extra = {}
    if features == "everything":
        extra = {
            "additional_keys": k[:, :3].clone(),
            "additional_values": v[:, :3].clone(),
            "rpb": torch.randn(2, 9, generator=generator),
        }
    problem = Problem.of(Inputs(q, k, v, rpb=extra.get("rpb")), [Neighborhood.of(1, 5, dilation=2)], 0.25)
    reason = dispatch.unsupported(name, problem)
    if reason is not None:
        pytest.skip(reason)
    leaves = [q, k, v, *extra.values()]

    def call():
        own = [
            t.detach().requires_grad_(torch.is_grad_enabled() and not torch.is_inference_mode_enabled()) for t in leaves
        ]
        output, lse = na1d(*own[:3], 5, dilation=2, return_lse=True, backend=name, **dict(zip(extra, own[3:])))
        grads = torch.autograd.grad(output, own, above) if output.requires_grad else ()
        return [output.detach(), lse.detach(), *grads]

    with SURROUNDINGS[surroundings]():
        inside = call()
    outside = call()
    for one, other in zip(inside, outside):
        assert (one.device, one.dtype) == (other.device, other.dtype)
        assert torch.equal(one, other)
    true_inputs = in_double(Inputs(q, k, v, **extra))
    truth = gradients(lambda i: reference(i, problem.neighborhoods, 0.25), true_inputs, above.double(), None)
    for one, true in zip(outside, truth, strict=True):
        torch.testing.assert_close(one.double(), true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("additional", [0, 5])
def test_autocast_rounds_the_tensors_and_nothing_else(name, dtype, additional):
    call = replace(whole(5, dilation=2), head_dim=16, additional=additional, has_rpb=True)
    if not can_run(name, call.inputs(dtype), call):
        pytest.skip("not its problem")
    inputs = call.inputs(torch.float32)
    rounded = Inputs(*(None if t is None else t.to(dtype) for t in inputs))
    with torch.autocast("cpu", dtype):
        found = run(name, call)(inputs)
    assert all(map(torch.equal, found, run(name, call)(rounded)))
    above = random_gradients(*found, seed=0)
    leaves = [t.requires_grad_() for t in inputs if t is not None]
    results = run(name, call)(inputs)
    grads = torch.autograd.grad(results, leaves, [g.float() for g in above], retain_graph=True)
    with torch.autocast("cpu", dtype):
        inside = torch.autograd.grad(results, leaves, [g.float() for g in above])
    assert all(map(torch.equal, grads, inside))


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=40)
@given(call=calls(), other=calls(), huge=st.sampled_from([1.0, 1e4, float("inf"), float("nan")]))
def test_bits_do_not_depend_on_the_calls_before(name, call, other, huge):
    inputs = call.inputs(torch.float32)
    if not can_run(name, inputs, call):
        return
    above = random_gradients(*run(name, call)(inputs), seed=0)
    first = gradients(run(name, call), inputs, *above)
    between = Inputs(*(None if t is None else t * huge for t in other.inputs(torch.float32)))
    if can_run(name, between, other):
        output, lse = run(name, other)(between)
        gradients(run(name, other), between, torch.full_like(output, huge), torch.full_like(lse, huge))
    for one, again in zip(first, gradients(run(name, call), inputs, *above), strict=True):
        assert torch.equal(one, again)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_window_of_one_key_is_that_key_however_large_the_others(name):
    def t(*values):
        return torch.tensor(values).view(1, -1, 1, 1)

    q, k, v = t(1.0, 1, 1, 1), t(200.0, 0, 0, 0), t(1.0, 2, 3, 4)
    x = torch.randn(1, 16, 1, 1)
    na1d(x, x, x, 16, backend=name)
    output, lse = na1d(q, k, v, 1, scale=1.0, return_lse=True, backend=name)
    assert torch.equal(output, v)
    torch.testing.assert_close(lse, k[..., 0])
    huge = na1d(torch.full_like(q, 1e19), torch.full_like(q, -1.1e19), v, 1, scale=1.0, backend=name)
    assert torch.equal(huge, v)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_bias_of_minus_infinity_leaves_output_0_and_no_gradient(name):
    leaves = [torch.randn(1, 7, 1, 4, requires_grad=True) for _ in range(3)]
    rpb = torch.full((1, 5), -float("inf"), requires_grad=True)
    reason = dispatch.unsupported(name, Problem.of(Inputs(*leaves, rpb=rpb), [Neighborhood.of(1, 3)], 0.5))
    if reason is not None:
        pytest.skip(reason)
    output, lse = na1d(*leaves, 3, rpb=rpb, return_lse=True, backend=name)
    assert torch.equal(output, torch.zeros_like(output))
    assert torch.equal(lse, torch.full_like(lse, -float("inf")))
    for grad in torch.autograd.grad(output.sum() + lse.exp().sum(), [*leaves, rpb]):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("name", [None, "torch", "unfused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_meta_tensors_give_shapes_dtypes_and_devices(name, dtype):
    leaves = [
        torch.empty(2, 6, 7, h, d, dtype=dtype, device="meta").requires_grad_() for h, d in ((4, 8), (2, 8), (2, 5))
    ]
    rpb = torch.empty(4, 5, 5, dtype=dtype, device="meta").requires_grad_()
    output, lse = na2d(*leaves, 3, rpb=rpb, return_lse=True, backend=name)
    assert (output.shape, output.dtype, output.device.type) == ((2, 6, 7, 4, 5), dtype, "meta")
    assert (lse.shape, lse.dtype, lse.device.type) == ((2, 6, 7, 4), torch.float32, "meta")
    grads = torch.autograd.grad([output.sum() + lse.sum()], [*leaves, rpb])
    assert [(g.shape, g.dtype, g.device.type) for g in grads] == [(t.shape, dtype, "meta") for t in (*leaves, rpb)]


def test_meta_tensors_have_derivatives_of_all_kinds():
    q = torch.empty(2, 6, 2, 4, device="meta")
    jvp = torch.func.jvp(lambda x: na1d(x, x, x, 3), (q,), (q,))
    assert [t.shape for t in jvp] == [q.shape] * 2
    (grad,) = torch.autograd.grad(na1d(*[q.requires_grad_()] * 3, 3).sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), q)
    assert (second.shape, second.device.type) == (q.shape, "meta")
