"""The `hopper` backend on a Hopper GPU, against the float64 oracle and the error that SDPA makes on each problem."""

from __future__ import annotations

import random
from itertools import product
from threading import Barrier, Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from closeness import assert_as_close_as_torch, gradients, gradients_of
from sampled import sampled_errors
from strategies import any_layouts
from vicinal.backends.hopper.config import ForwardConfig
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import neighborhood_mask, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
    ),
]

BF16, FP16 = torch.bfloat16, torch.float16
# name: (batch, lengths, heads, kv heads, head dim, value dim, dtype, neighborhood's arguments)
CASES = {
    "1d": (2, (300,), 2, 2, 128, 128, BF16, {"kernel_size": 100}),
    "1d-small": (1, (20,), 1, 1, 64, 64, FP16, {"kernel_size": 7}),
    "1d-one": (1, (5,), 2, 1, 32, 32, BF16, {"kernel_size": 1}),
    "1d-causal": (1, (500,), 2, 2, 128, 128, BF16, {"kernel_size": 111, "is_causal": True}),
    "1d-causal-stride": (1, (500,), 2, 2, 64, 64, BF16, {"kernel_size": 111, "stride": 5, "is_causal": True}),
    "1d-clip": (1, (500,), 2, 2, 64, 64, BF16, {"kernel_size": 111, "boundary": "clip"}),
    "1d-whole": (1, (512,), 2, 2, 128, 128, BF16, {"kernel_size": None}),
    "1d-whole-causal": (1, (700,), 2, 2, 128, 128, BF16, {"kernel_size": None, "is_causal": True}),
    "1d-dilated": (2, (300,), 2, 2, 64, 64, BF16, {"kernel_size": 40, "dilation": 3}),
    "1d-dilated-ragged": (2, (301,), 2, 2, 64, 64, BF16, {"kernel_size": 40, "dilation": 3}),
    "2d": (1, (40, 48), 2, 2, 128, 128, BF16, {"kernel_size": 13}),
    "2d-ragged": (2, (37, 45), 3, 3, 64, 64, FP16, {"kernel_size": (11, 9)}),
    "2d-whole": (1, (40, 48), 1, 1, 128, 128, BF16, {"kernel_size": (40, 48)}),
    "2d-stride": (1, (48, 48), 2, 2, 128, 128, BF16, {"kernel_size": 16, "stride": 16}),
    "2d-odd-stride": (1, (37, 41), 2, 2, 128, 128, BF16, {"kernel_size": (13, 12), "stride": (5, 3)}),
    "2d-causal-row": (1, (37, 41), 2, 2, 64, 64, BF16, {"kernel_size": 12, "is_causal": (True, False)}),
    "2d-causal": (1, (37, 41), 2, 2, 64, 64, BF16, {"kernel_size": 12, "is_causal": True}),
    "2d-clip": (1, (37, 41), 2, 2, 64, 64, BF16, {"kernel_size": 12, "boundary": "clip"}),
    "2d-long": (1, (3, 400), 2, 2, 64, 64, BF16, {"kernel_size": (3, 50)}),
    "2d-gqa": (2, (30, 30), 6, 2, 64, 64, BF16, {"kernel_size": 9}),
    "2d-gqa-packed": (2, (37, 45), 8, 2, 128, 128, BF16, {"kernel_size": 7}),
    "2d-gqa-dilated": (2, (37, 41), 4, 2, 64, 64, BF16, {"kernel_size": 5, "dilation": (3, 4)}),
    "3d-gqa-packed": (2, (6, 9, 11), 16, 1, 96, 96, FP16, {"kernel_size": (3, 4, 5), "stride": (1, 2, 2)}),
    "1d-gqa-causal": (2, (300,), 8, 1, 128, 128, BF16, {"kernel_size": 20, "is_causal": True}),
    "2d-mqa": (1, (30, 30), 4, 1, 128, 128, BF16, {"kernel_size": 9}),
    "2d-dilated": (2, (36, 40), 2, 2, 64, 64, BF16, {"kernel_size": 7, "dilation": (3, 4)}),
    "2d-dilated-ragged": (2, (37, 41), 2, 2, 64, 64, BF16, {"kernel_size": 7, "dilation": (3, 4)}),
    "2d-many": (4, (70, 75), 8, 4, 64, 64, BF16, {"kernel_size": (9, 20)}),  # more tiles than multiprocessors
    "3d": (1, (7, 16, 17), 2, 2, 128, 128, BF16, {"kernel_size": (5, 9, 9)}),
    "3d-stride": (1, (8, 16, 16), 2, 2, 64, 64, BF16, {"kernel_size": (4, 8, 8), "stride": (2, 4, 8)}),
    "3d-causal-time": (
        1,
        (9, 12, 12),
        2,
        2,
        64,
        64,
        BF16,
        {"kernel_size": (5, 5, 5), "is_causal": (True, False, False)},
    ),
    "3d-gqa": (2, (6, 9, 11), 4, 2, 64, 64, FP16, {"kernel_size": (3, 4, 5)}),
    "3d-dilated": (1, (6, 12, 15), 2, 2, 64, 64, BF16, {"kernel_size": (3, 3, 4), "dilation": (1, 3, 3)}),
    "3d-dilated-ragged": (1, (7, 13, 16), 2, 2, 64, 64, BF16, {"kernel_size": (2, 3, 4), "dilation": (3, 3, 2)}),
    "dim-32": (1, (40, 48), 2, 2, 32, 32, BF16, {"kernel_size": 13}),
    "dim-96": (1, (40, 48), 2, 2, 96, 96, BF16, {"kernel_size": 13}),
    "dim-192": (1, (40, 48), 2, 2, 192, 192, BF16, {"kernel_size": 13}),
    "dim-192-128": (1, (40, 48), 2, 1, 192, 128, FP16, {"kernel_size": 13}),
    "dim-256": (1, (40, 48), 2, 2, 256, 256, BF16, {"kernel_size": 13}),
}


