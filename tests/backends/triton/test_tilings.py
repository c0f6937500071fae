"""The ranking of Triton tilings: valid, and no slower to make than a call can bear."""

from __future__ import annotations

from math import prod

import pytest
import torch

from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.estimate import estimate, most_registers
from vicinal.backends.triton.tilings import ranked, tilings
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Problem

of = Neighborhood.of


def problem(lengths, neighborhood, heads=4, head_dim=64, batch=2, dtype=torch.bfloat16, **more):
    resolved = (neighborhood.resolve(lengths),)
    device = torch.device("cpu")
    return Problem(batch, lengths, heads, heads, head_dim, head_dim, dtype, device, resolved, 0.1, **more)


PROBLEMS = [
    pytest.param(problem((16384,), of(1, 2048)), id="1d"),
    pytest.param(problem((3,), of(1, 2)), id="1d-tiny"),
    pytest.param(problem((128, 128), of(2, 33)), id="2d"),
    pytest.param(problem((56, 56), of(2, 7), head_dim=32, dtype=torch.float16, has_rpb=True), id="nat"),
    pytest.param(problem((7, 7), of(2, 7), head_dim=32), id="7x7"),
    pytest.param(problem((33, 128, 224), of(3, (3, 7, 7))), id="3d"),
    pytest.param(problem((24, 44, 80), of(3, (24, 4, 16), 1, (1, 11, 5)), head_dim=128), id="3d-dilated"),
    pytest.param(problem((1200,), of(1, 300), head_dim=256, dtype=torch.float32), id="float32-256"),
]


def listed(given, kernel):
    return [tiling for _, tiling in ranked(given, kernel, 1, False)]


@pytest.mark.parametrize("kernel", ["forward", "query", "key_value"])
@pytest.mark.parametrize("given", PROBLEMS)
def test_every_tiling_fits(given, kernel):
    shared = gpu_of(given.device).architecture.shared
    found = listed(given, kernel)
    assert found
    for tiling in found:
        assert len(tiling.tile) == len(tiling.step) == given.rank
        assert prod(tiling.tile) >= 16  # what a matrix instruction takes
        assert prod(tiling.step) >= 16
        assert estimate(given, kernel, tiling).program.shared <= shared


@pytest.mark.parametrize("kernel", ["forward", "query", "key_value"])
@pytest.mark.parametrize("given", PROBLEMS)
def test_only_128_rows_have_eight_warps(given, kernel):
    """64: two to four times slower, in float32 wrong with 16 keys; 32: spills (Triton 3.6)."""
    assert [c for c in listed(given, kernel) if prod(c.tile) < 128 and c.warps > 4] == []


def test_key_gradients_that_ptxas_gives_few_registers_are_not_listed():
    given = problem((8, 16, 16), of(3, (5, 7, 7)), head_dim=32)
    assert [c for c in listed(given, "key_value") if (prod(c.tile), prod(c.step)) == (32, 128)] == []


SPILLING = [  # compiled for sm_90: bytes spilled per thread in the key and value gradients, one warp
    pytest.param(problem((8, 32, 32), of(3, (5, 7, 7), 1, (1, 2, 2)), head_dim=128), (4, 2, 2), (1, 4, 8), id="1144"),
    pytest.param(problem((28, 28), of(2, 13)), (4, 4), (8, 8), id="1472"),
    pytest.param(problem((28, 28), of(2, 9), head_dim=128), (2, 8), (2, 16), id="1124"),
    pytest.param(problem((28, 28), of(2, 13)), (4, 4), (8, 16), id="3364"),
]


@pytest.mark.parametrize(("given", "keys", "queries"), SPILLING)
def test_a_warp_is_not_given_more_than_its_registers_hold(given, keys, queries):
    """Such programs took 3 to 7 times their estimate on an H200."""
    spilling = Tiling(keys, queries, 1, 3)
    assert estimate(given, "key_value", spilling).program.registers > most_registers(gpu_of(given.device))
    assert spilling not in listed(given, "key_value")


def test_large_windows_take_large_tiles():
    """A window of 80x80 at head dim 128 is bound by products: tiles as large as registers allow."""
    best = tilings(problem((256, 256), of(2, 80), head_dim=128), "forward")[0]
    assert prod(best.tile) >= 64
    assert prod(best.step) >= 64


def test_small_windows_take_small_tiles():
    """A window of 7x7 is bound by what its tiles compute in vain."""
    given = problem((56, 56), of(2, 7), heads=2, head_dim=32, batch=128, dtype=torch.float16)
    assert prod(tilings(given, "forward")[0].tile) <= 32
