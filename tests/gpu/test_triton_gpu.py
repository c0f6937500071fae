"""The Triton backend on a GPU: random problems against the oracle, large tensors, graphs, streams, determinism."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, replace
from threading import Barrier, Thread

import pytest
import torch
from hypothesis import given, settings

import strategies
from closeness import assert_as_close_as_torch, gradients_of, random_gradients
from sampled import sampled_errors
from vicinal.backends.gpu import tables
from vicinal.backends.triton import BACKEND
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.kernels.backward import key_value_gradient_kernel, query_gradient_kernel
from vicinal.backends.triton.kernels.forward import forward_kernel
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
of = Neighborhood.of
MAX_LENGTH = {1: 200, 2: 20, 3: 9}
TILES = {1: ((64,), (32,)), 2: ((8, 8), (4, 8)), 3: ((2, 4, 8), (2, 4, 4))}


@dataclass(frozen=True)
class Kind:
    """What compiles one set of kernels: random problems of a kind differ in all else."""

    rank: int
    general: bool  # strides, dilations, causal and clipped axes
    per_head: bool
    extras: bool  # bias table (forward and backward) and additional keys
    dtype: torch.dtype
    head_dim: int = 32
    value_dim: int = 32


HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
KINDS = [
    Kind(1, False, False, False, HALF, 64, 64),
    Kind(1, True, False, True, BRAIN),
    Kind(1, True, True, True, FULL, 12, 20),
    Kind(2, False, False, False, BRAIN, 64, 64),
    Kind(2, False, False, True, HALF),
    Kind(2, True, False, False, BRAIN, 128, 128),
    Kind(2, True, True, True, HALF, 16, 48),
    Kind(2, True, True, False, FULL),
    Kind(3, False, False, False, HALF),
    Kind(3, True, False, False, BRAIN, 64, 64),
    Kind(3, True, False, True, FULL, 8, 8),
    Kind(3, True, True, True, BRAIN, 96, 40),
]


def draw_axis(rng: random.Random, general: bool, longest: int) -> tuple[Axis, int]:
    length = rng.randint(1, longest)
    if not general:
        return Axis(rng.randint(1, length)), length
    causal, boundary = rng.random() < 0.4, rng.choice(["shift", "clip"])
    dilation = rng.randint(1, min(4, length))
    window = rng.randint(1, length + 3 if boundary == "clip" or causal else length // dilation)
    return Axis(window, rng.randint(1, window), dilation, causal, boundary), length


def draw(kind: Kind, seed: int) -> strategies.Call:
    rng = random.Random(seed)
    pairs = [draw_axis(rng, kind.general, MAX_LENGTH[kind.rank]) for _ in range(kind.rank)]
    lengths = tuple(n for _, n in pairs)
    kv_heads = rng.randint(1, 2)
    heads = kv_heads * rng.randint(1, 3)
    one = Neighborhood(tuple(a for a, _ in pairs))
    every = (one,)
    if kind.per_head and heads > 1:
        every = tuple(
            Neighborhood(
                tuple(Axis(a.window, rng.randint(1, a.window), 1, rng.random() < 0.5, "clip") for a in one.axes)
                if any(a.window > n for a, n in pairs)
                else tuple(
                    Axis(a.window, rng.randint(1, a.window), rng.randint(1, n // a.window), rng.random() < 0.3)
                    for a, n in pairs
                )
            )
            for _ in range(heads)
        )
    return strategies.Call(
        every, lengths, rng.randint(1, 3), heads, kv_heads, kind.head_dim, kind.value_dim,
        rng.choice([1, 7, 40]) if kind.extras else 0, kind.extras, seed,
    )  # fmt: skip


def run_both(drawn, dtype, tiles=None, grad_lse=True, unfolded=False):
    """Forward and backward with these tiles, or the first tilings listed; `unfolded`: of several dilation groups."""
    inputs = drawn.inputs(dtype, "cuda")
    problem = Problem.of(inputs, drawn.neighborhoods, drawn.scale)
    assert BACKEND.unsupported(problem) is None
    forward, backward = (
        (Tiling(*tiles), GradientTilings(Tiling(*tiles), Tiling(*tiles)))
        if tiles
        else (
            next(c for c in BACKEND.configs(problem, direction) if c.unfolded is not None or not unfolded)
            for direction in ("forward", "backward")
        )
    )
    output, lse = BACKEND.forward(problem, forward, inputs)
    generator = torch.Generator().manual_seed(drawn.seed)
    grad_output = torch.randn(output.shape, generator=generator).to(output)
    grad_lse = torch.randn(lse.shape, generator=generator).to(lse) if grad_lse else None
    grads = gradients_of(BACKEND, problem, backward, inputs, output, lse, grad_output, grad_lse)
    return inputs, [output, lse, *(g for g in grads if g is not None)], grad_output, grad_lse


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.rank}d-{k.head_dim}-{k.dtype}".replace("torch.", ""))
@pytest.mark.parametrize("part", range(3))
def test_random_problems(kind, part):
    for seed in range(part * 8, part * 8 + 8):  # one compiled kernel serves them all
        drawn = draw(kind, seed)
        inputs, results, grad_output, grad_lse = run_both(drawn, kind.dtype, TILES[kind.rank])
        assert_as_close_as_torch(results, inputs, drawn.neighborhoods, drawn.scale, grad_output, grad_lse)


@pytest.mark.parametrize(
    ("lengths", "neighborhood", "head_dim"),
    [
        pytest.param((30, 30), of(2, 7), 32, id="nat"),
        pytest.param((40, 40), of(2, 13), 64, id="2d"),
        pytest.param((9, 16, 18), of(3, (3, 7, 7)), 64, id="ltx"),
        pytest.param((8, 22, 20), of(3, (8, 4, 4), 1, (1, 5, 5)), 128, id="cosmos"),
        pytest.param((1200,), of(1, 300), 256, id="1d-256"),
        pytest.param((24, 24), of(2, 24), 128, id="whole"),
    ],
)
@pytest.mark.parametrize("dtype", [BRAIN, FULL])
def test_tilings_that_the_backend_chooses(lengths, neighborhood, head_dim, dtype):
    drawn = strategies.Call((neighborhood.resolve(lengths),), lengths, 2, 4, 2, head_dim, head_dim, 0, False, 3)
    inputs, results, grad_output, grad_lse = run_both(drawn, dtype, grad_lse=False)
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, drawn.scale, grad_output, grad_lse)


@pytest.mark.parametrize("dtype", [HALF, FULL])
@pytest.mark.parametrize(
    ("lengths", "neighborhood", "head_dim"),
    [
        pytest.param((64,), of(1, 3, dilation=21), 64, id="1d-uneven"),
        pytest.param((2048,), of(1, 3, dilation=682), 128, id="1d-many"),
        pytest.param((130,), of(1, 7, dilation=13, stride=2, is_causal=True), 32, id="1d-causal-even"),
        pytest.param((12, 12), of(2, (3, 2), dilation=4), 64, id="2d-even"),
        pytest.param((16, 17), of(2, (2, 3), dilation=(6, 5), boundary="clip"), 32, id="2d-clip-uneven"),
    ],
)
def test_tiles_of_several_dilation_groups(lengths, neighborhood, head_dim, dtype):
    drawn = strategies.Call((neighborhood.resolve(lengths),), lengths, 8, 4, 2, head_dim, head_dim, 0, False, 3)
    inputs, results, grad_output, grad_lse = run_both(drawn, dtype, unfolded=True)
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, drawn.scale, grad_output, grad_lse)


LARGE = {  # batch, lengths, heads, kv heads, columns between tokens (None: contiguous), neighborhood's arguments
    "grouped, packed": (48, (128, 128), 16, 8, 4096, {"kernel_size": 7}),
    "grouped": (96, (128, 128), 16, 8, None, {"kernel_size": 7}),
    "dilated, packed": (1, (16, 256, 256), 12, 12, 4608, {"kernel_size": (2, 7, 7), "dilation": (8, 1, 1)}),
    "dilated": (1, (16, 256, 256), 18, 18, None, {"kernel_size": (2, 7, 7), "dilation": (8, 1, 1)}),
    "several groups a tile": (1, (1 << 20,), 18, 18, None, {"kernel_size": 3, "dilation": 1 << 18}),
}


@pytest.mark.parametrize("name", LARGE)
def test_more_than_32_bits_of_elements(name, most_of_the_memory):
    """Forward and backward, at sampled tokens; slices of a packed projection, and tensors of their own."""
    batch, lengths, heads, kv_heads, columns, arguments = LARGE[name]

    def randn(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="cuda", dtype=BRAIN).normal_()

    torch.manual_seed(0)
    counts = (heads, kv_heads, kv_heads)
    if columns is None:
        inputs = Inputs(*(randn(batch, *lengths, h, 128) for h in counts))
    else:
        projected = randn(batch, *lengths, columns)[..., : 128 * sum(counts)]
        inputs = Inputs(*(t.unflatten(-1, (-1, 128)) for t in projected.split([128 * h for h in counts], -1)))
    neighborhood = Neighborhood.of(len(lengths), **arguments).resolve(lengths)
    problem = Problem.of(inputs, [neighborhood], 128**-0.5)
    assert BACKEND.unsupported(problem) is None
    output, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    upstream = Upstream(output, lse, randn(*output.shape), None)
    config = BACKEND.configs(problem, "backward")[0]
    grads = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    errors = sampled_errors(problem, inputs, upstream, grads)
    assert max(errors.values()) < 1.2e-2, errors


def test_a_dilation_times_a_stride_beyond_32_bits(most_of_the_memory):
    """In one axis of a tile: neighbors are 2**32 elements apart."""
    length, dilation, apart = 12, 3, 2**31 // 2 + 8
    storage = torch.empty(length * apart, dtype=HALF, device="cuda")
    far = storage.as_strided((1, length, 1, 32), (0, apart, 32, 1))
    far.normal_()
    near = far.contiguous()
    neighborhood = of(1, 3, dilation=dilation).resolve((length,))
    config = Tiling((16,), (16,))
    results = []
    for tensor in (far, near):
        inputs = Inputs(tensor, tensor, tensor)
        problem = Problem.of(inputs, [neighborhood], 0.2)
        output, lse = BACKEND.forward(problem, config, inputs)
        grads = gradients_of(BACKEND, problem, GradientTilings(config, config), inputs, output, lse, near)
        results.append([output, lse, *grads[:3]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_more_than_two_to_the_31_elements_in_one_batch_entry():
    """Rows far apart in memory: a view whose tokens are 2^26 elements apart, and a tile spans more than 2^31."""
    length, apart = 64, 2**26
    storage = torch.empty(length * apart, dtype=HALF, device="cuda")
    query = storage.as_strided((1, length, 1, 32), (0, apart, 32, 1))
    query.normal_()
    neighborhood = of(1, 33).resolve((length,))
    near = query.contiguous()
    config = Tiling((64,), (64,))
    results = []
    for tensor in (query, near):
        inputs = Inputs(tensor, tensor, tensor)
        problem = Problem.of(inputs, [neighborhood], 0.2)
        output, lse = BACKEND.forward(problem, config, inputs)
        grads = gradients_of(BACKEND, problem, GradientTilings(config, config), inputs, output, lse, near)
        results.append([output, lse, *grads[:3]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def problem_and_inputs(seed: int = 0, dtype: torch.dtype = HALF) -> tuple[Problem, Inputs]:
    drawn = strategies.Call((of(2, 7).resolve((28, 28)),), (28, 28), 2, 4, 2, 32, 32, 5, True, seed)
    inputs = drawn.inputs(dtype, "cuda")
    return Problem.of(inputs, drawn.neighborhoods, drawn.scale), inputs


def everything(problem: Problem, inputs: Inputs) -> list[torch.Tensor]:
    output, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    grads = gradients_of(BACKEND, problem, BACKEND.configs(problem, "backward")[0], inputs, output, lse, output, lse)
    return [output, lse, *(g for g in grads if g is not None)]


def test_graph_capture():
    problem, inputs = problem_and_inputs()
    everything(problem, inputs)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything(problem, inputs)
    _, other = problem_and_inputs(seed=1)
    for t, o in zip(inputs, other, strict=True):
        if t is not None:
            t.copy_(o)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, everything(problem, other), strict=True))


def test_a_new_size_waits_for_nothing_that_is_queued():
    """Not for the start tiles that it keeps either; another stream that reads them waits for the one that writes."""

    def call(size: int) -> list[torch.Tensor]:
        generator = torch.Generator("cuda").manual_seed(size)
        shape = (1, size, 70, 8, 64)
        q, k, v = (torch.randn(shape, generator=generator, device="cuda", dtype=HALF) for _ in range(3))
        leaves = [t.requires_grad_() for t in (q, k, v)]
        output = neighborhood_attention(q, k, v, of(2, 7), backend="triton")
        return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]

    busy, other = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(busy):  # kernels, and room for results
        for size in (64, 61, 62):
            call(size)
    torch.cuda.synchronize()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(10**9)  # about half a second
        done = busy.record_event()
        begun = call(63)
        assert not done.query(), "the host has waited for the device"
    with torch.cuda.stream(other):
        ahead = call(63)
    torch.cuda.synchronize()
    expected = call(63)
    assert all(torch.equal(a, b) for a, b in zip(begun, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ahead, expected, strict=True))


def test_graph_of_heads_that_differ_after_caches_are_flooded():
    """A captured graph reads the table of heads, whatever caches and allocator do meanwhile."""
    neighborhoods = tuple(of(2, k, is_causal=k == 5).resolve((20, 22)) for k in (3, 5, 9, 20))
    drawn = strategies.Call(neighborhoods, (20, 22), 1, 4, 2, 32, 32, 3, False, 0)
    inputs = drawn.inputs(HALF, "cuda")
    problem = Problem.of(inputs, drawn.neighborhoods, drawn.scale)
    expected = everything(problem, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything(problem, inputs)
    BACKEND._forward.clear()
    BACKEND._backward.clear()
    device, size = problem.device, tables.MAX_BYTES // 8
    for i in range(18):  # twice as many as fit: what was looked up before has a second chance
        tables.table_of(("flood", i), device, lambda i=i: [[i] * (size // 4)])
    assert not any(isinstance(key[0], tuple) and key[0][0] == "triton" for key in tables._tables._entries)
    others = [torch.full((128,), 7, dtype=torch.int32, device="cuda") for _ in range(1 << 12)]
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
    assert others


@pytest.mark.parametrize("kind", strategies.KINDS)
@pytest.mark.parametrize("dtype", [HALF, FULL])
def test_every_kind_of_layout(kind, dtype):
    drawn = strategies.Call((of(2, (5, 4)).resolve((11, 13)),), (11, 13), 2, 4, 2, 40, 24, 3, True, 1)
    counts = (1, len(Inputs._fields)), (2, 4)
    layouts = strategies.Layouts(*((strategies.Layout(kind, seed),) * n for seed, n in counts))
    if kind == "expanded":
        saved = strategies.Layout("contiguous")
        layouts = replace(layouts, of_upstream=(saved, saved, *layouts.of_upstream[2:]))
    run_in_layouts(drawn, layouts, dtype)


@settings(max_examples=40)
@given(strategies.calls(max_head_dim=9), strategies.any_layouts())
def test_random_calls_in_any_layout(drawn, layouts):
    run_in_layouts(drawn, layouts, FULL)


def run_in_layouts(drawn: strategies.Call, layouts: strategies.Layouts, dtype: torch.dtype) -> None:
    """Forward and backward against the oracle; tilings of few kinds, so that few kernels are compiled."""
    inputs = layouts.inputs(drawn.inputs(dtype, "cuda"))
    problem = Problem.of(inputs, drawn.neighborhoods, drawn.scale)
    tiling = Tiling(*TILES[problem.rank])
    output, lse = BACKEND.forward(problem, tiling, inputs)
    upstream = layouts.upstream(Upstream(output, lse, *random_gradients(output, lse, drawn.seed)))
    grads = BACKEND.backward(problem, GradientTilings(tiling, tiling), inputs, upstream, Wanted.of(inputs))
    assert all(g is None or g.is_contiguous() for g in grads)
    results = [output, lse, *(g for g in grads if g is not None)]
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, drawn.scale, *upstream[2:])


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("names", ["query", "key", "value", "key rpb", "query value", "additional_keys", "rpb"])
def test_only_wanted_gradients(names, together):
    problem, inputs = problem_and_inputs(dtype=FULL)
    tiling = Tiling(*TILES[2])
    output, lse = BACKEND.forward(problem, tiling, inputs)
    upstream = Upstream(output, lse, *random_gradients(output, lse, 3))
    config = GradientTilings(tiling, tiling, together)
    every = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    wanted = Wanted(*(field in names.split() for field in Wanted._fields))
    grads = BACKEND.backward(problem, config, inputs, upstream, wanted)
    for grad, full, wants in zip(grads.numbers, every.numbers, wanted, strict=True):
        assert (grad is not None) == wants
        if wants:
            torch.testing.assert_close(grad, full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [HALF, BRAIN, FULL])
@pytest.mark.parametrize("additional", [0, 5])
def test_rows_without_a_finite_score(dtype, additional):
    """By a bias of -inf in the first head: what additional keys there are, or nothing."""
    drawn = strategies.Call((of(2, 7).resolve((20, 20)),), (20, 20), 2, 2, 2, 32, 32, additional, True, 1)
    inputs = drawn.inputs(dtype, "cuda")
    inputs.rpb[0] = float("-inf")
    problem = Problem.of(inputs, drawn.neighborhoods, drawn.scale)
    output, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    upstream = Upstream(output, lse, *random_gradients(output, lse, 3))
    config = BACKEND.configs(problem, "backward")[0]
    grads = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    assert not any(t.isnan().any() for t in (output, *grads) if t is not None)
    assert all((g == 0).all() for g in (grads.key[..., 0, :], grads.value[..., 0, :], grads.rpb[0]))
    if not additional:
        assert (output[..., 0, :] == 0).all()
        assert (lse[..., 0] == float("-inf")).all()
        assert (grads.query[..., 0, :] == 0).all()


@pytest.mark.parametrize("least", [-1e10, -1.1e38, -2.2e38])
def test_any_finite_score_counts(least):
    """However low: the window is one key, so the result is its value."""
    drawn = strategies.Call((of(1, 1).resolve((4,)),), (4,), 1, 1, 1, 1, 1, 0, False, 0)
    inputs = drawn.inputs(FULL, "cuda")
    inputs.query[:] = 1e19
    inputs.key[:] = least / 1e19
    problem = Problem.of(inputs, drawn.neighborhoods, 1.0)
    output, _ = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    torch.testing.assert_close(output, inputs.value)


def test_first_calls_from_two_threads():
    """The same problem, first met by two threads at once, each on its stream."""
    problem, inputs = problem_and_inputs()
    expected = everything(problem, inputs)
    BACKEND._forward.clear()
    BACKEND._backward.clear()
    found: list[list[torch.Tensor]] = []
    barrier = Barrier(2)
    torch.cuda.synchronize()

    def call() -> None:
        barrier.wait()
        with torch.cuda.stream(torch.cuda.Stream()):
            results = everything(problem, inputs)
            torch.cuda.current_stream().synchronize()
            found.append(results)

    threads = [Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(torch.equal(a, b) for results in found for a, b in zip(results, expected, strict=True))


def test_another_stream():
    problem, inputs = problem_and_inputs()
    expected = everything(problem, inputs)
    stream = torch.cuda.Stream()
    late = Inputs(*(None if t is None else torch.zeros_like(t) for t in inputs))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the inputs arrive late, on this stream
        for t, s in zip(late, inputs, strict=True):
            if t is not None:
                t.copy_(s)
        results = everything(problem, late)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_backward_has_the_same_bits_every_run():
    problem, inputs = problem_and_inputs()
    first = everything(problem, inputs)
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(problem, inputs), strict=True))


def test_no_synchronisation_and_no_new_kernel_for_new_windows():
    problem, inputs = problem_and_inputs()
    everything(problem, inputs)
    config = Tiling((8, 8), (8, 8))
    plain = Inputs(*inputs[:3])

    def run(window):
        own = Problem.of(plain, [of(2, window).resolve((28, 28))], 0.2)
        output, lse = BACKEND.forward(own, config, plain)
        gradients_of(BACKEND, own, GradientTilings(config, config), plain, output, lse, output)
        kernels = (forward_kernel, query_gradient_kernel, key_value_gradient_kernel)
        return [sum(len(kept[0]) for kept in kernel.device_caches.values()) for kernel in kernels]

    run(7)
    for thread in threading.enumerate():
        if thread.name == "vicinal-compiling":  # what other tests' forward passes have started
            thread.join()
    compiled = run(7)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert run(9) == compiled
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_allocates_only_results():
    """But for bias tiles."""
    problem, inputs = problem_and_inputs()
    problem, inputs = replace(problem, has_rpb=False), inputs._replace(rpb=None)
    config = BACKEND.configs(problem, "forward")[0]
    BACKEND.forward(problem, config, inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output, lse = BACKEND.forward(problem, config, inputs)
    results = torch.cuda.memory_allocated() - before
    assert torch.cuda.max_memory_allocated() - before == results
    assert results <= output.nbytes + lse.nbytes + 1024


def test_tf32_follows_torch():
    drawn = strategies.Call((of(1, 50).resolve((300,)),), (300,), 1, 2, 2, 64, 64, 0, False, 0)
    inputs = drawn.inputs(FULL, "cuda")
    problem = Problem.of(inputs, drawn.neighborhoods, drawn.scale)
    config = BACKEND.configs(problem, "forward")[0]
    exact, _ = BACKEND.forward(problem, config, inputs)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        rough, _ = BACKEND.forward(problem, config, inputs)
    finally:
        torch.set_float32_matmul_precision(before)
    difference = float((exact - rough).abs().max() / exact.abs().max())
    assert 1e-6 < difference < 1e-2
