"""How the numba backend reads and writes tensors: in any layout, negated, and nothing elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from closeness import (
    gradients,
    gradients_of,
    random_gradients,
)
from numba_calls import EXACT, any_config, assert_same, contiguous, plane, present, run
from strategies import any_layouts, calls, whole
from vicinal import na1d
from vicinal.backends.numba import BACKEND
from vicinal.backends.numba import launch as numba_launch
from vicinal.backends.numba import plan as numba_plan
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference


@settings(max_examples=60)
@given(call=calls(max_head_dim=20), lie=any_layouts(), with_grad_lse=st.booleans())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layouts_in_memory_change_no_bit(call, lie, with_grad_lse, dtype):
    inputs = lie.inputs(call.inputs(dtype))
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    configs = any_config(problem, call.seed), any_config(problem, call.seed + 1)
    output, lse = BACKEND.forward(problem, configs[0], inputs)
    upstream = Upstream(output, lse, *random_gradients(output, lse, call.seed, with_grad_lse))
    upstream = lie.upstream(upstream)
    grads = BACKEND.backward(problem, configs[1], inputs, upstream, Wanted.of(inputs))
    plain = Inputs(*map(contiguous, inputs))
    wanted = BACKEND.forward(problem, configs[0], plain)
    assert_same([output, lse], list(wanted))
    wanted = BACKEND.backward(problem, configs[1], plain, Upstream(*map(contiguous, upstream)), Wanted.of(inputs))
    assert_same(present(grads), present(wanted))
    assert all(t.is_contiguous() for t in (output, lse, *present(grads)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("place", [*Wanted._fields, "grad_output", "grad_lse"])
def test_what_is_negated_when_it_is_read_is_read_so(dtype, place):
    call = replace(whole(3), head_dim=16, value_dim=16, additional=4, has_rpb=True)
    inputs = call.inputs(dtype)
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    config = any_config(problem, 0)
    output, lse = BACKEND.forward(problem, config, inputs)
    upstream = Upstream(output, lse, *random_gradients(output, lse, 0))
    wanted = output, lse, *BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    if place in Wanted._fields:
        inputs = inputs._replace(**{place: torch._neg_view(-getattr(inputs, place))})
    else:
        upstream = upstream._replace(**{place: torch._neg_view(-getattr(upstream, place))})
    grads = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    assert_same([*BACKEND.forward(problem, config, inputs), *grads], list(wanted))


@pytest.mark.parametrize("width", [2, 16])
def test_channels_last_values_come_back(width):
    value = torch.arange(4.0 * width).view(1, 2, 2, width).permute(0, 3, 1, 2)
    zeros = torch.zeros(value.shape)
    torch.testing.assert_close(na1d(zeros, zeros, value, 1), value)


def test_rows_that_kernels_cannot_read_stop_at_the_launch():
    call = whole(5)
    inputs = call.inputs(torch.float32)
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    layouts = [(*t.stride(), 16) for t in inputs[:3]]
    layouts[2] = (*layouts[2][:-2], 2, 16)
    config = BACKEND.configs(problem, "forward")[0]
    with pytest.raises(AssertionError, match="tensor 2: rows of 16 at stride 2"):
        numba_plan.kernel_call(problem, "forward", config.tiles, (*layouts, None, None), Wanted.of(inputs), 1)


def test_gradient_of_a_sum():
    # Its strides are all 0.
    call = whole(5)
    inputs = call.inputs()
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    output, lse = BACKEND.forward(problem, any_config(problem, 0), inputs)
    ones = torch.ones((), dtype=torch.float64)
    above = ones.expand(output.shape), ones.expand(lse.shape)
    grads = gradients_of(BACKEND, problem, any_config(problem, 0), inputs, output, lse, *above)
    wanted = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, *above)
    torch.testing.assert_close([output, lse, *(g for g in grads if g is not None)], wanted, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("has_rpb", [False, True])
def test_nothing_is_written_elsewhere(dtype, has_rpb, chunks, threads, monkeypatch):
    call = replace(plane()[0], heads=4, kv_heads=2, head_dim=32, value_dim=48, additional=5, has_rpb=has_rpb)
    results, scratches = [], []

    def empty(shape, dtype):
        """A tensor with 64 numbers before and after it that must stay."""
        size = int(np.prod(shape))
        memory = torch.full((size + 128,), 777.0, dtype=dtype)
        results.append(memory)
        return memory[64 : 64 + size].view(shape)

    def take(size):
        """Memory with 64 bytes before and after it that must stay."""
        memory = np.full(size + 64 + 128, 7, np.uint8)
        start = memory.ctypes.data + 64
        start += -start % 64
        scratches.append((memory, start - memory.ctypes.data, size))
        return start

    monkeypatch.setattr(numba_launch, "_empty", empty)
    monkeypatch.setattr(numba_launch.SCRATCH, "take", take)
    run(call.inputs(dtype), call.neighborhoods, call.scale, 0)
    assert len(results) >= 7
    for memory in results:
        assert (memory[:64] == 777).all()
        assert (memory[-64:] == 777).all()
        assert (memory[64:-64] != 777).all()
    assert len(scratches) == 2
    for memory, start, size in scratches:
        assert (memory[:start] == 7).all()
        assert (memory[start + size :] == 7).all()
        assert (memory[start : start + size] != 7).any()


def test_empty_batch():
    call = replace(whole(5), batch=0, has_rpb=True)
    *found, grad_bias = run(call.inputs(), call.neighborhoods, call.scale, 0)[0]
    assert [tuple(t.shape) for t in found] == [(0, 24, 2, 8), (0, 24, 2), (0, 24, 2, 8), (0, 24, 1, 8), (0, 24, 1, 8)]
    assert_same(grad_bias, torch.zeros(2, 9, dtype=torch.float64))
