"""The CPU backend against the oracle: every tiling, every feature, forward and gradients; precision; memory."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from closeness import assert_at_most_a_fifth_above_torch, gradients, gradients_of, random_gradients
from strategies import Call, calls, layouts, whole
from vicinal.backends import cpu, cpu_cost, cpu_masks, cpu_plan
from vicinal.backends.cpu import BACKEND
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.tiles import key_interval, tiles
from vicinal.problem import Inputs, Problem
from vicinal.reference import axis_mask, reference
from vicinal.tuning.config import TileConfig

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def run(call_inputs, neighborhoods, scale, seed, with_grad_lse=True, configs=None):
    """Output, log-sum-exp and gradients of the backend; configs chosen at random among all the planner considers."""
    problem = Problem.of(call_inputs, neighborhoods, scale)
    forward, backward = configs or (any_config(problem, "forward", seed), any_config(problem, "backward", seed + 1))
    output, lse = BACKEND.forward(problem, forward, call_inputs)
    grad, grad_lse = random_gradients(output, lse, seed, with_grad_lse)
    grads = gradients_of(BACKEND, problem, backward, call_inputs, output, lse, grad, grad_lse)
    return [output, lse, *(g for g in grads if g is not None)], grad, grad_lse


def any_config(problem, direction, seed):
    """One of all tilings that the planner weighs, not only of the few that it lists."""
    if len(cpu.head_sets(problem)) > 1:
        return BACKEND.configs(problem, direction)[0]
    width = max(problem.head_dim, problem.value_dim)
    shape = cpu._shape(problem, cpu.head_sets(problem)[0], width)
    return cpu._config(random.Random(seed).choice(cpu_cost.choices(shape, direction)))


@pytest.fixture(params=[(4 << 20, 4 << 20), (1, 0)], ids=["few large chunks", "many small chunks"], autouse=True)
def chunking(request, monkeypatch):
    """Small problems fit in one chunk: also cut them as finely as can be."""
    for cached in (cpu_cost.choices, cpu._programs):
        cached.cache_clear()
    monkeypatch.setattr(cpu_cost, "CHUNK_BYTES", request.param[0])
    monkeypatch.setattr(cpu_cost, "MASK_BYTES", request.param[1])
    yield
    for cached in (cpu_cost.choices, cpu._programs):
        cached.cache_clear()


@settings(max_examples=60)
@given(call=calls(), with_grad_lse=st.booleans())
def test_random_problems_are_exact(call, with_grad_lse):
    inputs = call.inputs()
    found, grad, grad_lse = run(inputs, call.neighborhoods, call.scale, call.seed, with_grad_lse)
    wanted = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, grad, grad_lse)
    torch.testing.assert_close(found, wanted, **EXACT)
    assert all(t.is_contiguous() for t in found)


@pytest.mark.parametrize(
    "call",
    [
        whole(24),
        whole(8, 3),
        whole(4, 5),
        whole(30, boundary="clip"),
        whole(24, causal=True),
        whole(6, stride=6),
    ],
    ids=["self attention", "whole groups", "groups of two lengths", "clipped beyond the axis", "causal", "blocked"],
)
def test_special_windows(call):
    inputs = call.inputs()
    for_real = run(inputs, call.neighborhoods, call.scale, 0)
    wanted = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, *for_real[1:])
    torch.testing.assert_close(for_real[0], wanted, **EXACT)


def test_keys_beyond_one_block_of_the_fused_kernel():
    # torch's kernel takes 512 keys at a time; here whole blocks of them are masked for some queries.
    call = Call((Neighborhood((Axis(7),)),), (1300,), 1, 1, 1, 4, 4, 0, False, 0)
    config = TileConfig((1300,), (1300,), variant="strips along axis 0")
    inputs = call.inputs()
    found, *grads = run(inputs, call.neighborhoods, call.scale, 0, configs=(config, config))
    wanted = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, *grads)
    torch.testing.assert_close(found, wanted, **EXACT)


@pytest.mark.parametrize("layout", range(4), ids=["slice", "heads first", "every second token", "second half"])
@pytest.mark.parametrize("variant", ["slabs", "strips along axis 0", "strips along axis 1"])
def test_strided_inputs(layout, variant):
    call = Call((Neighborhood((Axis(3), Axis(4))),), (6, 8), 2, 2, 2, 5, 5, 0, False, 0)
    inputs = call.inputs()
    strided = Inputs(*(None if t is None else list(layouts(t))[layout] for t in inputs))
    config = TileConfig((3, 8) if variant == "slabs" else (3, 4), (3, 8), variant=variant)
    found, grad, grad_lse = run(strided, call.neighborhoods, call.scale, 0, configs=(config, config))
    torch.testing.assert_close(found, run(inputs, call.neighborhoods, call.scale, 0, configs=(config, config))[0])
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    above = list(layouts(grad))[layout]
    sums = grad_lse.transpose(0, -1).contiguous().transpose(0, -1)
    grads = gradients_of(BACKEND, problem, config, strided, found[0], found[1], above, sums)
    torch.testing.assert_close([g for g in grads if g is not None], found[2:])


@pytest.mark.parametrize("call", [whole(5), whole(4, 3)], ids=["plain", "dilated"])
def test_inputs_are_left_alone_and_results_repeat(call):
    inputs = call.inputs(torch.float32)
    before = [t.clone() for t in inputs if t is not None]
    first = run(inputs, call.neighborhoods, call.scale, 0)
    second = run(inputs, call.neighborhoods, call.scale, 0)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close([t for t in inputs if t is not None], before, rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["slabs", "strips along axis 0"])
def test_buffers_and_masks_of_inference_mode_serve_outside_of_it(variant):
    call = Call((Neighborhood((Axis(5), Axis(3))),), (12, 6), 2, 2, 2, 7, 7, 0, False, 0)
    config = TileConfig((4, 6) if variant == "slabs" else (4, 3), (4, 6), variant=variant)
    inputs = call.inputs()
    with torch.inference_mode():
        inside, *_ = run(Inputs(*inputs), call.neighborhoods, call.scale, 0, configs=(config, config))
    outside, *_ = run(inputs, call.neighborhoods, call.scale, 0, configs=(config, config))
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def test_threads_do_not_share_buffers():
    call = Call((Neighborhood((Axis(5), Axis(3))),), (48, 48), 2, 2, 2, 16, 16, 0, False, 0)
    inputs = [call.inputs(), Inputs(*(None if t is None else t * 0.5 for t in call.inputs()))]
    problem = Problem.of(inputs[0], call.neighborhoods, call.scale)
    config = TileConfig((4, 4), (4, 4), variant="strips along axis 0")
    alone = [BACKEND.forward(problem, config, i) for i in inputs]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            together = list(pool.map(lambda i: BACKEND.forward(problem, config, i), inputs))
            torch.testing.assert_close(together, alone, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("extra", [0, 7], ids=["window", "window and additional keys"])
def test_error_is_at_most_a_fifth_above_torch_s(dtype, extra):
    neighborhood = Neighborhood((Axis(7), Axis(9)))
    call = Call((neighborhood,), (20, 23), 2, 4, 2, 32, 32, extra, False, 1)
    inputs = call.inputs(dtype)
    found, grad, _ = run(inputs, call.neighborhoods, call.scale, 0, with_grad_lse=False)
    assert_at_most_a_fifth_above_torch(found, inputs, call.neighborhoods, call.scale, grad)


def test_half_precision_beyond_its_range_inside():
    # Scores of 1e6 would overflow float16: they must be held in float32.
    inputs = Inputs(*(torch.full((1, 8, 1, 4), value, dtype=torch.float16) for value in (500.0, 500.0, 1.0)))
    neighborhoods = (Neighborhood((Axis(3),)),)
    found, *_ = run(inputs, neighborhoods, 1.0, 0)
    torch.testing.assert_close(found[0], inputs.value)
    torch.testing.assert_close(found[1], torch.full((1, 8, 1), 1e6) + torch.tensor(3.0).log())


@pytest.mark.parametrize("has_rpb", [False, True])
def test_empty_batch(has_rpb):
    call = Call((Neighborhood((Axis(3), Axis(2))),), (5, 4), 0, 2, 1, 4, 6, 2, has_rpb, 0)
    inputs = call.inputs()
    found, *_ = run(inputs, call.neighborhoods, call.scale, 0)
    shapes = [(0, 5, 4, 2, 6), (0, 5, 4, 2), *(tuple(t.shape) for t in inputs if t is not None)]
    assert [tuple(t.shape) for t in found] == shapes
    assert all(t.abs().sum() == 0 for t in found)


class LargestAllocation(TorchDispatchMode):
    """The most bytes in any one tensor that operators return."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(
    ("lengths", "neighborhood"),
    [
        ((65536,), Neighborhood((Axis(129),))),
        ((256, 256), Neighborhood((Axis(5), Axis(7)))),
        ((16, 64, 64), Neighborhood((Axis(3, causal=True), Axis(3), Axis(3, dilation=2)))),
    ],
    ids=["1-D", "2-D", "3-D"],
)
def test_memory_grows_with_tokens_only(lengths, neighborhood):
    call = Call((neighborhood,), lengths, 1, 1, 1, 8, 8, 0, False, 0)
    inputs = call.inputs(torch.float32)
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    forward, backward = (BACKEND.configs(problem, d)[0] for d in ("forward", "backward"))
    with LargestAllocation() as largest:
        output, lse = BACKEND.forward(problem, forward, inputs)
        gradients_of(BACKEND, problem, backward, inputs, output, lse, output)
    # The scores of these problems, dense, are 16 GB; strips and masks are bounded by constants.
    bounded = cpu_cost.MASK_PAIRS * 4 + 2 * max(cpu_cost.CHUNK_BYTES, cpu_cost.MASK_BYTES)
    assert largest.bytes <= 8 * inputs.query.numel() * 4 + bounded


