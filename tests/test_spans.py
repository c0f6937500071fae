"""Spans: a problem cut into parts is the whole, on every backend that has them; and how they travel."""

import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vicinal
from closeness import random_gradients
from strategies import calls
from vicinal import Neighborhood, Span, dispatch, neighborhood_attention
from vicinal.geometry.neighborhood import Axis, decode, encode
from vicinal.geometry.tiles import reach
from vicinal.problem import Inputs, Problem
from vicinal.reference import reference

BACKENDS = ["torch", "numba"]  # Triton's interpreter and GPUs: tests/backends/triton, tests/gpu
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def attend(call, neighborhoods, inputs, backend):
    q, k, v, ek, ev, rpb = inputs[:6]
    return neighborhood_attention(
        q, k, v, neighborhoods[0] if len(neighborhoods) == 1 else neighborhoods, scale=call.scale,
        additional_keys=ek, additional_values=ev, rpb=rpb, return_lse=True, backend=backend,
    )  # fmt: skip


def spans_of(neighborhoods, lengths, queries):
    """The span of some queries along every axis, with the keys that they need, of a whole problem."""
    parts = []
    for i, (length, own) in enumerate(zip(lengths, queries)):
        needed = [reach(n.resolve(lengths).axes[i], length, own) for n in neighborhoods]
        parts.append(Span(length, own, (min(low for low, _ in needed), max(high for _, high in needed))))
    return parts


def narrowed(tensor, intervals):
    return tensor[(slice(None), *(slice(*own) for own in intervals))]


def by_parts(call, inputs, above, cuts, backend):
    """Output, log-sum-exp and gradients, each part by itself, put together."""
    lengths = call.lengths
    q, k, v, *rest = (None if t is None else t.detach().requires_grad_() for t in inputs)
    outputs, lses = torch.full_like(above[0], torch.nan), torch.full_like(above[1], torch.nan)
    total = 0
    for queries in itertools.product(*(itertools.pairwise(own) for own in cuts)):
        parts = spans_of(call.neighborhoods, lengths, queries)
        keys = [part.keys for part in parts]
        own = Inputs(narrowed(q, queries), narrowed(k, keys), narrowed(v, keys), *rest)
        output, lse = attend(call, tuple(n.over(parts) for n in call.neighborhoods), own, backend)
        narrowed(outputs, queries).copy_(output.detach())
        narrowed(lses, queries).copy_(lse.detach())
        total = total + (output * narrowed(above[0], queries)).sum() + (lse * narrowed(above[1], queries)).sum()
    leaves = [t for t in (q, k, v, *rest) if t is not None]
    return [outputs, lses, *torch.autograd.grad(total, leaves)]


@st.composite
def cut_calls(draw):
    call = draw(calls())
    return call, [
        sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=2 if len(call.lengths) == 1 else 1))})
        for n in call.lengths
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(case=cut_calls())
def test_the_parts_are_the_whole(backend, case):
    call, cuts = case
    inputs = call.inputs()
    reason = dispatch.unsupported(backend, Problem.of(inputs, call.neighborhoods, call.scale))
    if reason is not None:
        pytest.skip(reason)
    leaves = Inputs(*(None if t is None else t.requires_grad_() for t in inputs))
    results = attend(call, call.neighborhoods, leaves, backend)
    above = random_gradients(*results, call.seed, True)
    grads = torch.autograd.grad(results, [t for t in leaves if t is not None], above)
    torch.testing.assert_close(by_parts(call, inputs, above, cuts, backend), [*results, *grads], **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bit_for_bit_where_tiles_agree(backend):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 96, 2, 16, generator=generator) for _ in range(3))
    if dispatch.unsupported(backend, Problem.of(Inputs(q, k, v), [Neighborhood.of(1, 9)], 0.25)) is not None:
        pytest.skip("not here")
    whole = neighborhood_attention(q, k, v, 9, backend=backend)
    config = dispatch.plan(Problem.of(Inputs(q, k, v), [Neighborhood.of(1, 9)], 0.25), backend).forward
    (size,) = config.query_tile
    cuts = [0, size, 3 * size, 96]
    parts = [spans_of([Neighborhood.of(1, 9)], (96,), [own])[0] for own in itertools.pairwise(cuts)]
    found = [
        neighborhood_attention(
            q[:, slice(*s.queries)], k[:, slice(*s.keys)], v[:, slice(*s.keys)], 9, spans=[s], backend=backend
        )
        for s in parts
    ]
    assert torch.equal(torch.cat(found, 1), whole)


