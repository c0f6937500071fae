"""Kernels of tiles of classes, against the oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from classes_calls import call, circle, of
from closeness import assert_as_close_as_torch, gradients_of, random_gradients
from vicinal.backends import triton as backend
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.triton import bias_gradient, classes
from vicinal.backends.triton.bias_gradient import entries_at_once
from vicinal.backends.triton.classes import classes_of, is_ahead
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.kernels.classes import Alike
from vicinal.backends.triton.launch import Prepared, tiles_of
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference

device = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.usefixtures("interpreting", "classes_everywhere")


CASES = [
    pytest.param(call((33,), of(1, 5), batch=2), (16,), (16,), id="1d"),
    pytest.param(call((39,), of(1, 9, is_causal=True), heads=2), (16,), (16,), id="causal-gqa"),
    pytest.param(call((47,), of(1, 6, dilation=2, boundary="clip"), additional=3), (16,), (16,), id="clip-uneven"),
    pytest.param(call((5, 9), of(2, (2, 4), dilation=(2, 1))), (2, 8), (1, 16), id="2d-uneven"),
    pytest.param(call((1, 4, 6), of(3, (1, 3, 4))), (1, 4, 4), (1, 1, 32), id="3d"),
    pytest.param(call((3, 9), of(2, (2, 4)), heads=2, batch=3, bias=False), (2, 8), (1, 16), id="masks"),
    pytest.param(circle((45,), of(1, 6, boundary="wrap"), heads=2), (16,), (16,), id="circle"),
    pytest.param(circle((5, 16), of(2, (4, 6), boundary=("shift", "wrap")), batch=2), (2, 8), (1, 16), id="cylinder"),
    pytest.param(circle((4, 11), of(2, (4, 3), boundary="wrap"), additional=3), (2, 8), (1, 16), id="torus"),
    pytest.param(
        call((5, 9), of(2, (2, 4), dilation=(2, 1), is_causal=(True, False), boundary=("shift", "clip")), bias=False),
        (2, 8),
        (1, 16),
        id="masks-uneven",
    ),
    pytest.param(call((2, 4, 6), of(3, (2, 3, 4)), additional=3, bias=False), (2, 2, 4), (1, 1, 32), id="masks-3d"),
]


def test_start_tiles_without_a_bias(monkeypatch):
    monkeypatch.setattr(classes, "MASKED", set())
    drawn, tile, step = next(case.values for case in CASES if case.id == "masks")
    test_against_the_oracle(drawn, tile, step, monkeypatch)


@pytest.mark.parametrize(("drawn", "tile", "step"), CASES)
def test_against_the_oracle(drawn, tile, step, monkeypatch):
    against_the_oracle(drawn.inputs(torch.float32, device), drawn.neighborhoods, tile, step, monkeypatch)


@pytest.mark.parametrize(
    ("drawn", "tile", "step"),
    [
        *(case for case in CASES if case.id.startswith("masks")),
        pytest.param(call((9, 21), of(2, (4, 7)), heads=4, kv_heads=2, bias=False), (2, 8), (1, 16), id="gqa"),
    ],
)
@pytest.mark.parametrize("alike", [True, False])
def test_scores_a_step_ahead(drawn, tile, step, alike, monkeypatch):
    """Of boxes of one step, of several, and of steps that are not full."""
    monkeypatch.setattr(classes, "MANY_STEPS", dict.fromkeys((1, 2, 3), 1))
    inputs = drawn.inputs(torch.float32, device)
    if not alike:
        inputs = inputs._replace(value=inputs.value.transpose(1, 2).contiguous().transpose(1, 2))
    assert is_ahead(
        classes_of(Problem.of(inputs, drawn.neighborhoods, 0.3), tile, step, False), Tiling(tile, step), True
    )
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    results = type(backend.BACKEND)().forward(problem, Tiling(tile, step, of_classes=True), inputs)
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, 0.3)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_several_heads_of_a_program(kv_heads, monkeypatch):
    """On three axes, of the only batch entry, with fewer key heads too."""
    drawn = call((2, 4, 6), of(3, (2, 3, 4)), heads=4, kv_heads=kv_heads, bias=False)
    inputs = drawn.inputs(torch.float32, device)
    problem, tiling = Problem.of(inputs, drawn.neighborhoods, 0.3), Tiling((2, 2, 4), (1, 1, 32), of_classes=True)
    grids = []
    run = Launch.__call__
    monkeypatch.setattr(Launch, "__call__", lambda s, *a: (grids.append(s.grid[0]), run(s, *a)))
    results = type(backend.BACKEND)().forward(problem, tiling, inputs)
    assert grids[-1] == 2 * tiles_of(problem, tiling)
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, 0.3)


def against_the_oracle(inputs, neighborhoods, tile, step, monkeypatch, abreast=1):
    launched = []
    run = Launch.__call__
    monkeypatch.setattr(Launch, "__call__", lambda s, *a: (launched.append(s.kernel.__name__), run(s, *a)))
    problem = Problem.of(inputs, neighborhoods, 0.3)
    fresh = type(backend.BACKEND)()  # nothing is prepared with other limits
    tiling = Tiling(tile, step, of_classes=True)
    output, lse = fresh.forward(problem, tiling, inputs)
    grad_output, grad_lse = random_gradients(output, lse, 1)
    config = GradientTilings(replace(tiling, abreast=abreast), tiling)
    grads = gradients_of(fresh, problem, config, inputs, output, lse, grad_output, grad_lse)
    names = ("forward", "query_gradient", "key_value_gradient")
    masked = classes.MASKED and not (problem.has_rpb or problem.is_part or problem.goes_around)
    expected = {"masks_kernel" if masked else "starts_kernel", *(f"{name}_of_classes_kernel" for name in names)}
    if problem.has_rpb:
        expected.add("bias_gradient_of_classes_kernel")
    assert set(launched) - {"additional_gradient_kernel"} == expected
    results = [output, lse, *(g for g in grads if g is not None)]
    assert_as_close_as_torch(results, inputs, neighborhoods, 0.3, grad_output, grad_lse)


@pytest.mark.parametrize(
    ("drawn", "tile", "step", "abreast"),
    [
        pytest.param(call((33,), of(1, 5), heads=2, batch=4), (16,), (16,), 4, id="1d"),
        pytest.param(
            call((5, 9), of(2, (2, 4)), heads=2, kv_heads=1, batch=2, additional=3), (2, 8), (1, 16), 2, id="gqa"
        ),
        pytest.param(call((20,), of(1, 5), heads=3, batch=2, bias=False), (16,), (16,), 2, id="without-a-bias"),
    ],
)
def test_batch_entries_abreast(drawn, tile, step, abreast, monkeypatch):
    against_the_oracle(drawn.inputs(torch.float32, device), drawn.neighborhoods, tile, step, monkeypatch, abreast)


def test_batch_entries_abreast_overflow_no_sooner_than_one():
    """Scores' gradients of 20,000 in float16: four of them are more than it holds, what is left of eight is not."""
    drawn = call((20,), of(1, 5), batch=8)
    inputs = drawn.inputs(torch.float32, device)
    alike = [t if t is inputs.rpb else t[:1].expand_as(t).clone() for t in (*inputs[:3], inputs.rpb)]
    inputs = Inputs(*(t.half() for t in alike[:3]), rpb=alike[3].half())
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    leaves = [t.double().requires_grad_() for t in (*inputs[:3], inputs.rpb)]
    truth, _ = reference(Inputs(*leaves[:3], rpb=leaves[3]), drawn.neighborhoods, 0.3)
    upstream = torch.zeros_like(inputs.query)
    upstream[:4, 7] = 1.0
    upstream[4:, 7] = -0.5
    (unit,) = torch.autograd.grad(truth, leaves[3], upstream.double(), retain_graph=True)
    upstream *= 40_000 / float(unit.abs().max())  # as large as the bias gradient is to be
    (expected,) = torch.autograd.grad(truth, leaves[3], upstream.double())
    fresh, tiling = type(backend.BACKEND)(), Tiling((16,), (16,), of_classes=True)
    output, lse = fresh.forward(problem, tiling, inputs)
    config, wanted = GradientTilings(replace(tiling, abreast=4), tiling), Wanted(*[False] * 5, True)
    grads = fresh.backward(problem, config, inputs, Upstream(output, lse, upstream, None), wanted)
    torch.testing.assert_close(grads.rpb.double(), expected, rtol=0, atol=0.002 * 40_000)


