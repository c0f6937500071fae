"""How the Triton backend reads tensors: in place, in any layout, and nothing beyond them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

import strategies
from closeness import assert_as_close_as_torch, gradients_of, random_gradients
from triton_calls import call, check, device, of
from vicinal.backends import triton as backend
from vicinal.circular import unroll
from vicinal.geometry.unroll import around
from vicinal.problem import Inputs, Problem, Upstream, Wanted

pytestmark = pytest.mark.usefixtures("interpreting")


def test_inputs_are_read_in_place(monkeypatch):
    """Heads, tokens and batch in any order in memory, slices of a packed projection; nothing is copied."""
    drawn = call((5, 6), of(2, 3), heads=2, kv_heads=2, batch=2)
    packed = torch.randn(5, 2, 6, 3, 2, 8, device=device).permute(1, 0, 2, 3, 4, 5)
    assert not packed.is_contiguous()
    inputs = Inputs(*packed.unbind(3))
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda self, *args: pytest.fail("copied"))
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    output, lse = backend.BACKEND.forward(problem, backend.BACKEND.configs(problem, "forward")[0], inputs)
    monkeypatch.undo()
    assert_as_close_as_torch([output, lse], inputs, drawn.neighborhoods, 0.3)


@pytest.mark.parametrize(
    ("lengths", "neighborhood", "tiles"),
    [
        ((85,), of(1, 35), ((32,), (16,))),  # near a border a key has more queries than a query has keys
        ((21,), of(1, 5), ((16,), (16,))),
        ((9, 7), of(2, 7), ((4, 4), (4, 8))),
        ((11,), of(1, 4, dilation=2), ((16,), (16,))),
    ],
)
def test_nothing_beyond_the_tokens_is_read(lengths, neighborhood, tiles):
    """The tensors lie amid NaN: a row read from outside would spoil sums even where its weight is 0."""
    drawn = call(lengths, neighborhood)
    amid = []
    for tensor in drawn.inputs(torch.float32, device)[:3]:
        room = torch.full([1, *(n + 2 * max(lengths) for n in lengths), 1, 8], float("nan"), device=device)
        inner = room[(slice(None), *(slice(max(lengths), max(lengths) + n) for n in lengths))]
        amid.append(inner.copy_(tensor))
    check(drawn, tiles=tiles, inputs=Inputs(*amid))


def test_last_dimension_not_contiguous():
    drawn = call((5, 6), of(2, 3))
    inputs = Inputs(*(torch.randn(8, 1, 5, 6, 1, device=device).movedim(0, -1) for _ in range(3)))
    check(drawn, inputs=inputs)


def test_empty_batch():
    drawn = call((5, 6), of(2, 3), batch=0)
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 1.0)
    config = backend.BACKEND.configs(problem, "forward")[0]
    output, lse = backend.BACKEND.forward(problem, config, inputs)
    assert output.shape == (0, 5, 6, 1, 8)
    grads = gradients_of(backend.BACKEND, problem, config, inputs, output, lse, output)
    assert grads.key.shape == inputs.key.shape


def run_in_layouts(drawn, layouts, dtype=torch.float32):
    """Forward and backward with every tensor in its own layout, against the oracle on the same values."""
    inputs = layouts.inputs(drawn.inputs(dtype, device))
    if drawn.neighborhoods[0].is_circular:
        inputs, neighborhoods = unroll(inputs, drawn.neighborhoods, around(drawn.neighborhoods, drawn.lengths))
        drawn = replace(drawn, neighborhoods=neighborhoods)
    problem = Problem.of(inputs, drawn.neighborhoods, drawn.scale)
    output, lse = backend.BACKEND.forward(problem, backend.BACKEND.configs(problem, "forward")[0], inputs)
    upstream = layouts.upstream(Upstream(output, lse, *random_gradients(output, lse, drawn.seed)))
    config = backend.BACKEND.configs(problem, "backward")[0]
    grads = backend.BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    assert output.is_contiguous()
    assert lse.is_contiguous()
    assert all(g is None or g.is_contiguous() for g in grads)
    results = [output, lse, *(g for g in grads if g is not None)]
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, drawn.scale, *upstream[2:])


@settings(max_examples=4)
@given(strategies.calls(ranks=(1, 2), max_head_dim=9, spans=True), strategies.any_layouts())
def test_random_calls_in_any_layout(drawn, layouts):
    run_in_layouts(drawn, layouts)


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_every_kind_of_layout(kind):
    counts = (1, len(Inputs._fields)), (2, 4)
    every = strategies.Layouts(*((strategies.Layout(kind, seed),) * n for seed, n in counts))
    if kind == "expanded":  # the forward's results have the values they have
        saved = strategies.Layout("contiguous")
        every = replace(every, of_upstream=(saved, saved, *every.of_upstream[2:]))
    run_in_layouts(call((5, 6), of(2, 3), heads=2, batch=2, head_dim=6, additional=2, has_rpb=True), every)


def test_the_same_strides_negated_and_not():
    """What is prepared for a copy is not used in place."""
    drawn = call((5, 6), of(2, 3), heads=2, kv_heads=2)
    inputs = Inputs(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in drawn.inputs(torch.float32, device)[:3]))
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    config = backend.BACKEND.configs(problem, "forward")[0]
    plain, _ = backend.BACKEND.forward(problem, config, inputs)
    negated, _ = backend.BACKEND.forward(problem, config, inputs._replace(value=torch._neg_view(inputs.value)))
    assert torch.equal(negated, -plain)
