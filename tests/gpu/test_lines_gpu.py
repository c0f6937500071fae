"""Small windows forward, each warp with lines of its own, on a GPU: against the oracle."""

from __future__ import annotations

import pytest
import torch

from closeness import assert_as_close_as_torch
from vicinal.backends.triton import BACKEND, lines
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.forward import Forward
from vicinal.backends.triton.lines import has_lines
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
of = Neighborhood.of
TILING = Tiling((8, 8), (1, 64), of_classes=True, registers=128)


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    monkeypatch.setattr(lines, "ENOUGH_PROGRAMS", 0)
    has_lines.cache_clear()
    yield
    has_lines.cache_clear()


@pytest.mark.parametrize("dim", [32, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
@pytest.mark.parametrize("lengths", [(16, 16), (7, 40), (24, 17), (41, 31)])
@pytest.mark.parametrize("layout", ["contiguous", "packed", "heads first", "misaligned"])
def test_against_the_oracle(dim, dtype, heads, kv_heads, lengths, layout):
    """Borders, lengths that no tile divides, fewer key heads, odd layouts."""
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(n):
        shape = (2, *lengths, n, dim)
        if layout == "packed":
            return torch.randn(2, *lengths, 3, n, dim, generator=generator, dtype=dtype, device="cuda")[:, :, :, 1]
        if layout == "heads first":
            return torch.randn(2, n, *lengths, dim, generator=generator, dtype=dtype, device="cuda").movedim(1, 3)
        if layout == "misaligned":
            flat = torch.randn(
                2 * lengths[0] * lengths[1] * n * dim + 1, generator=generator, dtype=dtype, device="cuda"
            )
            return flat[1:].view(shape)
        return torch.randn(shape, generator=generator, dtype=dtype, device="cuda")

    inputs = Inputs(draw(heads), draw(kv_heads), draw(kv_heads))
    neighborhoods = (of(2, 7).resolve(lengths),)
    problem = Problem.of(inputs, neighborhoods, dim**-0.5)
    if torch.cuda.get_device_capability() == (9, 0):
        assert has_lines(problem)
        found = Forward.of(problem, TILING, inputs)
        assert found._lines is not None
    results = type(BACKEND)().forward(problem, TILING, inputs)
    assert_as_close_as_torch(results, inputs, neighborhoods, dim**-0.5)
