"""Warnings point at the line outside the library."""

import inspect

import pytest
import torch

import vicinal
from vicinal import calls


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(calls, "_warned", set())


class Knob(torch.nn.Module):
    def forward(self, x):
        return vicinal.na1d(x, x, x, 3, kernel_schedule="pp")


def line_of(function):
    with pytest.warns(UserWarning, match="vicinal ignores") as caught:
        function()
    return caught[0].filename, caught[0].lineno


def test_through_one_layer():
    x = torch.randn(1, 6, 2, 8)

    def call():
        vicinal.na1d(x, x, x, 3, kernel_schedule="pp")

    assert line_of(call) == (__file__, inspect.getsourcelines(call)[1] + 1)


def test_torch_is_not_the_caller():
    """In a module of the user's own, its line; not that of torch, which called it."""
    x = torch.randn(1, 6, 2, 8)
    assert line_of(lambda: Knob()(x)) == (__file__, inspect.getsourcelines(Knob.forward)[1] + 1)


def test_compiled_calls_warn_when_they_are_traced():
    x, compiled = torch.randn(1, 6, 2, 8), torch.compile(Knob(), backend="eager", fullgraph=True)
    with pytest.warns(UserWarning, match="vicinal ignores kernel_schedule"):
        out = compiled(x)
    torch.testing.assert_close(out, vicinal.na1d(x, x, x, 3))
