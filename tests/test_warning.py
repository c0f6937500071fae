"""Warnings point at the line outside the library."""

import inspect

import pytest
import torch

import vicinal
from vicinal import calls, checks, routing
from vicinal.caching import Cache


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(calls, "_warned", set())
    monkeypatch.setattr(checks, "_doubted", False)
    monkeypatch.setattr(routing, "_calls", Cache(entries=16))


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


@pytest.mark.parametrize("shape", [(1, 4, 56, 56, 8), (1, 2, 2, 49, 8), (1, 4, 256, 8), (1, 2, 4, 4, 64, 8)], ids=str)
def test_a_layout_that_looks_heads_first_is_doubted_once(shape, recwarn):
    x = torch.empty(shape)
    for _ in range(2):
        vicinal.neighborhood_attention(x, x, x, 1)
    (said,) = recwarn
    assert f"query shape {list(shape)} has {shape[-2]} heads and {shape[1]} tokens" in str(said.message)
    assert said.filename == __file__


def test_it_is_doubted_also_where_the_window_then_does_not_fit():
    x = torch.empty(1, 4, 56, 56, 8)
    with pytest.warns(UserWarning, match="heads-first"), pytest.raises(ValueError, match="axis 0 has length 4"):
        vicinal.na2d(x, x, x, 7)


@pytest.mark.parametrize("shape", [(1, 4, 56, 48, 8), (1, 13, 2, 49, 8), (1, 4, 128, 8), (2, 56, 56, 4, 8)], ids=str)
def test_other_layouts_are_not(shape, recwarn):
    x = torch.empty(shape)
    vicinal.neighborhood_attention(x, x, x, 1)
    assert not recwarn.list
