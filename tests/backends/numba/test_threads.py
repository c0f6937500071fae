"""The numba backend's threads and scratch memory, and that no bit depends on what ran before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from closeness import (
    gradients,
    random_gradients,
)
from numba_calls import EXACT, any_config, assert_same, plane, present, run
from strategies import Call, calls
from vicinal import na1d
from vicinal.backends.numba import BACKEND
from vicinal.backends.numba import launch as numba_launch
from vicinal.backends.numba import plan as numba_plan
from vicinal.backends.numba import threads as numba_threads
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference


@pytest.mark.parametrize(("batch", "kv_heads"), [(1, 1), (7, 2), (15, 1)])
def test_gradients_of_biases_are_added_up_over_the_batch(batch, kv_heads, threads):
    neighborhoods = tuple(Neighborhood((Axis(3, stride=s), Axis(5, dilation=d))) for s in (1, 3) for d in (1, 2))
    call = Call(neighborhoods, (7, 11), batch, 4, kv_heads, 8, 8, 2, True, 1)
    inputs = call.inputs()
    found, *above = run(inputs, call.neighborhoods, call.scale, 0)
    wanted = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, *above)
    torch.testing.assert_close(found, wanted, **EXACT)
    for _ in range(5):
        assert_same(run(inputs, call.neighborhoods, call.scale, 0)[0], found)


def test_inputs_are_left_alone_and_results_repeat(threads):
    call, inputs = plane()
    before = [t.clone() for t in inputs if t is not None]
    first, *_ = run(inputs, call.neighborhoods, call.scale, 0)
    for _ in range(10):
        assert_same(run(inputs, call.neighborhoods, call.scale, 0)[0], first)
    assert_same([t for t in inputs if t is not None], before)


@pytest.mark.parametrize("kernel", ["openmp", "threads of our own"])
def test_threads_of_either_kind_give_the_same(kernel, monkeypatch):
    call, inputs = plane()
    alone, *_ = run(inputs, call.neighborhoods, call.scale, 0)
    monkeypatch.setattr(numba_plan, "START_NS", 1e-3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    numba_plan.CALLS.clear()
    if kernel == "openmp":
        if numba_threads.openmp() is None:
            pytest.skip("torch has no OpenMP here")
    else:
        monkeypatch.setattr(numba_threads, "openmp", lambda: None)
    together, *_ = run(inputs, call.neighborhoods, call.scale, 0)
    numba_plan.CALLS.clear()
    torch.testing.assert_close(together, alone)
    assert_same(together[:2], alone[:2])


def test_callers_do_not_share_scratch_memory():
    call, _ = plane()
    call = replace(call, lengths=(48, 48))
    inputs = [call.inputs(), Inputs(*(None if t is None else t * 0.5 for t in call.inputs()))]
    problem = Problem.of(inputs[0], call.neighborhoods, call.scale)
    config = any_config(problem, 0)
    alone = [BACKEND.forward(problem, config, i) for i in inputs]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            assert_same(list(pool.map(lambda i: BACKEND.forward(problem, config, i), inputs)), alone)


@pytest.mark.parametrize("poison", [False, True])
@settings(max_examples=40)
@given(call=calls(max_head_dim=8), other=calls(max_head_dim=40))
def test_no_bit_depends_on_the_calls_before(call, other, poison, chunks):
    inputs, others = call.inputs(torch.float32), other.inputs(torch.float32)
    torch.utils.deterministic.fill_uninitialized_memory = poison
    numba_launch.SCRATCH = numba_launch.Scratch()
    first, *_ = run(inputs, call.neighborhoods, call.scale, call.seed)
    run(Inputs(*(None if t is None else 100 * t for t in others)), other.neighborhoods, other.scale, other.seed)
    again, *_ = run(inputs, call.neighborhoods, call.scale, call.seed)
    assert_same(again, first)


def test_few_keys_after_many():
    query, key, value = (torch.tensor(x).view(1, -1, 1, 1) for x in ((1.0,) * 4, (200.0, 0, 0, 0), (1.0, 2, 3, 4)))
    for _ in range(2):
        output, lse = na1d(query, key, value, 1, scale=1.0, return_lse=True)
        assert output.flatten().tolist() == [1, 2, 3, 4]
        assert lse.flatten().tolist() == [200, 0, 0, 0]
        other = torch.randn(1, 16, 1, 1)
        na1d(other, other, other, 16)


@pytest.mark.parametrize("context", [lambda: torch.device("meta"), lambda: default_dtype(torch.float64)])
def test_defaults_of_devices_and_dtypes_change_nothing(context):
    call, inputs = plane()
    wanted, *_ = run(inputs, call.neighborhoods, call.scale, 0)
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    upstream = Upstream(*wanted[:2], *random_gradients(*wanted[:2], 0))
    numba_plan.CALLS.clear()
    with context():
        found = BACKEND.forward(problem, any_config(problem, 0), inputs)
        grads = BACKEND.backward(problem, any_config(problem, 1), inputs, upstream, Wanted.of(inputs))
    assert_same([*found, *present(grads)], wanted)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)
