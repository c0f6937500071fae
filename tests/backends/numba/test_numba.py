"""The numba backend against the oracle: every tiling, every feature, forward and gradients; threads; memory."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from closeness import (
    assert_as_close_as_torch,
    assert_at_most_a_fifth_above_torch,
    gradients,
    gradients_of,
    random_gradients,
)
from strategies import Call, any_layouts, calls, whole
from vicinal import merge_attentions, na1d, neighborhood_attention
from vicinal.backends.numba import BACKEND
from vicinal.backends.numba import launch as numba_launch
from vicinal.backends.numba import plan as numba_plan
from vicinal.backends.numba import threads as numba_threads
from vicinal.backends.numba.config import NumbaConfig, head_sets, shapes
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference

EXACT = {"rtol": 1e-9, "atol": 1e-11}
ONLY = [Wanted(*(name == only for name in Wanted._fields)) for only in Wanted._fields]
WANTED = [*ONLY, Wanted(*[False] * 6), Wanted(query=False), Wanted(key=False, value=False, rpb=False)]


def any_config(problem, seed):
    """One with any tiles, not only those listed, for every set of heads."""
    found = [shapes(own.axes, problem.lengths) for own in head_sets(problem)]
    return NumbaConfig(*zip(*(own[(seed + i) % len(own)] for i, own in enumerate(found))))


def run(inputs, neighborhoods, scale, seed, with_grad_lse=True, config=None):
    """Output, log-sum-exp and gradients of the backend, and what came from above."""
    problem = Problem.of(inputs, neighborhoods, scale)
    assert BACKEND.unsupported(problem) is None
    output, lse = BACKEND.forward(problem, config or any_config(problem, seed), inputs)
    grad, grad_lse = random_gradients(output, lse, seed, with_grad_lse)
    config = config or any_config(problem, seed + 1)
    grads = gradients_of(BACKEND, problem, config, inputs, output, lse, grad, grad_lse)
    return [output, lse, *(g for g in grads if g is not None)], grad, grad_lse


@pytest.fixture(params=[None, 9], ids=["one chunk", "chunks of 9 keys"])
def chunks(request, monkeypatch):
    """Small problems fit in one chunk: also cut them."""
    if request.param is not None:
        monkeypatch.setattr(numba_plan, "CHUNK", request.param)
    numba_plan.CALLS.clear()
    yield
    numba_plan.CALLS.clear()


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request, monkeypatch):
    """Small problems are not worth a second thread: start it all the same."""
    monkeypatch.setattr(numba_plan, "START_NS", 1e-3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    numba_plan.CALLS.clear()
    yield request.param
    numba_plan.CALLS.clear()


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


def contiguous(tensor):
    return None if tensor is None else tensor.resolve_neg().clone(memory_format=torch.contiguous_format)


def present(tensors):
    return [t for t in tensors if t is not None]


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


def assert_same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


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


def plane():
    call = Call((Neighborhood((Axis(5, dilation=2), Axis(4))),), (14, 13), 1, 2, 1, 24, 40, 2, False, 3)
    return call, call.inputs(torch.float32)


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


def test_numbers_that_are_none_come_out_where_they_are_seen():
    call = whole(3)
    inputs = call.inputs()
    inputs.query[0, 5, 1, 2] = float("nan")
    found, *_ = run(inputs, call.neighborhoods, call.scale, 0)
    output, lse, _, _, grad_value = found
    assert output[0, 5, 1].isnan().all()
    assert lse[0, 5, 1].isnan()
    assert output.isnan().sum() == output.shape[-1]
    assert grad_value.isnan().any(-1).any(-1)[0].nonzero().flatten().tolist() == [4, 5, 6]


@pytest.mark.parametrize("size", [1e3, 3e15])
def test_large_scores(size):
    call = whole(5)
    inputs = call.inputs(torch.float32)
    inputs = Inputs(inputs.query * size, inputs.key * size, inputs.value)
    problem = Problem.of(inputs, call.neighborhoods, 1.0)
    output, lse = BACKEND.forward(problem, any_config(problem, 0), inputs)
    assert_as_close_as_torch([output, lse], inputs, call.neighborhoods, 1.0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [1e19, 1.8e19, 1e25], ids=["large", "near the largest", "beyond the largest"])
def test_keys_outside_a_window_change_nothing_however_large_their_scores(size, sign):
    # Every query sees itself alone; of the scores, one in two may be as large as can be.
    query = torch.full((1, 4, 1, 1), sign * size)
    key = torch.tensor([1.0, -size, 1.0, -1.0]).view(query.shape)
    value = torch.arange(4.0).view(query.shape)
    grad = torch.ones_like(value)
    leaves = [t.requires_grad_() for t in (query, key, value)]
    output, lse = neighborhood_attention(*leaves, Neighborhood.of(1, 1), scale=1.0, return_lse=True)
    scores = (query * key)[..., 0].detach()
    finite = scores.isfinite()
    torch.testing.assert_close(lse[finite].detach(), scores[finite])
    torch.testing.assert_close(output[..., 0][finite].detach(), value[..., 0][finite].detach())
    grads = torch.autograd.grad(output, leaves, grad)
    assert all((g[..., 0][finite] == (1.0 if i == 2 else 0.0)).all() for i, g in enumerate(grads))


def overflow(call, dtype):
    """Inputs where every score of one query of each head is -inf."""
    inputs = call.inputs(dtype)
    huge = 1e25 if dtype == torch.float32 else 1e200
    inputs.query[:, 5] = huge
    inputs = inputs._replace(key=-inputs.key.abs() * huge)
    extra = inputs.additional_keys
    return inputs if extra is None else inputs._replace(additional_keys=-extra.abs() * huge)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("with_grad_lse", [False, True])
def test_queries_without_a_score_give_nothing(dtype, extra, with_grad_lse, chunks):
    call = replace(whole(9), additional=extra)
    inputs = overflow(call, dtype)
    others = torch.arange(24) != 5
    found, grad, grad_lse = run(inputs, call.neighborhoods, 1.0, 0, with_grad_lse)
    output, lse, grad_query, *of_keys = found
    assert (output[:, 5] == 0).all()
    assert (lse[:, 5] == float("-inf")).all()
    assert (grad_query[:, 5] == 0).all()
    assert all(t.isfinite().all() for t in (output, lse[:, others]))
    # Keys' gradients are those of the other queries.
    problem = Problem.of(inputs, call.neighborhoods, 1.0)
    grad = grad * others[:, None, None]
    grad_lse = None if grad_lse is None else grad_lse * others[:, None]
    wanted = gradients_of(BACKEND, problem, any_config(problem, 1), inputs, output, lse, grad, grad_lse)
    assert_same(of_keys, present(wanted)[1:])


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


@pytest.mark.parametrize("extra", [0, 2])
def test_a_bias_of_minus_infinity_shuts_keys_out(extra, chunks):
    call = replace(whole(5), has_rpb=True, additional=extra)
    inputs = call.inputs()
    inputs.rpb[0] = float("-inf")  # the whole window of the first head
    inputs.rpb[1, :3] = float("-inf")  # part of it
    found, grad, _ = run(inputs, call.neighborhoods, call.scale, 0, with_grad_lse=False)
    wanted = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, grad, None)
    torch.testing.assert_close(found, wanted, **EXACT)
    if not extra:
        assert (found[1][:, :, 0] == float("-inf")).all()
        assert all((t[:, :, 0] == 0).all() for t in (found[0], found[2]))


def test_a_part_without_a_score_has_no_weight_in_a_merge():
    inputs = [torch.ones(1, 3, 1, 1) for _ in range(3)]
    rpb = torch.full((1, 1), float("-inf"), requires_grad=True)
    window = na1d(*inputs, 1, rpb=rpb, return_lse=True)
    other = na1d(*inputs[:2], torch.full((1, 3, 1, 1), 7.0), 3, return_lse=True)
    merged, _ = merge_attentions([window[0], other[0]], [window[1], other[1]])
    assert (merged == 7).all()
    output, lse = na1d(
        *inputs, 1, rpb=rpb, additional_keys=torch.ones(1, 1, 1, 1), additional_values=torch.full((1, 1, 1, 1), 7.0),
        return_lse=True,
    )  # fmt: skip
    assert (output == 7).all()
    assert (lse == 1).all()


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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(dtype=torch.int32), "torch.int32 is not one of"),
        (dict(device=torch.device("meta")), "not on a CPU"),
    ],
)
def test_unsupported_says_why(change, reason):
    call = whole(3)
    problem = replace(Problem.of(call.inputs(), call.neighborhoods, 1.0), **change)
    assert reason in BACKEND.unsupported(problem)


def in_a_process(code, **environment):
    script = f"import torch, vicinal, sys\n{code}"
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_without_numba_torch_s_operations_do():
    said = in_a_process("""
