"""The unfused kernels on a GPU: every dtype, larger problems, against a float64 result of plain torch on the device.

Plain torch (`variant="torch"`) is itself held against the oracle by tests/test_unfused.py; in float64 it is the truth.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
from closeness import assert_as_close_as_torch, gradients_of, random_gradients
from sampled import sampled_errors
from vicinal.backends.gpu import tables
from vicinal.backends.unfused import BACKEND, programs
from vicinal.backends.unfused import launch as unfused_launch
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.unfused import neighborhood_av, neighborhood_qk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CASES = {  # name: batch, lengths, heads, kv_heads, head_dim, value_dim, geometry, rpb
    "1-D": (2, (1000,), 3, 3, 64, 64, {"kernel_size": 63}, False),
    "1-D causal dilated, grouped queries":
        (1, (777,), 4, 2, 32, 48, {"kernel_size": 31, "dilation": 5, "is_causal": True}, True),
    "2-D": (2, (40, 36), 2, 2, 32, 32, {"kernel_size": 13}, True),
    "2-D mixed, dim 128":
        (1, (33, 50), 2, 1, 128, 128, {"kernel_size": (9, 5), "dilation": (2, 3), "is_causal": (False, True)}, False),
    "2-D strided, dim beyond a block": (1, (24, 24), 1, 1, 160, 80, {"kernel_size": 8, "stride": (4, 3)}, False),
    "3-D": (1, (10, 14, 12), 2, 2, 64, 64, {"kernel_size": (3, 7, 5)}, True),
    "3-D clip": (1, (6, 9, 11), 2, 2, 16, 16, {"kernel_size": (7, 3, 5), "boundary": "clip"}, False),
}  # fmt: skip
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def run(inputs, geometry, scale, variant):
    query, key, value, rpb = inputs
    scores = neighborhood_qk(query, key, rpb=rpb, scale=scale, variant=variant, **geometry)
    return neighborhood_av(scores.softmax(-1), value, variant=variant, **geometry)


def error(got, want):
    return ((got.double() - want).norm() / want.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("variant", ["naive", "gemm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case, dtype, variant, monkeypatch):
    """Errors are at most three times those of the same composition in plain torch in that dtype (and of rounding)."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    batch, lengths, heads, kv_heads, dim, value_dim, geometry, has_rpb = CASES[case]
    windows = geometry["kernel_size"]
    windows = (windows,) * len(lengths) if isinstance(windows, int) else windows
    generator = torch.Generator("cuda").manual_seed(0)

    def make(*shape):
        return torch.randn(shape, generator=generator, device="cuda").to(dtype).requires_grad_()

    inputs = [
        make(batch, *lengths, heads, dim),
        make(batch, *lengths, kv_heads, dim),
        make(batch, *lengths, kv_heads, value_dim),
        make(heads, *(2 * k - 1 for k in windows)) if has_rpb else None,
    ]
    given = [t for t in inputs if t is not None]
    grad = torch.randn((batch, *lengths, heads, value_dim), generator=generator, device="cuda").to(dtype)

    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    want = run(exact, geometry, dim**-0.5, "torch")
    wanted = [want, *torch.autograd.grad(want, [t for t in exact if t is not None], grad.double())]
    plain = run(inputs, geometry, dim**-0.5, "torch")
    yardsticks = [plain, *torch.autograd.grad(plain, given, grad)]
    got = run(inputs, geometry, dim**-0.5, variant)
    results = [got, *torch.autograd.grad(got, given, grad)]
    torch.cuda.synchronize()
    for i, (result, expected, yardstick) in enumerate(zip(results, wanted, yardsticks)):
        allowed = 3 * error(yardstick, expected) + torch.finfo(dtype).eps
        assert error(result, expected) < allowed, f"tensor {i} of output and gradients"


@pytest.mark.parametrize("variant", ["naive", "gemm"])
def test_windows_do_not_compile_anew(variant):
    """One kernel for every window and length: what a sweep over windows relies on."""
    from vicinal.backends.unfused.kernels import gemm, naive

    kernels = {"naive": naive, "gemm": gemm}[variant]
    x = torch.randn(1, 40, 40, 2, 64, device="cuda", dtype=torch.float16)

    def compiled() -> int:
        caches = [kernel.device_caches[torch.cuda.current_device()][0] for kernel in (kernels.pn, kernels.nn)]
        return sum(len(cache) for cache in caches)

    for window in (3, 4):  # 3 and 4 once: a first use may compile
        neighborhood_av(neighborhood_qk(x, x, window, variant=variant).softmax(-1), x, window, variant=variant)
    before = compiled()
    for window in (5, 7, 13, 16, 32, 40):
        neighborhood_av(neighborhood_qk(x, x, window, variant=variant).softmax(-1), x, window, variant=variant)
    y = x[:, :33, :37].contiguous()
    neighborhood_av(neighborhood_qk(y, y, 11, variant=variant).softmax(-1), y, 11, variant=variant)
    assert compiled() == before


@pytest.mark.parametrize("variant", ["naive", "gemm"])
def test_gradients_repeat_bit_by_bit(variant):
    """No atomics: two runs give the same bits."""
    x = torch.randn(2, 30, 30, 2, 32, device="cuda", dtype=torch.float16, requires_grad=True)
    results = []
    for _ in range(2):
        out = run((x, x, x, None), {"kernel_size": 9}, 0.2, variant)
        results.append(torch.autograd.grad(out.float().square().sum(), x)[0])
    assert torch.equal(*results)