def test_one_more_token_of_a_decoder():
    """The newest query alone, with the keys kept: causal attention's last row."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 40, 2, 8, generator=generator) for _ in range(3))
    window = Neighborhood.of(1, 16, is_causal=True)
    whole = neighborhood_attention(q, k, v, window)
    newest = neighborhood_attention(q[:, -1:], k[:, -16:], v[:, -16:], window, spans=[Span(40, (39, 40), (24, 40))])
    torch.testing.assert_close(newest, whole[:, -1:])


def test_in_a_compiled_function():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 2, 8, generator=generator, requires_grad=True) for n in (8, 14, 14))
    span = Span(40, (10, 18), (7, 21))

    def attend(q, k, v):
        return neighborhood_attention(q, k, v, 7, spans=[span])

    results = [f(q, k, v) for f in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager"))]
    assert torch.equal(*results)
    grads = [torch.autograd.grad(r.square().sum(), (q, k, v)) for r in results]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_second_derivatives():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 1, 4, dtype=torch.float64, generator=generator) for n in (5, 9, 9))
    span = Span(20, (6, 11), (4, 13))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradgradcheck(lambda *t: neighborhood_attention(*t, 5, spans=[span]), leaves)


def test_is_part_of_the_code_and_of_the_problem():
    span = Span(40, (10, 18), (7, 21))
    parts = Neighborhood((Axis(7, span=span), Axis(5)))
    assert decode(encode([parts, parts]), 2) == (parts, parts)
    assert pickle.loads(pickle.dumps(parts)) == parts
    assert parts.in_words()[-1] == "axis 0: queries 10:18 of 40, keys 7:21"
    q, k = torch.zeros(1, 8, 6, 1, 4), torch.zeros(1, 14, 6, 1, 4)
    problem = Problem.of(Inputs(q, k, k), [parts], 1.0)
    assert (problem.lengths, problem.key_lengths, problem.is_part) == ((8, 6), (14, 6), True)
    assert problem.useful_scores == 8 * 6 * 7 * 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_circle_has_no_border(backend):
    """Turned by any number of tokens, the result is turned; gradients likewise."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, above = (torch.randn(1, 6, 10, 2, 8, dtype=torch.float64, generator=generator) for _ in range(4))
    if dispatch.unsupported(backend, Problem.of(Inputs(q, k, v), [Neighborhood.of(2, 3)], 0.25)) is not None:
        pytest.skip("not here")

    def attend(by):
        leaves = [t.roll(by, 2).requires_grad_() for t in (q, k, v)]
        output = vicinal.na2d(*leaves, (3, 4), dilation=(1, 2), boundary=("shift", "wrap"), backend=backend)
        return [t.roll(-by, 2) for t in (output, *torch.autograd.grad(output, leaves, above.roll(by, 2)))]

    torch.testing.assert_close(attend(4), attend(0), **EXACT)


@pytest.mark.filterwarnings("error:Dynamo detected a call to a `functools.lru_cache`")
def test_a_circle_in_a_compiled_function():
    torch.compiler.reset()  # it warns once
    q = torch.randn(1, 12, 2, 8, generator=torch.Generator().manual_seed(0))

    def attend(q):
        return vicinal.na1d(q, q, q, 5, boundary="wrap")

    assert torch.equal(torch.compile(attend, fullgraph=True, backend="aot_eager")(q), attend(q))


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_masked_tokens_around_a_circle_are_never_numbers(backend):
    generator = torch.Generator().manual_seed(0)
    neighborhood = Neighborhood.of(2, (3, 5), dilation=(1, 2), boundary=("shift", "wrap"))
    mask = torch.rand(2, 7, 10, generator=generator) > 0.4
    leaves = [torch.randn(2, 7, 10, h, 8, generator=generator, dtype=torch.float64) for h in (4, 2, 2)]
    q, k, v = (t.masked_fill(~mask[..., None, None], torch.nan).requires_grad_() for t in leaves)
    found = vicinal.neighborhood_attention(q, k, v, neighborhood, key_mask=mask, return_lse=True, backend=backend)
    expected = reference(Inputs(q, k, v, key_mask=mask), [neighborhood], 8**-0.5)
    torch.testing.assert_close(found, expected)
    above = [torch.randn_like(t).masked_fill(expected[1] == -torch.inf, 0) for t in found[1:]]
    grads = (torch.autograd.grad(lse, (q, k), above) for _, lse in (found, expected))
    torch.testing.assert_close(*grads)