assert "numba" not in sys.modules
sys.modules["numba"] = None
from vicinal import dispatch
from vicinal.problem import Inputs, Problem
x = torch.randn(1, 8, 2, 4, requires_grad=True)
vicinal.na1d(x, x, x, 3).sum().backward()
problem = Problem.of(Inputs(x, x, x), [vicinal.Neighborhood.of(1, 3)], 1.0)
print(dispatch.plan(problem).backend.name, dispatch.unsupported("numba", problem))
""")
    assert said.startswith("torch it needs numba: pip install 'vicinal[cpu]'")


@pytest.mark.parametrize(
    ("cpu", "features"),
    [("haswell", "+avx,+avx2,+fma,+bmi,+bmi2,+sse4.2,+popcnt"), ("x86-64", "+sse2")],
    ids=["16 registers of 256 bits", "16 registers of 128 bits"],
)
@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="other CPUs of this family")
def test_other_cpus(cpu, features):
    said = in_a_process(
        """
from vicinal.backends.numba.kernels.vectors import registers
from vicinal.problem import Inputs
from vicinal.reference import reference
torch.manual_seed(0)
x = [torch.randn(1, 9, 9, 2, 24, requires_grad=True) for _ in range(3)]
grads = []
for run in (
    lambda: vicinal.na2d(*x, 5, return_lse=True, backend="numba"),
    lambda: reference(Inputs(*x), [vicinal.Neighborhood.of(2, 5)], 24**-0.5),
):
    out, lse = run()
    grads.append([out, lse, *torch.autograd.grad([out.square().sum() + lse.sum()], x)])
torch.testing.assert_close(*grads, check_dtype=False)
print(registers())
""",
        NUMBA_CPU_NAME=cpu,
        NUMBA_CPU_FEATURES=features,
    )
    assert said.strip() == ("(256, 16)" if cpu == "haswell" else "(128, 16)")


def test_empty_batch():
    call = replace(whole(5), batch=0, has_rpb=True)
    *found, grad_bias = run(call.inputs(), call.neighborhoods, call.scale, 0)[0]
    assert [tuple(t.shape) for t in found] == [(0, 24, 2, 8), (0, 24, 2), (0, 24, 2, 8), (0, 24, 1, 8), (0, 24, 1, 8)]
    assert_same(grad_bias, torch.zeros(2, 9, dtype=torch.float64))