@pytest.mark.parametrize("bias", [True, False])
def test_values_unlike_keys_and_queries_unlike_outputs(bias, monkeypatch):
    drawn = call((5, 9), of(2, (2, 4)), heads=2, batch=2, bias=bias)

    inputs = drawn.inputs(torch.float32, device)
    query, value = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (inputs.query, inputs.value))
    inputs = inputs._replace(query=query, value=value)
    assert Prepared.of(Problem.of(inputs, drawn.neighborhoods, 0.3), inputs).alike == Alike(False, False)
    against_the_oracle(inputs, drawn.neighborhoods, (2, 8), (1, 16), monkeypatch)


def test_large_scores_outside_a_window_change_nothing():
    """Masks are by minus infinity, however they are multiplied."""
    drawn = call((9, 9), of(2, 3), bias=False)
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    tiling = Tiling((4, 4), (1, 16), of_classes=True)
    expected = type(backend.BACKEND)().forward(problem, tiling, inputs)
    inputs.key[:, 8] *= 1e30
    inputs.value[:, 8] *= 1e30
    results = type(backend.BACKEND)().forward(problem, tiling, inputs)
    for one, other in zip(results, expected):
        assert torch.equal(one[:, :7], other[:, :7])


@pytest.mark.parametrize("names", ["rpb", "value rpb", "key", "query"])
def test_gradients_that_are_wanted_alone(names):
    drawn = call((20,), of(1, 5), batch=2)
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    fresh, tiling = type(backend.BACKEND)(), Tiling((16,), (16,), of_classes=True)
    output, lse = fresh.forward(problem, tiling, inputs)
    upstream = Upstream(output, lse, random_gradients(output, lse, 1)[0], None)
    config = GradientTilings(tiling, tiling)
    every = fresh.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    wanted = Wanted(*(field in names.split() for field in Wanted._fields))
    some = fresh.backward(problem, config, inputs, upstream, wanted)
    for name, wants, one, other in zip(Wanted._fields, wanted, some, every):
        assert (one is not None) == wants, name
        if wants:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("batch", "most", "abreast"), [(5, 3, 1), (6, 4, 2)])
