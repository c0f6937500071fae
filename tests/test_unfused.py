"""The unfused operators: every variant against the oracle and its gradients, the slots' definition, transforms."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import vicinal.unfused as unfused
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.slots import Slots
from vicinal.problem import Inputs
from vicinal.reference import neighborhood_mask, neighbors, reference

VARIANTS = ["torch", "naive", "gemm"]
CASES = {  # name: lengths, geometry, (heads, kv_heads, head_dim, value_dim), additional keys, rpb
    "1-D": ((9,), {"kernel_size": 5}, (2, 2, 8, 8), 0, False),
    "1-D even window, dilated, dims no power of two": ((11,), {"kernel_size": 4, "dilation": 2}, (1, 1, 5, 3), 0, True),
    "1-D causal strided, additional keys": (
        (9,),
        {"kernel_size": 4, "stride": 3, "is_causal": True},
        (1, 1, 4, 4),
        2,
        True,
    ),
    "2-D mixed windows, grouped queries": ((4, 4), {"kernel_size": (3, 2), "dilation": (1, 2)}, (2, 1, 4, 6), 0, True),
    "2-D causal axis": ((4, 5), {"kernel_size": 3, "is_causal": (True, False)}, (1, 1, 4, 4), 0, False),
    "2-D causal, window beyond the axis": (
        (3, 5),
        {"kernel_size": (5, 4), "stride": (4, 1), "is_causal": True, "dilation": (1, 2)},
        (1, 1, 4, 4),
        1,
        True,
    ),
    "2-D clip, window beyond the axis": (
        (3, 5),
        {"kernel_size": (5, 3), "boundary": "clip", "dilation": (1, 2)},
        (1, 1, 4, 4),
        1,
        True,
    ),
    "3-D strided": ((2, 3, 4), {"kernel_size": (2, 2, 3), "stride": (2, 1, 3)}, (1, 1, 4, 4), 0, True),
    "more tokens than a tile": ((70,), {"kernel_size": 9}, (1, 1, 4, 4), 0, False),
}


def tensors(case: str, dtype: torch.dtype) -> tuple[Neighborhood, Inputs]:
    lengths, geometry, (heads, kv_heads, dim, value_dim), additional, has_rpb = CASES[case]
    neighborhood = Neighborhood.of(len(lengths), **geometry).resolve(lengths)
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    table = (2 * k - 1 for k in neighborhood.window)
    return neighborhood, Inputs(
        make(1, *lengths, heads, dim),
        make(1, *lengths, kv_heads, dim),
        make(1, *lengths, kv_heads, value_dim),
        make(1, additional, kv_heads, dim) if additional else None,
        make(1, additional, kv_heads, value_dim) if additional else None,
        make(heads, *table) if has_rpb else None,
    )


def compose(inputs: Inputs, geometry: dict, scale: float, variant: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    scores = unfused.neighborhood_qk(
        inputs.query,
        inputs.key,
        additional_keys=inputs.additional_keys,
        rpb=inputs.rpb,
        scale=scale,
        variant=variant,
        **geometry,
    )
    output = unfused.neighborhood_av(
        scores.softmax(-1), inputs.value, additional_values=inputs.additional_values, variant=variant, **geometry
    )
    return output, scores


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want).norm() / want.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients_are_the_oracles(case, variant):
    if variant == "naive" and case == "more tokens than a tile":
        pytest.skip("the naive kernels have no tiles")
    neighborhood, inputs = tensors(case, torch.float32)
    given = [t for t in inputs if t is not None]
    expected, lse = reference(inputs, [neighborhood], 0.3)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, given, grad)

    output, scores = compose(inputs, CASES[case][1], 0.3, variant)
    grads = torch.autograd.grad(output, given, grad.float())
    tolerance = 32 * torch.finfo(torch.float32).eps
    assert error(output, expected) < tolerance
    assert error(scores.double().logsumexp(-1), lse) < tolerance
    assert len(grads) == len(expected_grads)
    assert max(error(a, b) for a, b in zip(grads, expected_grads)) < tolerance


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_sdpa_with_stored_weights(dtype, variant):
    """Weights are stored in half precision, once as scores and once as weights: allow that rounding over SDPA's."""
    if variant == "gemm" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 matrices; tests/gpu has this case")
    case = "2-D mixed windows, grouped queries"
    neighborhood, inputs = tensors(case, dtype)
    inputs = inputs._replace(rpb=None)
    expected, _ = reference(inputs, [neighborhood], 0.5)
    mask = neighborhood_mask(neighborhood, CASES[case][0])
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in inputs[:3])
    sdpa = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.5, enable_gqa=True).transpose(1, 2)
    output, _ = compose(inputs, CASES[case][1], 0.5, variant)
    assert output.dtype == dtype
    yardstick = error(sdpa.reshape(expected.shape), expected)
    assert error(output, expected) < 2 * yardstick + 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("case", CASES)
