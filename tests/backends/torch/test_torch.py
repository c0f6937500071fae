"""The torch backend against the oracle: every tiling and feature, precision, memory, rows without a finite score."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from closeness import assert_at_most_a_fifth_above_torch, gradients, gradients_of, random_gradients
from strategies import Call, any_layouts, calls, whole
from vicinal.backends.torch import BACKEND, TorchConfig, tiles
from vicinal.backends.torch.formulas import attend
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def run(inputs, neighborhoods, scale, tile=None, with_grad_lse=True):
    """Output, log-sum-exp and gradients; what came from above."""
    problem = Problem.of(inputs, neighborhoods, scale)
    config = BACKEND.configs(problem, "forward")[0] if tile is None else TorchConfig(tile, tile)
    output, lse = BACKEND.forward(problem, config, inputs)
    above = random_gradients(output, lse, 0, with_grad_lse)
    grads = gradients_of(BACKEND, problem, config, inputs, output, lse, *above)
    return [output, lse, *(g for g in grads if g is not None)], above


@settings(max_examples=150)
@given(
    call=calls(),
    layouts=any_layouts(),
    budget=st.sampled_from([1, 300, 1 << 20]),
    size=st.none() | st.integers(1, 5),
    with_grad_lse=st.booleans(),
)
def test_random_problems_are_exact(call, layouts, budget, size, with_grad_lse):
    inputs = layouts.inputs(call.inputs())
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    config = BACKEND.configs(problem, "forward")[0]
    if size is not None:
        config = replace(config, query_tile=(size,) * problem.rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiles.SCORES_PER_CHUNK, "cpu", budget)
        output, lse = BACKEND.forward(problem, config, inputs)
        upstream = layouts.upstream(Upstream(output, lse, *random_gradients(output, lse, call.seed, with_grad_lse)))
        grads = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    found = [output, lse, *(g for g in grads if g is not None)]
    truth = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, *upstream[2:])
    torch.testing.assert_close(found, truth, **EXACT)
    assert all(t.is_contiguous() for t in found)


@pytest.mark.parametrize(
    "call",
    [whole(24), whole(8, 3), whole(4, 5), whole(30, boundary="clip"), whole(30, causal=True), whole(6, stride=6)],
    ids=["self attention", "whole groups", "groups of two lengths", "clipped", "causal beyond the axis", "blocked"],
)
def test_special_windows(call):
    inputs = call.inputs()
    found, above = run(inputs, call.neighborhoods, call.scale)
    truth = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, *above)
    torch.testing.assert_close(found, truth, **EXACT)


@settings(max_examples=40)
@given(call=calls(), data=st.data())
def test_only_what_is_wanted_is_found_and_it_is_the_same(call, data):
    inputs = call.inputs()
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    config = BACKEND.configs(problem, "backward")[0]
    output, lse = BACKEND.forward(problem, config, inputs)
    upstream = Upstream(output, lse, *random_gradients(output, lse, call.seed))
    wanted = Wanted(*(there and data.draw(st.booleans()) for there in Wanted.of(inputs)))
    every = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    some = BACKEND.backward(problem, config, inputs, upstream, wanted)
    assert [g is not None for g in some.numbers] == list(wanted)
    for one, all_ in zip(some, every, strict=True):
        if one is not None:
            torch.testing.assert_close(one, all_, **EXACT)


class Seen(TorchDispatchMode):
    """Operators by how often they are called, and the most bytes in any one tensor that they return."""

    def __init__(self):
        super().__init__()
        self.count, self.bytes = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name().split("::")[1]
        self.count[name] = self.count.get(name, 0) + 1
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(
    ("wanted", "products"),
    [("query", 3), ("key", 3), ("value", 2), ("rpb", 2), ("query key value rpb", 5)],
)
def test_what_is_not_wanted_is_not_computed(wanted, products):
    call = Call((Neighborhood((Axis(5),)),), (40,), 1, 2, 2, 4, 4, 0, True, 0)
    inputs = call.inputs(torch.float32)
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    config = BACKEND.configs(problem, "backward")[0]
    output, lse = BACKEND.forward(problem, config, inputs)
    flags = Wanted(*(name in wanted.split() for name in Wanted._fields))
    with Seen() as seen:
        BACKEND.backward(problem, config, inputs, Upstream(output, lse, output), flags)
    assert seen.count["bmm"] == products


@pytest.mark.parametrize(
    ("lengths", "neighborhood"),
    [
        ((65536,), Neighborhood((Axis(129),))),
        ((256, 256), Neighborhood((Axis(5), Axis(7)))),
        ((16, 64, 64), Neighborhood((Axis(3, causal=True), Axis(3), Axis(3, dilation=2)))),
    ],
    ids=["1-D", "2-D", "3-D"],
)
def test_memory_grows_with_tokens_only(lengths, neighborhood):
    call = Call((neighborhood,), lengths, 1, 1, 1, 8, 8, 0, False, 0)
    inputs = call.inputs(torch.float32)
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    config = BACKEND.configs(problem, "forward")[0]
    with Seen() as seen:
        output, lse = BACKEND.forward(problem, config, inputs)
        gradients_of(BACKEND, problem, config, inputs, output, lse, output)
    # The scores of these problems, dense, are 16 GB.
    assert seen.bytes <= 2 * inputs.query.numel() * 4 + 8 * tiles.SCORES_PER_CHUNK["cpu"]


def test_a_plan_takes_no_time_per_token():
    neighborhood = Neighborhood((Axis(127, stride=3, dilation=2),))
    longest = []
    for length in (10_000, 10_000_000):
        with Seen() as seen:
            axis = tiles.AxisTiles(neighborhood.axes[0], length, 64, torch.device("meta"))
        longest.append((sum(seen.count.values()), axis.box, tiles.tile_of(neighborhood, (length,))))
    assert longest[0] == longest[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("extra", [0, 7], ids=["window", "window and additional keys"])
def test_error_is_at_most_a_fifth_above_torch_s(dtype, extra):
    call = Call((Neighborhood((Axis(7), Axis(9))),), (20, 23), 2, 4, 2, 32, 32, extra, False, 1)
    inputs = call.inputs(dtype)
    found, (grad, _) = run(inputs, call.neighborhoods, call.scale, with_grad_lse=False)
    assert_at_most_a_fifth_above_torch(found, inputs, call.neighborhoods, call.scale, grad)


def test_half_precision_beyond_its_range_inside():
    # Scores of 1e6 would overflow float16: they must be held in float32.
    inputs = Inputs(*(torch.full((1, 8, 1, 4), value, dtype=torch.float16) for value in (500.0, 500.0, 1.0)))
    found, _ = run(inputs, (Neighborhood((Axis(3),)),), 1.0)
    torch.testing.assert_close(found[0], inputs.value)
    torch.testing.assert_close(found[1], torch.full((1, 8, 1), 1e6) + torch.tensor(3.0).log())


@pytest.mark.parametrize("has_rpb", [False, True])
def test_empty_batch(has_rpb):
    call = Call((Neighborhood((Axis(3), Axis(2))),), (5, 4), 0, 2, 1, 4, 6, 2, has_rpb, 0)
    inputs = call.inputs()
    found, _ = run(inputs, call.neighborhoods, call.scale)
    shapes = [(0, 5, 4, 2, 6), (0, 5, 4, 2), *(tuple(t.shape) for t in inputs if t is not None)]
    assert [tuple(t.shape) for t in found] == shapes
    assert all(t.abs().sum() == 0 for t in found)


def test_unsupported_says_why():
    tensor = torch.zeros(1, 4, 1, 4, dtype=torch.complex64)
    problem = Problem.of(Inputs(tensor, tensor, tensor), (Neighborhood((Axis(3),)),), 1.0)
    assert "complex64" in BACKEND.unsupported(problem)


def no_finite_score(additional):
    """Inputs of which every second query has no finite score in its window, of two dilation groups."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 9, 1, 3, dtype=torch.float64) for _ in range(3))
    extra = (torch.randn(1, 2, 1, 3, dtype=torch.float64) for _ in range(2)) if additional else (None, None)
    rpb = torch.randn(1, 5, dtype=torch.float64)
    k[:, ::2, :, 0], q[..., 0] = -float("inf"), q[..., 0].abs() + 0.1
    return Inputs(q, k, v, *extra, rpb)