@pytest.mark.parametrize(
    ("dtype", "device", "reason"),
    [
        (torch.float64, "meta", "not on a CPU"),
        (torch.int32, "cpu", "torch.int32"),
        (torch.complex64, "cpu", "complex64"),
    ],
)
def test_unsupported_says_why(dtype, device, reason):
    tensor = torch.zeros(1, 4, 1, 4, dtype=dtype, device=device)
    problem = Problem.of(Inputs(tensor, tensor, tensor), (Neighborhood((Axis(3),)),), 1.0)
    assert reason in BACKEND.unsupported(problem)


def test_configs_tell_the_box_of_keys():
    neighborhood = Neighborhood((Axis(13), Axis(5, causal=True)))
    problem = Problem.of(Call((neighborhood,), (64, 48), 1, 1, 1, 8, 8, 0, False, 0).inputs(), (neighborhood,), 1.0)
    for config in BACKEND.configs(problem, "forward"):
        for axis, length, size, box in zip(neighborhood.axes, (64, 48), config.query_tile, config.key_tile):
            boxes = [key_interval(axis, length, tile) for tile in tiles(length, size)]
            assert box == max(high - low for low, high in boxes)


def test_unknown_tiling_is_refused():
    call = Call((Neighborhood((Axis(3), Axis(3))),), (8, 8), 1, 1, 1, 4, 4, 0, False, 0)
    problem = Problem.of(call.inputs(), call.neighborhoods, 1.0)
    # Slabs are whole rows of the first axis.
    with pytest.raises(ValueError, match="cannot run tile"):
        BACKEND.forward(problem, TileConfig((4, 4), (4, 4), variant="slabs"), call.inputs())


