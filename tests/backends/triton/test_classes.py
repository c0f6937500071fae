"""Kernels of classes of tiles against the oracle, and which classes there are."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

import strategies
from closeness import assert_as_close_as_torch, gradients_of, random_gradients
from vicinal.backends import triton as backend
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.triton import bias_gradient, classes
from vicinal.backends.triton.bias_gradient import entries_at_once
from vicinal.backends.triton.classes import classes_of, have_classes, is_ahead
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.estimate import Kernel
from vicinal.backends.triton.kernels.classes import Alike
from vicinal.backends.triton.launch import Prepared, tiles_of
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import alike, key_interval, query_interval
from vicinal.geometry.unroll import around
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference

of = Neighborhood.of
device = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.usefixtures("interpreting")


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(classes, "LEAST_TILES", 0)
    monkeypatch.setattr(classes, "ENOUGH_PROGRAMS", 1)  # so programs have several batch entries each
    monkeypatch.setattr(bias_gradient, "ENOUGH_OF_CLASSES", 1)  # or several tiles
    monkeypatch.setattr(classes, "MASKED", {(kernel, 32, 4) for kernel in get_args(Kernel)})


def call(lengths, neighborhood, heads=1, kv_heads=1, additional=0, batch=1, bias=True):
    return strategies.Call((neighborhood.resolve(lengths),), lengths, batch, heads, kv_heads, 8, 8, additional, bias, 0)


def circle(lengths, neighborhood, **more):
    """Of circles, read where they are."""
    drawn = call(lengths, neighborhood, bias=False, **more)
    return replace(drawn, neighborhoods=around(drawn.neighborhoods, lengths))


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


def test_large_windows_forward_and_many_steps(monkeypatch):
    """Tiles of classes where scores start from masks, forward only, and a step ahead from many steps on."""
    monkeypatch.setattr(classes, "LEAST_TILES", 4)
    monkeypatch.setattr(classes, "MASKED", {("forward", 64, 2), ("query", 64, 2)})
    tile, step = (8, 8), (1, 64)
    for window, steps, ahead in ((13, 7, False), (33, 25, True)):
        neighborhood = of(2, window).resolve((128, 128))
        problem = Problem(4, (128, 128), 8, 8, 64, 64, torch.bfloat16, torch.device("cpu"), (neighborhood,), 0.125)
        found = classes_of(problem, tile, step, False)
        assert found.steps == steps
        assert is_ahead(found, Tiling(tile, step), True) is ahead
        assert have_classes(problem, Tiling(tile, step, of_classes=True), "forward")
        assert have_classes(problem, Tiling(tile, step, of_classes=True), "query") is not ahead
    assert not is_ahead(found, Tiling(tile, step, warps=1), True)
    assert not is_ahead(found, Tiling(tile, step), False)


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


MASKED = [
    pytest.param(call((20,), of(1, 5), batch=2, bias=False), (8,), (16,), "some", id="1d"),
    pytest.param(call((20,), of(1, 9, is_causal=True), heads=2, bias=False), (8,), (16,), "some", id="causal-gqa"),
    pytest.param(call((23,), of(1, 6, dilation=2, boundary="clip"), bias=False), (8,), (16,), "most", id="clip-uneven"),
    pytest.param(call((2, 4, 6), of(3, (2, 3, 4)), additional=3, bias=False), (2, 2, 4), (1, 1, 32), "some", id="3d"),
    *(
        pytest.param(call((3, 9), of(2, (2, 4), dilation=(1, 2)), bias=False), (2, 8), (1, 16), masked, id=masked)
        for masked in ("nothing", "all")
    ),
]
SHARES = {"nothing": 0.0, "some": 0.4, "most": 0.97, "all": 1.0}


def under_a_mask(drawn, masked):
    """Inputs with a key mask of which some share is masked."""
    inputs = drawn.inputs(torch.float32, device)
    generator = torch.Generator().manual_seed(0)
    key_mask = torch.rand(inputs.query.shape[:-2], generator=generator) >= SHARES[masked]
    return inputs._replace(key_mask=key_mask.to(device))


@pytest.mark.parametrize(("drawn", "tile", "step", "masked"), MASKED)
def test_under_a_key_mask(drawn, tile, step, masked, monkeypatch):
    launched = []
    run = Launch.__call__
    monkeypatch.setattr(Launch, "__call__", lambda s, *a: (launched.append(s.kernel.__name__), run(s, *a)))
    inputs = under_a_mask(drawn, masked)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    tiling = Tiling(tile, step, of_classes=True)
    assert all(have_classes(problem, tiling, kernel) for kernel in get_args(Kernel))
    fresh = type(backend.BACKEND)()
    output, lse = fresh.forward(problem, tiling, inputs)
    above = random_gradients(output, lse, 1)
    grads = gradients_of(fresh, problem, GradientTilings(tiling, tiling), inputs, output, lse, *above)
    once = {"masks_kernel", "additional_gradient_kernel"}  # the first is kept from call to call
    names = ("forward", "query_gradient", "key_value_gradient")
    expected = {"kept_kernel", "answered_kernel", *(f"{name}_of_classes_kernel" for name in names)}
    assert expected == set(launched) - once
    results = [output, lse, *(g for g in grads if g is not None)]
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, 0.3, *above)
    gone = ~inputs.key_mask[..., None, None]
    assert not any(g[gone.expand(g.shape)].any() for g in (grads.key, grads.value))


@pytest.mark.parametrize("heads", ["all", "the last"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_masked_tokens_are_never_numbers(kv_heads, heads):
    """Of keys and values, of queries of all heads or of one, and what comes from above for these."""
    drawn = call((3, 9), of(2, (2, 4)), heads=2, kv_heads=kv_heads, bias=False)
    inputs = under_a_mask(drawn, "some")
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    fresh, tiling = type(backend.BACKEND)(), Tiling((2, 8), (1, 16), of_classes=True)
    config = GradientTilings(tiling, tiling)
    gone = ~inputs.key_mask[..., None, None]
    silent = gone & torch.tensor([heads == "all", True], device=device)[:, None]  # queries
    holes = inputs._replace(query=inputs.query.masked_fill(silent, torch.nan))
    holes = holes._replace(**{n: getattr(inputs, n).masked_fill(gone, torch.nan) for n in ("key", "value")})
    output, lse = fresh.forward(problem, tiling, inputs)
    found, found_lse = fresh.forward(problem, tiling, holes)
    assert torch.equal(found, output.masked_fill(silent, 0.0))
    assert torch.equal(found_lse, lse.masked_fill(silent[..., 0], -torch.inf))
    # Queries that are no numbers have no answer: as if nothing came from above for them.
    above = random_gradients(output, lse, 1)
    nothing, no_number = (
        (above[0].masked_fill(silent, fill), above[1].masked_fill(silent[..., 0], fill)) for fill in (0.0, torch.nan)
    )
    expected = gradients_of(fresh, problem, config, inputs, output, lse, *nothing)
    given = gradients_of(fresh, problem, config, holes, found, found_lse, *no_number)
    torch.testing.assert_close(given.query, expected.query.masked_fill(silent, 0.0))
    torch.testing.assert_close(given.key, expected.key)
    torch.testing.assert_close(given.value, expected.value)
    if heads == "all":  # also where delta is computed alone
        wanted = Wanted(False, True, False, False, False, False)
        keys = fresh.backward(problem, config, holes, Upstream(found, found_lse, *no_number), wanted)
        torch.testing.assert_close(keys.key, expected.key)


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


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    "axis", [Axis(5), Axis(8), Axis(4, causal=True), Axis(6, boundary="clip"), Axis(3, dilation=3)]
)
def test_tiles_of_a_class_are_alike(axis, inverse):
    """Tile by tile: where windows and boxes are, from the tile's first token on."""
    for length in range(24, 60, 5):
        for tile in (2, 4, 16):
            problem = _problem(axis, length)
            own_classes = classes_of(problem, (tile,), (16,), inverse)
            found: dict[int, tuple] = {}
            for n, kind in enumerate(alike(axis, length)):
                tiles = -(-kind.length // tile)
                for place in range(tiles):
                    own = own_classes.before[0] if place >= own_classes.before[0] else place
                    if place >= own_classes.before[0] and tiles - 1 - place < own_classes.after[0]:
                        own = own_classes.before[0] + 1 + tiles - 1 - place
                    own += n * (own_classes.before[0] + 1 + own_classes.after[0])
                    assert own < own_classes.counts[0]
                    what = seen(axis, kind.length, place * tile, tile, inverse)
                    assert found.setdefault(own, what) == what


def _problem(axis, length):
    drawn = call((length,), Neighborhood((axis,)))
    return Problem.of(drawn.inputs(torch.float32, "cpu"), drawn.neighborhoods, 1.0)


def seen(axis, length, first, tile, inverse):
    """What a tile's bias tiles depend on."""
    tokens = range(first, min(first + tile, length))
    interval = query_interval if inverse else key_interval
    start, stop = interval(axis, length, (tokens[0], tokens[-1] + 1))
    return start - first, stop - start, [tuple(n - first for n in interval(axis, length, (t, t + 1))) for t in tokens]


def test_only_where_tiles_share_them(monkeypatch):
    monkeypatch.setattr(classes, "LEAST_TILES", 4)
    drawn = call((40,), of(1, 5))
    few = Problem.of(drawn.inputs(torch.float32, "cpu"), drawn.neighborhoods, 1.0)
    tiling = Tiling((16,), (16,), of_classes=True)
    assert not have_classes(few, tiling, "forward")
    many = replace(few, batch=64)
    assert have_classes(many, tiling, "forward")
    assert not have_classes(replace(many, scale=-1.0), tiling, "forward")
    assert not have_classes(replace(many, scale=1e-39), tiling, "forward")