@pytest.mark.parametrize("additional", [False, True])
def test_rows_without_a_finite_score_have_no_influence_to_any_order(additional):
    rows = torch.arange(9) % 2 == 0
    neighborhoods = [Neighborhood.of(1, 3, dilation=2)]
    inputs = no_finite_score(additional)
    leaves = Inputs(*(None if t is None else t.clone().requires_grad_() for t in inputs))
    output, lse = attend(leaves, neighborhoods, 1.0)
    if not additional:
        assert torch.equal(output[:, rows], torch.zeros_like(output[:, rows]))
        assert torch.equal(lse[:, rows], torch.full_like(lse[:, rows], -float("inf")))
    assert output.isfinite().all()
    finite = lse.masked_fill(lse == -float("inf"), 0).square().sum() + output.square().sum()
    # The keys themselves are infinite: derivatives in the query and the bias would be infinite times zero.
    places = [leaves.value, *(() if not additional else (leaves.additional_keys, leaves.additional_values))]
    grads = torch.autograd.grad(finite, places, create_graph=True)
    assert all(g.isfinite().all() for g in grads)
    seconds = torch.autograd.grad(sum(g.square().sum() for g in grads), places)
    assert all(g.isfinite().all() for g in seconds)
    if not additional:
        assert not grads[0][:, rows].any()