def random_case(seed: int) -> tuple:
    """A small problem of any kind that the backend takes."""
    draw = random.Random(seed)
    rank = draw.choice((1, 2, 2, 3))
    most = {1: 700, 2: 40, 3: 14}[rank]
    lengths = tuple(draw.randint(1, most) for _ in range(rank))
    dilation = tuple(draw.choice((1, 1, 1, draw.randint(1, max(1, n // 3)))) for n in lengths)
    causal = tuple(draw.random() < 0.25 for _ in range(rank))
    clip = tuple(draw.choice(("shift", "shift", "clip")) for _ in range(rank))
    cut = (c or b == "clip" for c, b in zip(causal, clip))
    window = tuple(draw.randint(1, n + 9 if c else n // d) for n, d, c in zip(lengths, dilation, cut))
    stride = tuple(draw.choice((1, draw.randint(1, k))) for k in window)
    heads, kv_heads = draw.choice(((1, 1), (2, 2), (4, 2), (3, 1)))
    head_dim = draw.choice((32, 64, 64, 128, 128, 96))
    arguments = {"kernel_size": window, "stride": stride, "dilation": dilation, "is_causal": causal, "boundary": clip}
    return draw.choice((1, 2)), lengths, heads, kv_heads, head_dim, head_dim, draw.choice((BF16, FP16)), arguments


RANDOM = {f"random-{seed}": random_case(seed) for seed in range(100)}


def make(case: tuple, seed: int = 0) -> tuple[Problem, list[Neighborhood], Inputs]:
    batch, lengths, heads, kv_heads, head_dim, value_dim, dtype, arguments = case
    torch.manual_seed(seed)

    def tensor(h: int, d: int) -> torch.Tensor:
        return torch.randn(batch, *lengths, h, d, device="cuda", dtype=dtype)

    inputs = Inputs(tensor(heads, head_dim), tensor(kv_heads, head_dim), tensor(kv_heads, value_dim))
    neighborhoods = [Neighborhood.of(len(lengths), **arguments).resolve(lengths)]
    return Problem.of(inputs, neighborhoods, head_dim**-0.5), neighborhoods, inputs


def sdpa(problem: Problem, neighborhoods: list[Neighborhood], q, k, v) -> torch.Tensor:
    """torch's attention on the same masked problem in the same dtype, heads last."""
    each = [neighborhood_mask(n, problem.lengths) for n in neighborhoods]
    mask = torch.stack(each * (problem.heads // len(each))).cuda()
    repeat = problem.group_size
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
    out = scaled_dot_product_attention(
        q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), mask, scale=problem.scale
    )
    return out.transpose(1, 2).reshape(problem.batch, *problem.lengths, problem.heads, problem.value_dim)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def check_forward(case: tuple, neighborhoods: list[Neighborhood] | None = None, growing: bool = False) -> None:
    from vicinal.backends.hopper import BACKEND

    problem, own, inputs = make(case)
    if growing:  # maxima that rise from key tile to key tile, by more in some rows than in others
        ramp = torch.linspace(0.1, 12, problem.lengths[-1], device="cuda", dtype=problem.dtype)[:, None, None]
        inputs = inputs._replace(key=inputs.key * ramp)
    if neighborhoods is not None:
        own = [n.resolve(problem.lengths) for n in neighborhoods]
        problem = Problem.of(inputs, own, problem.scale)
    assert BACKEND.unsupported(problem) is None
    want, want_lse = reference(inputs, own, problem.scale)
    theirs = error(sdpa(problem, own, *inputs[:3]), want)
    for config in BACKEND.configs(problem, "forward")[:1]:
        out, lse = BACKEND.forward(problem, config, inputs)
        assert error(out, want) <= 1.2 * theirs + 1e-4, (config, error(out, want), theirs)
        torch.testing.assert_close(lse.double(), want_lse, atol=2e-3, rtol=1e-3)


def check_backward(case: tuple, with_lse: bool = True, one_pass: bool | None = None) -> None:
    from vicinal.backends.hopper import BACKEND

    problem, own, inputs = make(case)
    leaves = [t.double().requires_grad_() for t in inputs[:3]]
    want_out, want_lse = reference(Inputs(*leaves), own, problem.scale)
    grad = torch.randn_like(want_out).to(problem.dtype)
    grad_lse = torch.randn_like(want_lse).float()
    loss = (want_out * grad.double()).sum() + (want_lse * grad_lse.double()).sum() * with_lse
    want = torch.autograd.grad(loss, leaves)
    low = [t.detach().requires_grad_() for t in inputs[:3]]
    low_grads = torch.autograd.grad(sdpa(problem, own, *low), low, grad)
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    every = BACKEND.configs(problem, "backward")
    for config in [c for c in every if one_pass is None or c.one_pass == one_pass][:1]:
        got = gradients_of(BACKEND, problem, config, inputs, out, lse, grad, grad_lse if with_lse else None)
        for field, ours, exact, theirs in zip(("query", "key", "value"), got, want, low_grads):
            limit = 1.3 * (1e-2 if with_lse else error(theirs, exact)) + 3e-3  # SDPA has no gradient of the lse
            assert error(ours, exact) <= limit, (config, field, error(ours, exact), limit)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", RANDOM.values(), ids=RANDOM)
def test_forward_random(case):
    check_forward(case)


@pytest.mark.parametrize("name", ["1d-whole", "1d-causal", "2d", "2d-long", "2d-stride", "2d-gqa-packed", "dim-192"])
def test_forward_of_growing_scores(name):
    """Every way of rescaling: none, of some warps, of all; also at value dim 64, where it is always done."""
    check_forward(CASES[name], growing=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_backward(case):
    check_backward(case, with_lse=False)


@pytest.mark.parametrize("case", RANDOM.values(), ids=RANDOM)
def test_backward_random(case):
    check_backward(case, with_lse=False)


@pytest.mark.parametrize("case", ["1d", "2d-ragged", "2d-gqa", "3d-dilated", "2d-dilated-ragged"])
def test_backward_of_the_lse(case):
    check_backward(CASES[case])


ONE_PASS = {name: case for name, case in {**CASES, **RANDOM}.items() if case[4] == case[5] and case[4] in (64, 128)}


@pytest.fixture
def any_order():
    """Sums may be made in any order: kernels may add in memory."""
    torch.use_deterministic_algorithms(False)  # the fixture that poisons memory puts it back


@pytest.mark.parametrize("case", ONE_PASS.values(), ids=ONE_PASS)
def test_backward_in_one_pass(case, any_order):
    check_backward(case, with_lse=False, one_pass=True)


@pytest.mark.parametrize("case", ["1d", "2d-ragged", "2d-gqa", "3d-dilated", "2d-dilated-ragged"])
def test_backward_of_the_lse_in_one_pass(case, any_order):
    check_backward(CASES[case], one_pass=True)


def test_one_pass_in_a_graph(any_order):
    """Its scratch is cleared in the graph too: a second replay adds to nothing of the first."""
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make((1, (64, 64), 4, 2, 128, 128, BF16, {"kernel_size": 21}))
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    grad = torch.randn_like(out)
    config = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass)
    eager = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
    for _ in range(3):
        graph.replay()
        torch.cuda.synchronize()
        assert error(grads.query, eager.query) < 1e-3
        assert torch.equal(grads.key, eager.key)
        assert torch.equal(grads.value, eager.value)


def test_backward_repeats():
    """The same bits every run where algorithms are to be deterministic, also with a one-pass tiling."""
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make((1, (64, 64), 4, 2, 128, 128, BF16, {"kernel_size": 21}))
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    grad = torch.randn_like(out)
    config = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass)
    first = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
    for _ in range(10):
        again = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
        for a, b in zip(first[:3], again[:3]):
            assert torch.equal(a, b)


@pytest.mark.parametrize("one_pass", [False, True])
def test_backward_per_head(one_pass, any_order):
    from vicinal.backends.hopper import BACKEND

    _, _, inputs = make((1, (30, 34), 4, 2, 64, 64, BF16, {"kernel_size": 5}))
    own = [Neighborhood.of(2, k, 1, 1, k == 9).resolve((30, 34)) for k in (3, 9, 30, 12)]
    problem = Problem.of(inputs, own, 0.125)
    leaves = [t.double().requires_grad_() for t in inputs[:3]]
    want_out, _ = reference(Inputs(*leaves), own, 0.125)
    grad = torch.randn_like(want_out).to(BF16)
    want = torch.autograd.grad(want_out, leaves, grad.double())
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    config = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass == one_pass)
    got = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
    for ours, exact in zip(got, want):
        assert error(ours, exact) < 1e-2


def test_forward_per_head():
    case = (1, (30, 34), 4, 2, 64, 64, BF16, {"kernel_size": 5})
    windows = (3, 9, 30, 12)
    check_forward(case, [Neighborhood.of(2, k, min(k, 2), 1, k == 9) for k in windows])


TILINGS = {
    "plain": ForwardConfig((8, 8), (8, 16), 0, 2),
    "persistent": ForwardConfig((8, 8), (8, 16), 1, 2, persistent=True),
    "chunked": ForwardConfig((8, 8), (8, 8), 0, 2, paired=True),
    "chunked-persistent": ForwardConfig((4, 16), (4, 16), 1, 2, paired=True, persistent=True),
    "chunked-wide": ForwardConfig((4, 16), (2, 32), 0, 2, paired=True),
}


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("config", TILINGS.values(), ids=TILINGS)
@pytest.mark.parametrize("window", [(9, 20), (37, 14)], ids=["flat", "tall"])
def test_forward_tilings(window, config, head_dim):
    """Persistent programs and key tiles of two chunks, with more tiles than a wave and ragged edges."""
    from vicinal.backends.hopper import BACKEND

    arguments = {"kernel_size": window, "is_causal": (False, window[1] == 14)}
    problem, own, inputs = make((2, (70, 75), 4, 4, head_dim, head_dim, BF16, arguments))
    want, want_lse = reference(inputs, own, problem.scale)
    out, lse = BACKEND.forward(problem, config, inputs)
    assert error(out, want) < 5e-3
    torch.testing.assert_close(lse.double(), want_lse, atol=2e-3, rtol=1e-3)


def test_forward_strided_inputs():
    """Slices of one fused projection: no copy is needed, and none may change the result."""
    from vicinal.backends.hopper import BACKEND

    fused = torch.randn(2, 20, 24, 3, 2, 64, device="cuda", dtype=BF16)
    q, k, v = fused.unbind(3)
    inputs = Inputs(q, k, v)
    own = [Neighborhood.of(2, 7, 1, 2).resolve((20, 24))]
    problem = Problem.of(inputs, own, 0.125)
    out, _ = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    assert error(out, reference(inputs, own, 0.125)[0]) < 5e-3


def test_forward_repeats():
    """The same bits every run."""
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make((1, (64, 64), 4, 4, 128, 128, BF16, {"kernel_size": 21}))
    config = BACKEND.configs(problem, "forward")[0]
    first, first_lse = BACKEND.forward(problem, config, inputs)
    for _ in range(20):
        out, lse = BACKEND.forward(problem, config, inputs)
        assert torch.equal(out, first)
        assert torch.equal(lse, first_lse)


@pytest.mark.parametrize("name", ["2d", "2d-gqa-packed", "2d-dilated-ragged", "3d-causal-time", "dim-256"])
def test_calls_that_read_what_the_last_one_wrote(name):
    """Kernels are launched before the one ahead has ended: the same bits as when each is waited for."""
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make(CASES[name])
    config, other = (BACKEND.configs(problem, d)[0] for d in ("forward", "backward"))
    grad = torch.randn(*inputs.query.shape[:-1], problem.value_dim, device="cuda", dtype=problem.dtype)

    def chain(wait: bool) -> list[torch.Tensor]:
        query, above = inputs.query, grad
        for _ in range(8):
            out, lse = BACKEND.forward(problem, config, inputs._replace(query=query))
            if wait:
                torch.cuda.synchronize()
            query, *others = gradients_of(BACKEND, problem, other, inputs._replace(query=query), out, lse, above)[:3]
            if wait:
                torch.cuda.synchronize()
            query, above = query * 3, out
        return [query, *others, out, lse]

    for waited, chained in zip(chain(True), chain(False)):
        assert torch.equal(waited, chained)


def test_forward_in_a_graph():
    from vicinal.backends.hopper import BACKEND

    problem, own, inputs = make((1, (32, 32), 2, 2, 64, 64, BF16, {"kernel_size": 9}))
    config = BACKEND.configs(problem, "forward")[0]
    BACKEND.forward(problem, config, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = BACKEND.forward(problem, config, inputs)
    for t in inputs[:3]:
        t.copy_(torch.randn_like(t))
    graph.replay()
    torch.cuda.synchronize()
    assert error(out, reference(inputs, own, problem.scale)[0]) < 5e-3


# --- layouts -----------------------------------------------------------------------------------------------

SMALL = ["1d-small", "1d-one", "2d-gqa", "2d-dilated-ragged", "3d-gqa", "dim-32"]


@given(name=st.sampled_from(SMALL), drawn=any_layouts(), with_lse=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_memory_layout(name, drawn, with_lse, seed):
    """Of inputs, of what the forward saved, and of what comes from above."""
    from vicinal.backends.hopper import BACKEND

    _, own, inputs = make(CASES[name], seed)
    inputs = drawn.inputs(inputs)
    problem = Problem.of(inputs, own, inputs.query.shape[-1] ** -0.5)
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    assert_as_close_as_torch([out, lse], inputs, own, problem.scale)
    grad, grad_lse = torch.randn_like(out), torch.randn_like(lse) if with_lse else None
    upstream = drawn.upstream(Upstream(out, lse, grad, grad_lse))
    config = BACKEND.configs(problem, "backward")[0]
    grads = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))[:3]
    assert all(g.is_contiguous() for g in grads)
    above = (upstream.grad_output, upstream.grad_lse)
    assert_as_close_as_torch([out, lse, *grads], inputs, own, problem.scale, *above)


# --- gradients that somebody needs -------------------------------------------------------------------------


@pytest.mark.parametrize("needed", list(product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("name", ["2d-gqa", "3d-dilated-ragged", "dim-96", "dim-192-128"])
def test_only_wanted_gradients(name, needed):
    """The same bits as when all are wanted; nothing for the others."""
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make(CASES[name])
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    upstream = Upstream(out, lse, torch.randn_like(out), None)
    config = BACKEND.configs(problem, "backward")[0]
    every = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    some = BACKEND.backward(problem, config, inputs, upstream, Wanted(*needed, False, False, False))
    for gradient, whole, is_wanted in zip(some[:3], every, needed):
        assert (gradient is not None) == is_wanted
        assert gradient is None or torch.equal(gradient, whole)


# --- values that are no numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("one_pass", [False, True])
def test_rows_without_a_finite_score(one_pass, any_order):
    """Scores that overflow to minus infinity: output 0, log-sum-exp minus infinity, and such rows have no gradients."""
    from vicinal.backends.hopper import BACKEND

    problem, own, inputs = make(CASES["2d-gqa"])
    lost = torch.zeros(problem.lengths, dtype=torch.bool, device="cuda")
    lost[7:9, 11:30] = True
    query = (inputs.query * 1e-30).masked_fill(lost[..., None, None], -1e30)
    inputs = inputs._replace(query=query, key=inputs.key.abs() * 1e30)
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    assert (out[:, lost] == 0).all()
    assert (lse[:, lost] == float("-inf")).all()
    grad = torch.randn_like(out)
    config = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass == one_pass)
    grads = gradients_of(BACKEND, problem, config, inputs, out, lse, grad)
    assert (grads.query[:, lost] == 0).all()
    silent = grad.masked_fill(lost[..., None, None], 0.0)  # the oracle's scores, in float64, are finite
    double = Inputs(*(t.double() for t in inputs[:3]))
    want = gradients(lambda given: reference(given, own, problem.scale), double, silent.double(), None)
    for ours, exact in zip((out, lse, grads.query), (want[0], want[1], want[2])):
        assert error(ours[:, ~lost], exact[:, ~lost]) < 1e-2
    for ours, exact in zip(grads[1:3], want[3:5]):
        assert error(ours, exact) < 1e-2


# --- more than 2**31 elements ------------------------------------------------------------------------------

LARGE = {  # batch, lengths, heads, kv heads, columns between tokens (None: contiguous), neighborhood's arguments
    "grouped, packed projection": (48, (128, 128), 16, 8, 4096, {"kernel_size": 7}),
    "grouped": (96, (128, 128), 16, 8, None, {"kernel_size": 7}),
    "dilated, packed projection": (
        *(1, (16, 256, 256), 12, 12, 4 * 12 * 128),
        {"kernel_size": (2, 7, 7), "dilation": (8, 1, 1)},
    ),
    "dilated": (1, (16, 256, 256), 18, 18, None, {"kernel_size": (1, 7, 7), "dilation": (16, 1, 1)}),
    "one batch element": (1, (4, 1024, 512), 8, 8, None, {"kernel_size": (2, 3, 3)}),
}


@pytest.mark.parametrize("name", LARGE)
def test_more_than_32_bits_of_elements(name, most_of_the_memory):
    """Forward and backward, at sampled tokens: coordinates and offsets beyond 2**31 elements."""
    from vicinal.backends.hopper import BACKEND

    batch, lengths, heads, kv_heads, columns, arguments = LARGE[name]

    def randn(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="cuda", dtype=BF16).normal_()

    torch.manual_seed(0)
    counts = (heads, kv_heads, kv_heads)
    if columns is None:
        inputs = Inputs(*(randn(batch, *lengths, h, 128) for h in counts))
    else:
        projected = randn(batch, *lengths, columns)[..., : 128 * sum(counts)]
        inputs = Inputs(*(t.unflatten(-1, (-1, 128)) for t in projected.split([128 * h for h in counts], -1)))
    own = Neighborhood.of(len(lengths), **arguments).resolve(lengths)
    problem = Problem.of(inputs, [own], 128**-0.5)
    assert BACKEND.unsupported(problem) is None
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    upstream = Upstream(out, lse, randn(*out.shape), None)
    grads = BACKEND.backward(problem, BACKEND.configs(problem, "backward")[0], inputs, upstream, Wanted.of(inputs))
    errors = sampled_errors(problem, inputs, upstream, grads)
    assert max(errors.values()) < 1.2e-2, errors


# --- threads and graphs ------------------------------------------------------------------------------------


def test_first_calls_from_two_threads():
    """The same problem, first met by two threads at once, each on its stream."""
    from vicinal.backends.hopper import BACKEND

    problem, own, inputs = make((1, (31, 33), 2, 2, 64, 64, BF16, {"kernel_size": 5, "stride": 2}))
    found: list[torch.Tensor] = []
    barrier = Barrier(2)
    torch.cuda.synchronize()

    def call() -> None:
        barrier.wait()
        with torch.cuda.stream(torch.cuda.Stream()):
            out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
            grads = gradients_of(
                BACKEND, problem, BACKEND.configs(problem, "backward")[0], inputs, out, lse, torch.ones_like(out)
            )
            torch.cuda.current_stream().synchronize()
            found.append(torch.cat([t.flatten() for t in (out, *grads[:3])]))

    threads = [Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(*found)
    assert error(found[0][: inputs.query.numel()], reference(inputs, own, problem.scale)[0].flatten()) < 5e-3


def test_graph_of_heads_that_differ_after_the_table_is_dropped():
    """A captured graph reads the table of heads whatever the cache does meanwhile."""
    from vicinal.backends.gpu import tables
    from vicinal.backends.hopper import BACKEND

    _, _, inputs = make((1, (30, 34), 4, 2, 64, 64, BF16, {"kernel_size": 5}))
    own = [Neighborhood.of(2, k, 1, 1, k == 9).resolve((30, 34)) for k in (3, 9, 30, 12)]
    problem = Problem.of(inputs, own, 0.125)
    first, second = (BACKEND.configs(problem, d)[0] for d in ("forward", "backward"))
    grad = torch.randn(inputs.query.shape, device="cuda", dtype=BF16)

    def both() -> list[torch.Tensor]:
        out, lse = BACKEND.forward(problem, first, inputs)
        return [out, *gradients_of(BACKEND, problem, second, inputs, out, lse, grad)[:3]]

    want = both()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = both()
    tables._tables.clear()
    others = [torch.full((1 << 10,), 7, dtype=torch.int32, device="cuda") for _ in range(1 << 10)]
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    assert others
