"""Launches of the unfused kernels, through Triton's interpreter."""

import pytest
import torch

from vicinal.backends import unfused_launch
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