def test_the_default_on_cuda_is_gemm_and_float64_is_naive():
    half, double = (torch.empty(0, device="cuda", dtype=d) for d in (torch.float16, torch.float64))
    assert unfused_launch.choose(half.dtype, half.device, None) == "gemm"
    assert unfused_launch.choose(double.dtype, double.device, None) == "naive"


def test_float64_runs_naively():
    x = torch.randn(1, 9, 8, 1, 12, device="cuda", dtype=torch.float64)
    torch.testing.assert_close(
        run((x, x, x, None), {"kernel_size": 5}, 0.3, None), run((x, x, x, None), {"kernel_size": 5}, 0.3, "torch")
    )


@pytest.mark.parametrize("variant", ["naive", "gemm"])
def test_offsets_beyond_32_bits(variant):
    """Attention weights of more than 2**31 elements."""
    free, _ = torch.cuda.mem_get_info()
    if free < 24 << 30:
        pytest.skip("needs 24 GiB of free memory")
    x = torch.randn(1, 1 << 16, 8, 16, device="cuda", dtype=torch.float16)
    window = 4200  # 2**16 * 8 * 4200 = 2.2e9 weights
    scores = neighborhood_qk(x, x, window, variant=variant)
    assert scores.numel() > 1 << 31
    last = scores[:, -1].float()
    expected = torch.einsum("bhd,bnhd->bhn", x[:, -1].float(), x[:, -window:].float())
    torch.testing.assert_close(last, expected, rtol=2e-3, atol=2e-2)
    output = neighborhood_av(scores.softmax(-1), x, window, variant=variant)
    expected = torch.einsum("bhn,bnhd->bhd", last.softmax(-1), x[:, -window:].float())
    torch.testing.assert_close(output[:, -1].float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("variant", ["naive", "gemm", "torch"])
def test_a_graph_after_caches_are_flooded(variant):
    """Forward and gradients, captured: what they read lives as long as the graph."""
    neighborhood = Neighborhood.of(2, 5, is_causal=(True, False)).resolve((20, 22))
    inputs = Inputs(*(torch.randn(1, 20, 22, 2, 32, device="cuda", dtype=torch.float16) for _ in range(3)))
    problem = Problem.of(inputs, (neighborhood,), 0.2)
    config = next(c for c in BACKEND.configs(problem, "forward") if c.variant == variant)

    def everything() -> list[torch.Tensor]:
        output, lse = BACKEND.forward(problem, config, inputs)
        return [output, lse, *gradients_of(BACKEND, problem, config, inputs, output, lse, output)[:3]]

    expected = everything()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything()
    tables._tables.clear()
    programs._prepared.clear()
    others = [torch.full((128,), 7, dtype=torch.int32, device="cuda") for _ in range(1 << 12)]
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(captured, expected, strict=True):  # plain torch sums gradients of keys in any order
        torch.testing.assert_close(got, want, rtol=1e-2 * (variant == "torch"), atol=1e-2 * (variant == "torch"))
    assert others


@settings(max_examples=25)
@given(strategies.calls(per_head=False), strategies.any_layouts(), st.sampled_from(["naive", "gemm"]))
def test_random_calls_in_any_layout(drawn, layouts, variant):
    inputs = layouts.inputs(drawn.inputs(torch.float32, "cuda"))
    problem = Problem.of(inputs, drawn.neighborhoods, 0.4)
    config = next(c for c in BACKEND.configs(problem, "forward") if c.variant == variant)
    output, lse = BACKEND.forward(problem, config, inputs)
    upstream = layouts.upstream(Upstream(output, lse, *random_gradients(output, lse, 3)))
    grads = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    results = [output, lse, *(g for g in grads if g is not None)]
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, 0.4, *upstream[2:])


LARGE = {  # batch, lengths, heads, kv heads, head dim, columns between tokens (None: contiguous), geometry
    "packed, grouped": (48, (128, 128), 16, 8, 128, 4096, {"kernel_size": 3}),
    "weights": (1, (256, 256), 16, 16, 16, None, {"kernel_size": (47, 47)}),
    "dilated weights": (1, (16, 64, 64), 8, 8, 16, None, {"kernel_size": (2, 46, 46), "dilation": (8, 1, 1)}),
}


@pytest.mark.parametrize("variant", ["naive", "gemm"])
@pytest.mark.parametrize("name", LARGE)
def test_more_than_32_bits_of_elements(name, variant, most_of_the_memory):
    """Forward and backward at sampled tokens, of inputs or of attention weights beyond 2**31 elements."""
    batch, lengths, heads, kv_heads, dim, columns, geometry = LARGE[name]

    def randn(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="cuda", dtype=torch.float16).normal_()

    torch.manual_seed(0)
    counts = (heads, kv_heads, kv_heads)
    if columns is None:
        inputs = Inputs(*(randn(batch, *lengths, h, dim) for h in counts))
    else:
        projected = randn(batch, *lengths, columns)[..., : dim * sum(counts)]
        inputs = Inputs(*(t.unflatten(-1, (-1, dim)) for t in projected.split([dim * h for h in counts], -1)))
    neighborhood = Neighborhood.of(len(lengths), **geometry).resolve(lengths)
    problem = Problem.of(inputs, (neighborhood,), dim**-0.5)
    config = next(c for c in BACKEND.configs(problem, "forward") if c.variant == variant)
    output, lse = BACKEND.forward(problem, config, inputs)
    upstream = Upstream(output, lse, randn(*output.shape), None)
    grads = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    errors = sampled_errors(problem, inputs, upstream, grads)
    assert max(errors.values()) < 2e-2, errors