def test_interior_tiles_share_a_mask_and_a_call():
    runs = cpu_plan.row_runs(Axis(13), 4096, 8)
    assert max(r.tiles for r in runs) == 4096 // 8 - 2
    assert sum(r.tiles * r.rows for r in runs) == 4096


@pytest.mark.parametrize("axis", [Axis(5), Axis(6, stride=3), Axis(4, causal=True), Axis(9, boundary="clip")])
@pytest.mark.parametrize("size", [1, 3, 4, 17])
def test_runs_cover_every_window(axis, size):
    mask = torch.zeros(17, 17, dtype=torch.bool)
    for run_ in cpu_plan.row_runs(axis, 17, size):
        for i in range(run_.tiles):
            for j, (start, stop) in enumerate(run_.windows):
                key = run_.first_key + i * run_.rows
                mask[run_.first_query + i * run_.rows + j, key + start : key + stop] = True
    assert torch.equal(mask, axis_mask(axis, 17))


def test_masks_are_forgotten_beyond_their_budget(monkeypatch):
    monkeypatch.setattr(cpu_masks, "CACHED_BYTES", 1000)
    cache = cpu_masks.MaskCache()
    plans = []
    for length in range(8, 40):
        call = Call((Neighborhood((Axis(3),)),), (length,), 1, 1, 1, 4, 4, 0, False, 0)
        problem = Problem.of(call.inputs(), call.neighborhoods, 1.0)
        config = TileConfig((length,), (length,), variant="strips along axis 0")
        (program,) = cpu._programs(problem, config, 4, "forward")
        plans.append(program.plan)
        (part,) = program.plan.parts
        (work,) = part.groups[0].works
        assert cache.get(program.plan.key, part, part.groups[0], work, torch.float32) is not None
        assert cache._bytes <= 1000