def test_a_key_sits_in_the_slot_counted_from_the_windows_first_key(case):
    """Straight from the definition: slot by slot, the score of that neighbor; minus infinity where there is none."""
    neighborhood, inputs = tensors(case, torch.float64)
    lengths = CASES[case][0]
    scores = unfused.neighborhood_qk(inputs.query, inputs.key, variant="torch", **CASES[case][1]).detach()
    per_axis = [[neighbors(a, n, i) for i in range(n)] for a, n in zip(neighborhood.axes, lengths)]
    query = tuple(n - 1 for n in lengths)
    for slot in range(scores.shape[-1]):
        place = torch.unravel_index(torch.tensor(slot), neighborhood.window)
        lists = [per_axis[a][x] for a, x in enumerate(query)]
        got = scores[(0, *query, 0, slot)]
        if any(int(p) >= len(near) for p, near in zip(place, lists)):
            assert got == float("-inf")
        else:
            key = tuple(near[int(p)] for p, near in zip(place, lists))
            torch.testing.assert_close(got, inputs.query[(0, *query, 0)] @ inputs.key[(0, *key, 0)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_absent_slots_have_no_gradient_and_are_not_read(variant):
    _, inputs = tensors("2-D causal axis", torch.float32)
    geometry = CASES["2-D causal axis"][1]
    scores = unfused.neighborhood_qk(inputs.query, inputs.key, variant=variant, **geometry)
    absent = scores.isinf()
    assert absent.any()
    weights = torch.where(absent, torch.nan, scores).detach().requires_grad_()
    output = unfused.neighborhood_av(weights, inputs.value, variant=variant, **geometry)
    assert output.isfinite().all()
    (grad,) = torch.autograd.grad(output.sum(), weights)
    assert (grad[absent] == 0).all()


def test_second_derivatives():
    geometry = {"kernel_size": (2, 3), "is_causal": (True, False)}
    leaves = [torch.randn(1, 3, 4, 1, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def run(query, key, value):
        scores = unfused.neighborhood_qk(query, key, **geometry)
        return unfused.neighborhood_av(scores.softmax(-1), value, **geometry)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        ("pn", ("query", "key", "rpb", "code", 0.5, float("-inf"), "torch")),
        ("nn", ("attn", "key", "code", 0.5, "torch")),
        ("inverse", ("attn", "query", 1, "code", 0.5, "torch")),
    ],
)
def test_operators_pass_torchs_own_check(operator, args):
    neighborhood = Neighborhood.of(2, (3, 2), is_causal=(True, False)).resolve((4, 3))
    made = {
        "query": torch.randn(2, 4, 3, 2, 4, requires_grad=True),
        "key": torch.randn(2, 4, 3, 1, 4, requires_grad=True),
        "attn": torch.rand(2, 4, 3, 2, 6, requires_grad=True),
        "rpb": torch.randn(2, 5, 3, requires_grad=True),
        "code": neighborhood.encode(),
    }
    torch.library.opcheck(
        getattr(torch.ops.vicinal, operator).default, tuple(made.get(a, a) if isinstance(a, str) else a for a in args)
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_strided_views_give_what_contiguous_tensors_give(variant):
    """Heads-first storage, and weights that are a view of a wider tensor."""
    torch.manual_seed(0)
    heads_first = [torch.randn(1, 2, 5, 4, 4) for _ in range(3)]
    views = [t.movedim(1, -2) for t in heads_first]
    plain = [t.contiguous() for t in views]
    wide = torch.rand(1, 5, 4, 2, 9 + 3)
    scores = [unfused.na2d_qk(q, k, 3, variant=variant) for q, k, _ in (views, plain)]
    outputs = [
        unfused.na2d_av(wide[..., :9], views[2], 3, variant=variant),
        unfused.na2d_av(wide[..., :9].contiguous(), plain[2], 3, variant=variant),
    ]
    assert torch.equal(*scores)
    assert torch.equal(*outputs)


def test_ranked_functions_are_the_generic_ones():
    x = torch.randn(1, 6, 5, 2, 4)
    rpb = torch.randn(2, 5, 5)
    scores = unfused.na2d_qkrpb(x, x, rpb, 3, 1)
    assert torch.equal(scores, unfused.neighborhood_qk(x, x, 3, rpb=rpb))
    weights = scores.softmax(-1)
    assert torch.equal(unfused.na2d_av(weights, x, 3), unfused.neighborhood_av(weights, x, 3))


def test_slots_counts():
    slots = Slots(Neighborhood.of(2, (3, 5)).resolve((6, 7)), (6, 7))
    assert (slots.count, slots.tokens, slots.bias_shape, slots.has_absent_slots) == (15, 42, (5, 9), False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: unfused.na1d_qk(x, x, 3), "query must have 4 dimensions"),
        (lambda x: unfused.na3d_av(x, value=x, kernel_size=3), "value must have 6 dimensions"),
        (lambda x: unfused.na2d_qk(x, x[:, :2], 3), "batch and spatial lengths of query"),
        (lambda x: unfused.na2d_qk(x, x, 9), "must not exceed the axis"),
        (lambda x: unfused.na2d_qk(x, x, 3, rpb=torch.zeros(2, 3, 3)), "rpb must have shape"),
        (lambda x: unfused.na2d_qk(x, x, 3, variant="fast"), "variant must be one of"),
        (lambda x: unfused.na2d_qk(x, x, 3, additional_keys=x), "additional_keys must have shape"),
        (lambda x: unfused.na2d_av(x, x, 3), "attn must have shape"),
        (lambda x: unfused.na2d_qk(x.double(), x.double(), 3, variant="gemm"), "no float64"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(1, 6, 5, 2, 4))


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(2, 8, 8, 3, 4)
    with FlopCounterMode(display=False) as counter:
        unfused.na2d_av(unfused.na2d_qk(x, x, 3).softmax(-1), x, 3)
    assert counter.get_total_flops() == 2 * 2 * (2 * 64 * 3) * 9 * 4


def small_call(x, rpb):
    geometry = {"kernel_size": 3, "is_causal": True}
    scores = unfused.na1d_qk(x, 2 * x, rpb=rpb, **geometry)
    return unfused.na1d_av(scores.softmax(-1), x.sin(), **geometry)


def small_inputs():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((1, 5, 2, 3), (2, 5)))


def test_forward_mode_is_the_finite_difference():
    """Library operators alone would give a tangent of zeros."""
    inputs = tuple(t.requires_grad_() for t in small_inputs())
    assert torch.autograd.gradcheck(small_call, inputs, check_forward_ad=True, check_backward_ad=False)


@pytest.mark.parametrize("transform", ["grad", "hessian", "reverse over reverse"])
def test_transforms_of_torch_func(transform):
    x, rpb = small_inputs()

    def loss(x):
        return small_call(x, rpb).square().sum()

    if transform == "grad":
        leaf = x.clone().requires_grad_()
        got, want = torch.func.grad(loss)(x), torch.autograd.grad(loss(leaf), leaf)[0]
    else:
        want = torch.autograd.functional.hessian(loss, x)
        got = (torch.func.hessian(loss) if transform == "hessian" else torch.func.jacrev(torch.func.grad(loss)))(x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("batched_bias", [False, True])
def test_vmap_is_a_loop(batched_bias):
    x, rpb = torch.randn(3, 1, 6, 2, 4), torch.randn(3, 2, 5)
    in_dims = (0, 0 if batched_bias else None)
    got = torch.vmap(small_call, in_dims=in_dims)(x, rpb if batched_bias else rpb[0])
    want = torch.stack([small_call(x[i], rpb[i if batched_bias else 0]) for i in range(3)])
    torch.testing.assert_close(got, want)


def test_compiled_whole():
    x, rpb = (t.float() for t in small_inputs())
    compiled = torch.compile(small_call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, rpb), small_call(x, rpb))
