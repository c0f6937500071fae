"""The torch backend on a GPU: the formulas that second derivatives and forward mode use there."""

import pytest
import torch
from hypothesis import given, settings

from closeness import gradients, random_gradients
from strategies import any_layouts, calls
from vicinal import na1d, neighborhood_attention
from vicinal.reference import reference

pytestmark = pytest.mark.gpu


@settings(max_examples=40)
@given(call=calls(), layouts=any_layouts())
def test_any_layout_is_exact(call, layouts):
    inputs = layouts.inputs(call.inputs(device="cuda"))

    def run(given):
        windows = call.neighborhoods if len(call.neighborhoods) > 1 else call.neighborhoods[0]
        extra = dict(zip(("additional_keys", "additional_values", "rpb"), given[3:]))
        return neighborhood_attention(*given[:3], windows, scale=call.scale, return_lse=True, backend="torch", **extra)

    output, lse = run(inputs)
    above = [t.cuda() for t in random_gradients(output, lse, call.seed)]
    above = layouts.gradients(*above)
    found = gradients(run, inputs, *above)
    truth = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, *above)
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-11)


def test_second_derivatives_and_forward_mode():
    x = [torch.randn(1, 9, 2, 4, dtype=torch.float64, device="cuda", requires_grad=True) for _ in range(3)]

    def run(*tensors):
        return na1d(*tensors, 3, dilation=2, backend="torch", return_lse=True)

    assert torch.autograd.gradcheck(run, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, x, fast_mode=True)
    values, _ = torch.func.jvp(run, tuple(t.detach() for t in x), tuple(torch.ones_like(t) for t in x))
    torch.testing.assert_close(values, run(*x))
