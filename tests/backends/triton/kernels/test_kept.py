"""Kernels of tiles of classes under a key mask, where a tile walks the keys that are there, against the oracle."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from classes_calls import call, of
from closeness import assert_as_close_as_torch, gradients_of, random_gradients
from vicinal.backends import triton as backend
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.triton.classes import have_classes
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.estimate import Kernel
from vicinal.problem import Problem, Upstream, Wanted

device = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.usefixtures("interpreting", "classes_everywhere")


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
