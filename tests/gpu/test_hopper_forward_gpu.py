"""The `hopper` backend's forward on a Hopper GPU, against the float64 oracle and the error that SDPA makes."""

from __future__ import annotations

import pytest
import torch

from hopper_calls import BF16, CASES, ON_HOPPER, RANDOM, error, make, sdpa
from vicinal.backends.hopper.config import ForwardConfig
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem
from vicinal.reference import reference

pytestmark = ON_HOPPER


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
