"""Launches of the unfused kernels, through Triton's interpreter."""

import pytest
import torch

from vicinal.backends.unfused import launch as unfused_launch
from vicinal.backends.unfused import programs
from vicinal.backends.unfused.tilings import too_large
from vicinal.caching import Cache
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.slots import Slots

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compiles what is interpreted here")
@pytest.mark.parametrize("variant", ["naive", "gemm"])
def test_offsets_of_64_bits_are_the_same(variant, monkeypatch):
    """What tensors of more than 2**31 elements take: too large for a test without a GPU."""
    lengths, geometry = (3, 4), {"kernel_size": (2, 2), "dilation": (1, 2), "is_causal": (True, False)}
    slots = Slots(Neighborhood.of(2, **geometry).resolve(lengths), lengths)
    x, attn = torch.randn(1, *lengths, 1, 8), torch.randn(1, *lengths, 1, slots.count)

    def results() -> list[torch.Tensor]:
        return [
            unfused_launch.pn(x, x, None, slots, 0.3, 0.0, variant),
            unfused_launch.nn(attn, x, slots, 1.0, variant),
            unfused_launch.inverse(attn, x, 1, slots, 1.0, variant),
        ]

    narrow = results()
    flags = programs._flags
    monkeypatch.setattr(programs, "_flags", lambda *arguments: flags(*arguments)._replace(wide=True))
    monkeypatch.setattr(programs, "_prepared", Cache(entries=9))
    for got, expected in zip(results(), narrow, strict=True):
        assert torch.equal(got, expected)


def test_which_tensors_need_offsets_of_64_bits():
    lengths = (1 << 16,)
    slots = Slots(Neighborhood.of(1, 4200).resolve(lengths), lengths)
    x, attn = (torch.empty(1, *lengths, 8, n, device="meta") for n in (16, slots.count))
    assert not programs._flags(slots, (x, x)).wide
    assert programs._flags(slots, (attn, x)).wide
    tall = Slots(Neighborhood.of(2, (1, 3_000_000), boundary="clip").resolve((1000, 1)), (1000, 1))
    x = torch.empty(1, 1000, 1, 1, 16, device="meta")
    assert programs._flags(tall, (x, x)).wide  # numbers of slots count


@pytest.mark.parametrize("variant", ["naive", "gemm"])
def test_more_programs_than_a_grid_holds_are_refused(variant):
    slots = Slots(Neighborhood.of(1, 3).resolve((1 << 20,)), (1 << 20,))
    assert too_large(variant, slots, 1 << 10) is None
    assert "too many" in too_large(variant, slots, 1 << 18)
