"""What the strategies promise of layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import KINDS, Layout, any_layouts, calls
from vicinal.problem import Inputs, Upstream

SHAPES = [(5,), (2, 3), (2, 5, 3), (2, 5, 2, 3), (2, 5, 4, 2, 3), (1, 2, 3, 2, 2, 3), (0, 4, 2, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"expanded"}))
@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_a_layout_keeps_shape_and_values(kind, shape, dtype, seed):
    tensor = torch.randn(shape).to(dtype)
    laid_out = Layout(kind, seed)(tensor)
    torch.testing.assert_close(laid_out, tensor, rtol=0, atol=0)
    assert laid_out.is_neg() == (kind == "negated")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_an_expanded_tensor_repeats_its_values(shape, seed):
    tensor = torch.randn(shape)
    laid_out = Layout("expanded", seed)(tensor)
    assert laid_out.shape == tensor.shape
    repeated = [dim for dim, stride in enumerate(laid_out.stride()) if stride == 0]
    assert repeated or tensor.numel() < 2
    kept = tensor[tuple(slice(0, 1) if dim in repeated else slice(None) for dim in range(tensor.ndim))]
    assert torch.equal(laid_out, kept.expand(shape))


def test_channels_last_is_torch_s():
    four, five = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4, 6)
    assert Layout("channels_last")(four).is_contiguous(memory_format=torch.channels_last)
    assert Layout("channels_last")(five).is_contiguous(memory_format=torch.channels_last_3d)


@given(calls(), any_layouts())
def test_layouts_are_for_every_tensor(call, layouts):
    inputs = call.inputs()
    laid_out = layouts.inputs(inputs)
    assert [t is None for t in laid_out] == [t is None for t in inputs]
    output, lse = inputs.query, inputs.query[..., 0]
    above = layouts.upstream(Upstream(output, lse, output, None))
    torch.testing.assert_close(above[:2], (output, lse), rtol=0, atol=0)
    assert above.grad_lse is None
    assert isinstance(laid_out, Inputs)
