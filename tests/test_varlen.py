"""Maps of different sizes in one call, against one call for each."""

from math import prod

import pytest
import torch

import vicinal
from vicinal.geometry.maps import Maps
from vicinal.geometry.neighborhood import Neighborhood

VARLEN = {1: vicinal.na1d_varlen, 2: vicinal.na2d_varlen, 3: vicinal.na3d_varlen}
ONE = {1: vicinal.na1d, 2: vicinal.na2d, 3: vicinal.na3d}
CASES = {
    "lines, one empty, a window each": ([(13,), (0,), (6,)], [(5,), (1,), (4,)], {}),
    "alike and not": ([(5, 7), (9, 4), (5, 7), (5, 7)], (3, 2), {"stride": 2, "dilation": (1, 2)}),
    "clamped": ([(5, 7), (2, 4)], 7, {"clamp": True, "dilation": (1, 2), "is_causal": (True, False)}),
    "clips": ([(2, 3, 4), (3, 5, 2)], 2, {"boundary": "clip"}),
    "bias, clamped": ([(5, 7), (9, 4)], 5, {"clamp": True, "rpb": True}),
}


def tensors(lengths):
    generator = torch.Generator().manual_seed(0)
    total = sum(map(prod, lengths))
    shapes = (total, 2, 8), (total, 1, 8), (total, 1, 5)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def one_by_one(q, k, v, lengths, windows, **rest):
    """Outputs and log-sum-exps of one call for each map."""
    parts, first, rank = [], 0, len(lengths[0])
    for i, own in enumerate(lengths):
        stop = first + prod(own)
        window = windows[i] if isinstance(windows, list) else windows
        if stop > first:
            tokens = (t[first:stop].unflatten(0, (1, *own)) for t in (q, k, v))
            found = ONE[rank](*tokens, window, return_lse=True, backend="torch", **rest)
            parts.append([t.flatten(0, rank) for t in found])
        first = stop
    return [torch.cat(each) for each in zip(*parts)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", [None, "torch"])
def test_every_map_is_attended_by_itself(case, backend):
    lengths, windows, rest = CASES[case]
    leaves = tensors(lengths)
    rest = dict(rest)
    if rest.get("rpb"):
        rest["rpb"] = torch.randn(2, 9, 9, dtype=torch.float64, requires_grad=True)
        leaves.append(rest["rpb"])
    found = VARLEN[len(lengths[0])](*leaves[:3], lengths, windows, return_lse=True, backend=backend, **rest)
    expected = one_by_one(*leaves[:3], lengths, windows, **rest)
    torch.testing.assert_close(list(found), expected)
    above = [torch.randn_like(t) for t in expected]
    torch.testing.assert_close(torch.autograd.grad(found, leaves, above), torch.autograd.grad(expected, leaves, above))


def test_lengths_and_windows_may_be_tensors():
    lengths = [(5, 7), (9, 4)]
    q, k, v = tensors(lengths)
    windows = torch.tensor([[3, 5], [2, 4]])
    found = vicinal.na2d_varlen(q, k, v, torch.tensor(lengths), windows)
    assert torch.equal(found, vicinal.na2d_varlen(q, k, v, lengths, windows.tolist()))
    line = vicinal.na1d_varlen(q, k, v, [50, 21], 5)
    assert torch.equal(line, vicinal.na1d_varlen(q, k, v, torch.tensor([[50], [21]], dtype=torch.int32), 5))


def test_nested_tensors_of_lines():
    lines = [torch.randn(n, 2, 8) for n in (5, 9)]
    nested = torch.nested.nested_tensor(lines, layout=torch.jagged, requires_grad=True)
    output, lse = vicinal.na1d_varlen(nested, nested, nested, None, 3, return_lse=True)
    for line, one, other in zip(lines, output.unbind(), lse.unbind()):
        expected = vicinal.na1d(*[line[None]] * 3, 3, return_lse=True)
        torch.testing.assert_close((one[None], other[None]), expected)
    output.values().sum().backward()
    assert nested.grad.is_nested


HOLES = torch.nested.nested_tensor_from_jagged(torch.randn(14, 2, 8), torch.tensor([0, 5, 14]), torch.tensor([4, 9]))


@pytest.mark.parametrize(
    ("nested", "message"),
    [
        (HOLES, "query must have no holes between its lines"),
        (HOLES.transpose(1, 2), "query must be .* got 4 dimensions, of which lengths differ along dimension 2"),
    ],
)
def test_nested_tensors_that_are_not_lines_one_after_the_other(nested, message):
    with pytest.raises(ValueError, match=message):
        vicinal.na1d_varlen(nested, nested, nested, None, 3)


def test_what_to_do_about_holes_does():
    lines = list(HOLES.unbind())
    nested = torch.nested.as_nested_tensor(lines, layout=torch.jagged)
    for line, found in zip(lines, vicinal.na1d_varlen(nested, nested, nested, None, 3).unbind()):
        torch.testing.assert_close(found[None], vicinal.na1d(*[line[None]] * 3, 3))


@pytest.mark.filterwarnings("error:Dynamo detected a call to a `functools.lru_cache`")
def test_compiles():
    torch.compiler.reset()  # it warns once
    lengths = [(5, 7), (9, 4)]
    q, k, v = tensors(lengths)
    call = torch.compile(lambda *t: vicinal.na2d_varlen(*t, lengths, 3), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(call(q, k, v), vicinal.na2d_varlen(q, k, v, lengths, 3))


def test_packed_attention_is_lines_with_whole_windows():
    q, k, v = tensors([(13,), (6,)])
    lengths = torch.tensor([13, 6])
    whole = vicinal.attention(q[None], k[None], v[None], seqlens_Q=lengths, seqlens_KV=lengths, return_lse=True)
    each = [vicinal.attention(*(t[None, a:b] for t in (q, k, v)), return_lse=True) for a, b in ((0, 13), (13, 19))]
    torch.testing.assert_close(whole, tuple(torch.cat(parts, 1) for parts in zip(*each)))


def test_codes_of_maps():
    maps = Maps.of([(5, 7), (0, 3), (4, 4)], [Neighborhood.of(2, 3, dilation=(1, 2))], clamp=True)
    assert Maps.decode(maps.encode(), 2) == maps
    assert maps.starts == (0, 35, 35, 51)
    assert list(maps.alike.values()) == [[0], [2]]
