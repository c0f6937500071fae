"""The `hopper` backend on a Hopper GPU, both passes together: memory layouts, sizes, streams, threads, graphs."""

from __future__ import annotations

from threading import Barrier, Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from closeness import assert_as_close_as_torch, gradients_of
from hopper_calls import BF16, CASES, ON_HOPPER, error, make
from sampled import sampled_errors
from strategies import any_layouts
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference

pytestmark = ON_HOPPER


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


# --- streams, threads and graphs ------------------------------------------------------------------------------------


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
            results = torch.cat([t.flatten() for t in (out, *grads[:3])])
            torch.cuda.current_stream().synchronize()  # of all that the other thread will read
            found.append(results)

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
