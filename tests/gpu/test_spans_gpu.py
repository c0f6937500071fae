"""Parts of axes and circular axes on GPU backends: random problems against the oracle, parts against the whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings

from closeness import assert_as_close_as_torch, gradients, random_gradients
from strategies import calls
from vicinal import Neighborhood, Span, dispatch, neighborhood_attention
from vicinal.geometry.tiles import reach
from vicinal.problem import Inputs, Problem

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
BACKENDS = ["triton", "hopper"]
BF16 = torch.bfloat16


def run(name, neighborhoods, scale):
    def attend(inputs):
        q, k, v, ek, ev, rpb = inputs[:6]
        return neighborhood_attention(
            q, k, v, neighborhoods, scale=scale, additional_keys=ek, additional_values=ev, rpb=rpb,
            return_lse=True, backend=name,
        )  # fmt: skip

    return attend


@pytest.mark.parametrize(("dim", "dtype"), [(32, torch.float16), (64, BF16), (128, BF16)], ids=str)
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=20)
@given(call=calls(spans=True))
def test_random_parts(name, call, dim, dtype):
    call = replace(call, head_dim=dim, value_dim=dim)
    if name == "hopper":
        call = replace(call, additional=0, has_rpb=False)
    inputs = call.inputs(dtype, "cuda")
    if dispatch.unsupported(name, Problem.of(inputs, call.neighborhoods, call.scale)) is not None:
        return
    attend = run(name, call.neighborhoods, call.scale)
    above = random_gradients(*attend(inputs), call.seed, True)
    found = gradients(attend, inputs, *above)
    assert_as_close_as_torch(found, inputs, call.neighborhoods, call.scale, *above)


CUT = {  # lengths, neighborhood's arguments, cuts along each axis
    "1d": ((1000,), {"kernel_size": 200}, [(0, 130, 600, 1000)]),
    "1d-causal-stride": ((1000,), {"kernel_size": 200, "stride": 8, "is_causal": True}, [(0, 333, 1000)]),
    "1d-dilated": ((1000,), {"kernel_size": 40, "dilation": 3}, [(0, 333, 1000)]),
    "2d": ((96, 80), {"kernel_size": 13}, [(0, 37, 96), (0, 80)]),
    "2d-both": ((96, 80), {"kernel_size": (13, 20)}, [(0, 37, 70, 96), (0, 41, 80)]),
    "2d-stride": ((96, 80), {"kernel_size": 16, "stride": 16}, [(0, 40, 96), (0, 80)]),
    "2d-clip": ((96, 80), {"kernel_size": 17, "boundary": "clip"}, [(0, 5, 96), (0, 80)]),
    "2d-circle": ((96, 80), {"kernel_size": 16, "boundary": ("shift", "wrap")}, [(0, 60, 96), (0, 80)]),
    "3d": ((14, 24, 20), {"kernel_size": (9, 12, 7), "stride": (1, 4, 1)}, [(0, 5, 14), (0, 24), (0, 20)]),
}


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("case", CUT.values(), ids=CUT)
def test_the_parts_are_the_whole(case, name, dim):
    lengths, arguments, cuts = case
    window = Neighborhood.of(len(lengths), **arguments)
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v, above = (
        torch.randn(2, *lengths, 2, dim, generator=generator, device="cuda", dtype=BF16) for _ in range(4)
    )
    if dispatch.unsupported(name, Problem.of(Inputs(q, k, v), [window], dim**-0.5)) is not None:
        pytest.skip("not on this GPU")

    def grads(by):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        output = by(*leaves)
        return [output.detach(), *torch.autograd.grad(output, leaves, above)]

    def by_parts(q, k, v):
        rows = []
        for own in pairwise(cuts[0]):
            columns = []
            for other in pairwise(cuts[1] if len(cuts) > 1 else (0, 1)):
                queries = [own, other, *((0, n) for n in lengths[2:])][: len(lengths)]
                columns.append(one(q, k, v, queries))
            rows.append(torch.cat(columns, 2) if len(columns) > 1 else columns[0])
        return torch.cat(rows, 1)

    def one(q, k, v, queries):
        spans, keys = [], [k, v]
        for a, (n, own) in enumerate(zip(lengths, queries)):
            if window.axes[a].boundary == "wrap" and own == (0, n):
                spans.append(None)
                continue
            needed = reach(window.resolve(lengths).axes[a], n, own)
            spans.append(Span(n, own, needed))
            q = q.narrow(a + 1, own[0], own[1] - own[0])
            keys = [t.narrow(a + 1, needed[0], needed[1] - needed[0]) for t in keys]
        return neighborhood_attention(q, *keys, window, spans=spans, backend=name)

    whole = grads(lambda q, k, v: neighborhood_attention(q, k, v, window, backend=name))
    for found, true in zip(grads(by_parts), whole):
        torch.testing.assert_close(found.float(), true.float(), rtol=0.02, atol=0.02 * float(true.abs().max()))
