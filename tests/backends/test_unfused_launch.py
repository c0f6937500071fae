"""Launches of the unfused kernels, through Triton's interpreter."""

import pytest
import torch

from vicinal.backends import unfused_kernels, unfused_launch
from vicinal.backends.slots import Slots
from vicinal.geometry.neighborhood import Neighborhood

interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled for the GPU where there is one"
)


@interpreted
@pytest.mark.parametrize(("lengths", "window"), [((300,), 5), ((13, 17), 3)])
def test_bias_sum_over_parts_that_no_block_divides(lengths, window):
    """Programs sum parts of the tokens: each token is in one of them."""
    slots = Slots(Neighborhood.of(len(lengths), window).resolve(lengths), lengths)
    grad = torch.randn(1, *lengths, 2, slots.count)
    expected = unfused_launch.bias_sum(grad, slots, "torch")
    torch.testing.assert_close(unfused_launch.bias_sum(grad, slots, "naive"), expected, atol=1e-4, rtol=1e-4)


GEOMETRIES = {
    "shift": {"kernel_size": (5, 3)},
    "dilated": {"kernel_size": (3, 5), "dilation": (3, 2)},
    "causal, strided": {"kernel_size": (4, 5), "stride": (2, 1), "is_causal": (True, False)},
    "clip": {"kernel_size": 7, "boundary": "clip"},
}


@interpreted
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_tiled_naive_scores(geometry, dtype, has_bias):
    """The special case of naive QK computes what plain torch does, absent slots included."""
    lengths = (9, 11)
    slots = Slots(Neighborhood.of(2, **GEOMETRIES[geometry]).resolve(lengths), lengths)
    query, key = torch.randn(1, *lengths, 2, 32, dtype=dtype), torch.randn(1, *lengths, 1, 32, dtype=dtype)
    bias = torch.randn(2, *slots.bias_shape, dtype=dtype) if has_bias else None
    assert unfused_kernels.is_tiled(slots, query)
    expected, scores = (unfused_launch.pn(query, key, bias, slots, 0.3, -7.0, v) for v in ("torch", "naive"))
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(scores, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("lengths", "window", "dim", "dtype"),
    [
        ((40,), 7, 32, torch.float16),
        ((40, 40), 14, 32, torch.float16),
        ((40, 40), 7, 64, torch.float16),
        ((40, 40), 7, 32, torch.float64),
    ],
)
def test_what_is_not_the_tiled_special_case(lengths, window, dim, dtype):
    slots = Slots(Neighborhood.of(len(lengths), window).resolve(lengths), lengths)
    assert not unfused_kernels.is_tiled(slots, torch.empty(1, *lengths, 1, dim, dtype=dtype))
