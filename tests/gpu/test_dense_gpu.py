"""Attention without neighborhoods on a GPU: causal, other lengths, packed sequences."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import vicinal
from closeness import FACTOR, FLOOR, error, plain_attention
from strategies import KINDS, Layout

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SEQUENCES = {
    "as many": [(100, 100)],
    "more queries": [(65, 30)],
    "more keys": [(30, 65)],
    "packed": [(100, 100), (65, 30), (1, 200), (30, 65), (64, 64)],
}


def results(run, inputs):
    """What `run` returns, and the gradients of its inputs."""
    found = run(*inputs)
    return [*(t.detach() for t in found), *torch.autograd.grad([t.double().sin().sum() for t in found], inputs)]


def apart(run, sequences):
    """`run` on each sequence, joined."""

    def joined(*inputs):
        queries, keys = zip(*sequences)
        pieces = zip(*(t.split(counts, 1) for t, counts in zip(inputs, (queries, keys, keys))))
        return [torch.cat(parts, 1) for parts in zip(*(run(*piece) for piece in pieces))]

    return joined


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("lengths_on", [DEVICE, "cpu"])
def test_as_close_as_torchs_attention(name, dtype, is_causal, return_lse, lengths_on):
    sequences = SEQUENCES[name]
    generator = torch.Generator().manual_seed(0)
    queries, keys = (sum(column) for column in zip(*sequences))
    shapes = [(1, queries, 4, 64), (1, keys, 2, 64), (1, keys, 2, 64)]
    inputs = [torch.randn(s, generator=generator).to(DEVICE, dtype).requires_grad_() for s in shapes]
    lengths = [torch.tensor(column, dtype=torch.int32, device=lengths_on) for column in zip(*sequences)]
    packing = {"seqlens_Q": lengths[0], "seqlens_KV": lengths[1]} if name == "packed" else {}

    def ours(*tensors):
        found = vicinal.attention(*tensors, is_causal, return_lse=return_lse, **packing)
        return found if return_lse else (found,)

    def torchs(query, key, value):
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        return (scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True).transpose(1, 2),)

    def true(count):
        return apart(lambda *t: plain_attention(*t, is_causal)[:count], sequences)

    theirs = zip(results(apart(torchs, sequences), inputs), results(true(1), inputs))
    allowed = FACTOR * max(error(a, b) for a, b in theirs) + FLOOR[dtype]
    for a, b in zip(results(ours, inputs), results(true(1 + return_lse), inputs), strict=True):
        assert error(a, b) <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_layout(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, tokens, heads, 64) for tokens, heads in ((30, 4), (65, 2), (65, 2), (30, 4))]
    *inputs, above = (Layout(kind, 3)(torch.randn(s, generator=generator).to(DEVICE, dtype)) for s in shapes)
    leaves = [t.detach().requires_grad_() for t in inputs]
    output = vicinal.attention(*leaves)
    found = [output.detach(), *torch.autograd.grad(output, leaves, above)]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    expected = plain_attention(*doubles)[0]
    true = [expected.detach(), *torch.autograd.grad(expected, doubles, above.double())]
    for ours, theirs in zip(found, true, strict=True):
        assert error(ours, theirs) <= 10 * FLOOR[dtype]