def test_a_bias_of_minus_infinity_gives_zero_gradients_to_second_order():
    neighborhoods = [Neighborhood.of(1, 3)]
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 7, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    rpb = torch.randn(2, 5, dtype=torch.float64)
    rpb[0] = -float("inf")
    rpb.requires_grad_()
    output, lse = attend(Inputs(q, k, v, rpb=rpb), neighborhoods, 0.5)
    assert torch.equal(lse[..., 0], torch.full((1, 7), -float("inf"), dtype=torch.float64))
    leaves = (q, k, v, rpb)
    grads = torch.autograd.grad(output.sin().sum() + lse[..., 1].sin().sum(), leaves, create_graph=True)
    seconds = torch.autograd.grad(sum(g.sin().sum() for g in grads), leaves)
    for grad in (*grads, *seconds):
        own = grad[0] if grad.shape[0] == 2 else grad[:, :, 0]
        assert not own.any()
        assert grad.isfinite().all()
        assert grad.any()
    primals = tuple(t.detach() for t in leaves)
    tangents = tuple(torch.randn_like(t) for t in primals)
    _, (d_output, d_lse) = torch.func.jvp(
        lambda *x: attend(Inputs(*x[:3], rpb=x[3]), neighborhoods, 0.5), primals, tangents
    )
    assert not d_output[..., 0, :].any()
    assert d_output.isfinite().all()
    assert not d_lse[..., 0].any()


def test_nan_stays_in_its_batch_element_head_and_dilation_group():
    torch.manual_seed(0)
    q, k, v, above = (torch.randn(2, 12, 2, 4) for _ in range(4))
    for tensor in (q, k, v, above):
        tensor[1, 3, 0] = float("nan")
    found, _ = run_with(above, Inputs(q, k, v), [Neighborhood.of(1, 3, dilation=2)])
    for tensor in found:
        assert tensor[0].isfinite().all()
        assert tensor[1, :, 1].isfinite().all()
        assert tensor[1, ::2].isfinite().all()
        assert tensor[1, 3, 0].isnan().any()


def run_with(above, inputs, neighborhoods):
    problem = Problem.of(inputs, neighborhoods, 0.5)
    config = BACKEND.configs(problem, "forward")[0]
    output, lse = BACKEND.forward(problem, config, inputs)
    grads = gradients_of(BACKEND, problem, config, inputs, output, lse, above)
    return [output, *(g for g in grads if g is not None)], lse