def test_a_few_batch_entries_at_a_time(batch, most, abreast, monkeypatch):
    """Of the bias gradient, where there is no room for all scores' gradients."""
    drawn = call((5, 9), of(2, (2, 4), dilation=(2, 1)), batch=batch)
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    tiling = Tiling((2, 8), (1, 16), of_classes=True)
    output, lse = type(backend.BACKEND)().forward(problem, tiling, inputs)
    upstream = Upstream(output, lse, *random_gradients(output, lse, 1))
    config = GradientTilings(replace(tiling, abreast=abreast), tiling)
    wanted = Wanted(True, False, False, False, False, True)
    expected = type(backend.BACKEND)().backward(problem, config, inputs, upstream, wanted)
    own = classes_of(problem, tiling.tile, tiling.step, False)
    monkeypatch.setattr(
        bias_gradient, "SCRATCH", most // abreast * 4 * tiles_of(problem, tiling) * own.steps * 2 * 8 * 16
    )
    assert entries_at_once(problem, config.query, own) == most
    grads = type(backend.BACKEND)().backward(problem, config, inputs, upstream, wanted)
    assert torch.equal(grads.query, expected.query)
    torch.testing.assert_close(grads.rpb, expected.rpb, rtol=1e-5, atol=1e-5)


def test_what_is_no_number_in_the_table_stays_at_its_offset():
    """Infinite at an offset that only some queries have: no other query's result changes."""
    drawn = call((40,), of(1, 5))
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    tiling = Tiling((16,), (16,), of_classes=True)
    expected, _ = type(backend.BACKEND)().forward(problem, tiling, inputs)
    inputs.rpb[0, 0] = float("nan")  # offset -4: of the last query's first key, and the last but one's
    output, _ = type(backend.BACKEND)().forward(problem, tiling, inputs)
    assert torch.equal(output[:, :39], expected[:, :39])
    assert output[:, 39].isnan().all()
