"""Queries on another grid than keys, against dense attention under the mask of where each query sits."""

import pytest
import torch

import vicinal
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.reference import neighborhood_mask

of = Neighborhood.of
CASES = {
    "finer": ((12, 15), (4, 5), of(2, (3, 2), dilation=(1, 2))),
    "finer and coarser, no whole factors": ((7, 4, 6), (5, 6, 3), of(3, 2, boundary="clip")),
    "coarser, causal": ((5,), (13,), of(1, 5, is_causal=True)),
    "stride": ((9,), (6,), of(1, 4, stride=3)),
    "per head": ((8,), (4,), [of(1, k) for k in (1, 2, 3, 4)]),
}


def tensors(queries, keys):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, *queries, 4, 8), (2, *keys, 2, 8), (2, *keys, 2, 3)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def dense(q, k, v, neighborhoods, key_mask=None):
    """Output and log-sum-exp."""
    queries, keys = q.shape[1:-2], k.shape[1:-2]
    sits = torch.zeros(1, dtype=torch.int64)
    for a, b in zip(queries, keys):
        sits = (sits[:, None] * b + torch.tensor([(2 * i + 1) * b // (2 * a) for i in range(a)])).flatten()
    mask = torch.stack([neighborhood_mask(n.resolve(keys), keys)[sits] for n in neighborhoods])
    if key_mask is not None:
        mask = mask & key_mask.flatten(1)[:, None, None]
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(2, 1) for t in (k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    output = (scores.softmax(-1) @ v).transpose(1, 2)
    return output.unflatten(1, queries), scores.logsumexp(-1).transpose(1, 2).unflatten(1, queries)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("case", CASES)
def test_each_query_sees_the_window_of_the_key_it_sits_at(case, backend):
    queries, keys, neighborhood = CASES[case]
    q, k, v = leaves = tensors(queries, keys)
    every = neighborhood if isinstance(neighborhood, list) else [neighborhood] * 4
    found = vicinal.neighborhood_attention(q, k, v, neighborhood, return_lse=True, backend=backend)
    expected = dense(q, k, v, every)
    torch.testing.assert_close(found, expected)
    above = [torch.randn_like(t) for t in found]
    torch.testing.assert_close(torch.autograd.grad(found, leaves, above), torch.autograd.grad(expected, leaves, above))


def test_masks_are_the_keys_and_sizes_the_queries():
    q, k, v = tensors((8, 6), (4, 6))
    mask = torch.rand(2, 4, 6) > 0.3
    mask[:, :, ::2] = True  # no query is left without keys
    found = vicinal.na2d(q, k, v, 3, key_mask=mask, return_lse=True)
    torch.testing.assert_close(found, dense(q, k, v, [of(2, 3)] * 4, mask))
    sizes = torch.tensor([1, 3])[torch.randint(0, 2, (2, 8, 6))]
    each = {n: vicinal.na2d(q, k, v, n) for n in (1, 3)}
    expected = torch.where(sizes[..., None, None] == 1, each[1], each[3])
    torch.testing.assert_close(vicinal.na2d(q, k, v, sizes, max_kernel_size=3), expected)


def test_many_queries_at_a_key_are_taken_for_no_layout(recwarn):
    q, k, v = tensors((64, 64), (4, 4))
    vicinal.na2d(q, k, v, 3, clamp=True)
    assert not [w for w in recwarn if "heads-first" in str(w.message)]


def test_compiles():
    q, k, v = tensors((8, 6), (4, 6))
    call = torch.compile(lambda q, k, v: vicinal.na2d(q, k, v, 3), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(call(q, k, v), vicinal.na2d(q, k, v, 3))
