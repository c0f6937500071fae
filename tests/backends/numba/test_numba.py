"""The numba backend against the oracle: every tiling, every feature, forward and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from closeness import (
    assert_as_close_as_torch,
    assert_at_most_a_fifth_above_torch,
    gradients,
    random_gradients,
)
from numba_calls import EXACT, any_config, assert_same, plane, present, run
from strategies import Call, calls, whole
from vicinal.backends.numba import BACKEND
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.problem import Problem, Upstream, Wanted
from vicinal.reference import reference

ONLY = [Wanted(*(name == only for name in Wanted._fields)) for only in Wanted._fields]
WANTED = [*ONLY, Wanted(*[False] * 6), Wanted(query=False), Wanted(key=False, value=False, rpb=False)]


@settings(max_examples=60)
@given(call=calls(max_head_dim=40), with_grad_lse=st.booleans())
def test_random_problems_are_exact(call, with_grad_lse, chunks, threads):
    inputs = call.inputs()
    found, grad, grad_lse = run(inputs, call.neighborhoods, call.scale, call.seed, with_grad_lse)
    wanted = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, grad, grad_lse)
    torch.testing.assert_close(found, wanted, **EXACT)
    assert all(t.is_contiguous() for t in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=30)
@given(call=calls(max_head_dim=40), with_grad_lse=st.booleans())
def test_random_problems_are_as_close_as_torch(call, with_grad_lse, dtype, chunks):
    inputs = call.inputs(dtype)
    found, *above = run(inputs, call.neighborhoods, call.scale, call.seed, with_grad_lse)
    assert_as_close_as_torch(found, inputs, call.neighborhoods, call.scale, *above)


@pytest.mark.parametrize(
    "call",
    [
        whole(24),
        whole(8, 3),
        whole(4, 5),
        whole(30, boundary="clip"),
        whole(24, causal=True),
        whole(6, stride=6),
        whole(1),
        replace(whole(7), additional=50),
        replace(whole(700), lengths=(1500,)),
    ],
    ids=[
        "whole",
        "whole groups",
        "unequal groups",
        "clipped",
        "causal",
        "blocked",
        "one key",
        "many more keys",
        "several chunks",
    ],
)
def test_special_windows(call):
    inputs = call.inputs()
    found, *above = run(inputs, call.neighborhoods, call.scale, 0)
    wanted = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, *above)
    torch.testing.assert_close(found, wanted, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("extra", [0, 7], ids=["window", "window and additional keys"])
def test_error_is_at_most_a_fifth_above_torch_s(dtype, extra):
    call = Call((Neighborhood((Axis(7), Axis(9))),), (20, 23), 2, 4, 2, 32, 32, extra, False, 1)
    inputs = call.inputs(dtype)
    found, grad, _ = run(inputs, call.neighborhoods, call.scale, 0, with_grad_lse=False)
    assert_at_most_a_fifth_above_torch(found, inputs, call.neighborhoods, call.scale, grad)


@pytest.mark.parametrize("scale", [0.0, -0.7, 3.0])
def test_any_scale(scale):
    call = whole(7)
    inputs = call.inputs()
    found, *above = run(inputs, call.neighborhoods, scale, 0)
    wanted = gradients(lambda i: reference(i, call.neighborhoods, scale), inputs, *above)
    torch.testing.assert_close(found, wanted, **EXACT)


@pytest.mark.parametrize("wanted", WANTED, ids=[" ".join(n for n in w._fields if getattr(w, n)) for w in WANTED])
def test_only_what_is_wanted_comes_and_is_computed(wanted, threads):
    call = replace(plane()[0], batch=1, has_rpb=True)
    inputs = call.inputs()
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    config = any_config(problem, 0)
    output, lse = BACKEND.forward(problem, config, inputs)
    upstream = Upstream(output, lse, *random_gradients(output, lse, 0))
    every = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    some = BACKEND.backward(problem, config, inputs, upstream, wanted)
    assert [t is not None for t in some.numbers] == list(wanted)
    assert_same(present(some), [t for t, is_wanted in zip(every, wanted) if is_wanted])
