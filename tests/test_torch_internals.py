"""What private names of torch tell, and what is answered in a torch that lacks them."""

import runpy

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from vicinal import na1d, torch_internals


def answers(module):
    return {name: module[name]() for name in ("in_dispatch_mode", "in_transform", "in_trace", "in_forward_mode")}


def test_nothing_is_active_in_a_plain_call():
    assert not any(answers(vars(torch_internals)).values())
    assert not torch_internals.is_legacy_batched(torch.zeros(1))
    assert not torch_internals.is_differentiated_by_a_transform(torch.zeros(1))


def test_what_is_active_is_seen():
    with FlopCounterMode(display=False):
        assert torch_internals.in_dispatch_mode()
    with forward_ad.dual_level():
        assert torch_internals.in_forward_mode()
    seen = []

    def look(x):
        seen.append((torch_internals.in_transform(), torch_internals.is_differentiated_by_a_transform(x)))
        return x.sum()

    torch.func.grad(look)(torch.zeros(2))
    torch.vmap(look)(torch.zeros(2, 2))
    torch.vmap(torch.func.grad(look))(torch.zeros(2, 2))
    assert seen == [(True, True), (True, False), (True, True)]


NAMES = [
    (torch._C, "_len_torch_dispatch_stack"),
    (torch._C, "_get_tracing_state"),
    (torch._C._functorch, "peek_interpreter_stack"),
    (torch._C._functorch, "is_legacy_batchedtensor"),
    (torch._C._functorch, "is_functorch_wrapped_tensor"),
    (torch._C._functorch, "is_gradtrackingtensor"),
    (torch._C._functorch, "get_unwrapped"),
    (forward_ad, "_current_level"),
]


@pytest.mark.parametrize(("place", "name"), NAMES, ids=[name for _, name in NAMES])
def test_without_a_name_calls_go_the_way_that_is_always_right(place, name, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr(place, name)
        without = runpy.run_path(torch_internals.__file__)
        said = answers(without)
    for function in said:
        monkeypatch.setattr(torch_internals, function, lambda function=function: said[function])
    for function in ("is_legacy_batched", "is_differentiated_by_a_transform"):
        monkeypatch.setattr(torch_internals, function, without[function])
    inputs = [torch.randn(1, 6, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *x: na1d(*x, 3), inputs)
