"""Bias tiles, and the bias gradient of classes of tiles, against the oracle."""

from __future__ import annotations

from math import prod

import pytest
import torch

import strategies
from closeness import assert_as_close_as_torch, gradients_of, random_gradients
from vicinal.backends import triton as backend
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.triton import bias, bias_gradient
from vicinal.backends.triton.bias import BiasTiles, classes_of
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.launch import Prepared
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import alike, key_interval, query_interval
from vicinal.problem import Problem

of = Neighborhood.of
device = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.usefixtures("interpreting")


@pytest.fixture(autouse=True)
def always_laid_out(monkeypatch):
    monkeypatch.setattr(bias, "MAX_BYTES_OF_A_HEAD", bias.MAX_BYTES)
    monkeypatch.setattr(bias, "LEAST_TILES", 0)
    monkeypatch.setattr(bias_gradient, "ENOUGH_OF_CLASSES", 1)  # so programs have many pairs of tiles each


def call(lengths, neighborhood, heads=1, kv_heads=1, additional=0, batch=1):
    return strategies.Call((neighborhood.resolve(lengths),), lengths, batch, heads, kv_heads, 8, 8, additional, True, 0)


@pytest.mark.parametrize(
    ("drawn", "tile", "step", "together"),
    [
        pytest.param(call((39,), of(1, 5), batch=2), (16,), (16,), True, id="1d"),
        pytest.param(call((39,), of(1, 9, is_causal=True), heads=2), (16,), (16,), True, id="causal-gqa"),
        pytest.param(
            call((71,), of(1, 6, dilation=2, boundary="clip"), additional=3), (16,), (16,), False, id="clip-uneven"
        ),
        pytest.param(call((5, 17), of(2, (2, 4), dilation=(2, 1))), (2, 8), (4, 4), False, id="2d-uneven"),
        pytest.param(call((1, 4, 6), of(3, (1, 3, 4))), (1, 4, 4), (1, 2, 8), True, id="3d"),
    ],
)
def test_against_the_oracle(drawn, tile, step, together, monkeypatch):
    launched = []
    run = Launch.__call__
    monkeypatch.setattr(Launch, "__call__", lambda s, *a: (launched.append(s.kernel.__name__), run(s, *a)))
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    fresh = type(backend.BACKEND)()  # nothing is prepared with other limits
    tiling = Tiling(tile, step)
    output, lse = fresh.forward(problem, tiling, inputs)
    grad_output, grad_lse = random_gradients(output, lse, 1)
    config = GradientTilings(tiling, tiling, together)
    grads = gradients_of(fresh, problem, config, inputs, output, lse, grad_output, grad_lse)
    assert launched.count("bias_tiles_kernel") == 3
    assert launched.count("bias_gradient_of_classes_kernel") == 1
    results = [output, lse, *(g for g in grads if g is not None)]
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, 0.3, grad_output, grad_lse)


def test_what_is_no_number_in_the_table_stays_at_its_offset():
    """Infinite at an offset that only some queries have: no other query's result changes."""
    drawn = call((40,), of(1, 5))
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    expected, _ = type(backend.BACKEND)().forward(problem, Tiling((16,), (16,)), inputs)
    inputs.rpb[0, 0] = float("nan")  # offset -4: of the last query's first key, and the last but one's
    output, _ = type(backend.BACKEND)().forward(problem, Tiling((16,), (16,)), inputs)
    assert torch.equal(output[:, :39], expected[:, :39])
    assert output[:, 39].isnan().all()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    "axis", [Axis(5), Axis(8), Axis(4, causal=True), Axis(6, boundary="clip"), Axis(3, dilation=3)]
)
def test_tiles_of_a_class_are_alike(axis, inverse):
    """Tile by tile: where windows and boxes are, from the tile's first token on."""
    for length in range(24, 60, 5):
        for tile, step in ((4, 16), (16, 4), (2, 8)):
            problem = _problem(axis, length)
            classes = classes_of(problem, Tiling((tile,), (step,)), inverse)
            found: dict[int, tuple] = {}
            for n, kind in enumerate(alike(axis, length)):
                tiles = -(-kind.length // tile)
                for place in range(tiles):
                    own = classes.before[0] if place >= classes.before[0] else place
                    if place >= classes.before[0] and tiles - 1 - place < classes.after[0]:
                        own = classes.before[0] + 1 + tiles - 1 - place
                    own += n * (classes.before[0] + 1 + classes.after[0])
                    assert own < classes.counts[0]
                    assert found.setdefault(own, seen(axis, kind.length, place * tile, tile, step, inverse)) == seen(
                        axis, kind.length, place * tile, tile, step, inverse
                    )


def _problem(axis, length):
    drawn = call((length,), Neighborhood((axis,)))
    return Problem.of(drawn.inputs(torch.float32, "cpu"), drawn.neighborhoods, 1.0)


def seen(axis, length, first, tile, step, inverse):
    """What a tile's bias tiles depend on."""
    tokens = range(first, min(first + tile, length))
    interval = query_interval if inverse else key_interval
    start, stop = interval(axis, length, (tokens[0], tokens[-1] + 1))
    covered = -(-(stop - start) // step) * step
    begin = max(0, min(start, length - covered))
    return begin - first, covered, [tuple(n - first for n in interval(axis, length, (t, t + 1))) for t in tokens]


def test_laid_out_only_where_tiles_share_them(monkeypatch):
    monkeypatch.setattr(bias, "LEAST_TILES", 4)
    drawn = call((40,), of(1, 5))
    inputs = drawn.inputs(torch.float32, "cpu")
    few = Problem.of(inputs, drawn.neighborhoods, 1.0)
    tiling = Tiling((16,), (16,))
    assert BiasTiles.of(Prepared.of(few, inputs), tiling) is None
    many = inputs._replace(**{k: getattr(inputs, k).expand(64, -1, -1, -1) for k in ("query", "key", "value")})
    found = BiasTiles.of(Prepared.of(Problem.of(many, drawn.neighborhoods, 1.0), many), tiling)
    assert found.size == prod(found.classes.counts) * found.classes.steps * 16 * 16
