"""The public functions: identities of the design, options, errors. Numbers per backend are in tests/backends."""

import pytest
import torch
from hypothesis import given, settings

import strategies
import vicinal
from vicinal import Neighborhood
from vicinal.problem import Inputs
from vicinal.reference import reference

F64 = torch.float64
NA = {1: vicinal.na1d, 2: vicinal.na2d, 3: vicinal.na3d}
LENGTHS = {1: (12,), 2: (6, 8), 3: (4, 4, 6)}
RANKS = pytest.mark.parametrize("rank", [1, 2, 3])


def qkv(lengths, batch=2, heads=4, kv_heads=2, head_dim=5, value_dim=3, dtype=F64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(heads, head_dim), (kv_heads, head_dim), (kv_heads, value_dim)]
    return [torch.randn(batch, *lengths, *s, generator=g, dtype=dtype) for s in shapes]


def dense(query, key, value, mask=None):
    """Torch's own attention over flattened tokens."""
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2).unflatten(1, query.shape[1:-2])


# Identities -----------------------------------------------------------------------------------------------------


@RANKS
def test_whole_window_is_self_attention(rank):
    inputs = qkv(LENGTHS[rank])
    expected = dense(*inputs)
    torch.testing.assert_close(NA[rank](*inputs, LENGTHS[rank]), expected)
    torch.testing.assert_close(NA[rank](*inputs, None), expected)


@RANKS
def test_window_of_one_returns_the_value(rank):
    query, key, value = qkv(LENGTHS[rank])
    output = NA[rank](query, key, value, 1)
    torch.testing.assert_close(output, value.repeat_interleave(2, -2))


def test_stride_equal_to_window_is_blocked_attention():
    inputs = qkv((6, 8))
    output = vicinal.na2d(*inputs, (3, 4), stride=(3, 4))
    for rows in (slice(0, 3), slice(3, 6)):
        for columns in (slice(0, 4), slice(4, 8)):
            block = [t[:, rows, columns] for t in inputs]
            torch.testing.assert_close(output[:, rows, columns], dense(*block))


@pytest.mark.parametrize("length", [12, 13])
@pytest.mark.parametrize("is_causal", [False, True])
def test_dilation_is_strided_slices(length, is_causal):
    inputs = qkv((length,))
    output = vicinal.na1d(*inputs, 3, dilation=4, is_causal=is_causal)
    for group in range(4):
        part = vicinal.na1d(*(t[:, group::4] for t in inputs), 3, is_causal=is_causal)
        torch.testing.assert_close(output[:, group::4], part)


def test_batch_and_heads_commute():
    query, key, value = qkv((6, 8), heads=3, kv_heads=3)
    output = vicinal.na2d(query, key, value, 3)
    flipped = vicinal.na2d(*(t.flip(0, -2) for t in (query, key, value)), 3)
    torch.testing.assert_close(flipped.flip(0, -2), output)


def test_neighborhood_per_head():
    inputs = qkv((12,))
    each = [Neighborhood.of(1, 3), Neighborhood.of(1, 5, stride=2), Neighborhood.of(1, 3, dilation=2),
            Neighborhood.of(1, 12, is_causal=True)]  # fmt: skip
    output = vicinal.neighborhood_attention(*inputs, each)
    for head, neighborhood in enumerate(each):
        query, key, value = inputs[0][..., head : head + 1, :], *(t[..., [head // 2], :] for t in inputs[1:])
        alone = vicinal.neighborhood_attention(query, key, value, neighborhood)
        torch.testing.assert_close(output[..., [head], :], alone)


# Against the oracle, everything mixed ---------------------------------------------------------------------------


@settings(max_examples=60)
@given(strategies.calls())
def test_forward_and_gradients_match_the_oracle(call):
    inputs = [None if t is None else t.requires_grad_() for t in call.inputs().numbers]
    q, k, v, ek, ev, rpb = inputs
    given_tensors = [t for t in inputs if t is not None]
    ours = vicinal.neighborhood_attention(
        q, k, v, call.neighborhoods, additional_keys=ek, additional_values=ev, rpb=rpb, return_lse=True
    )
    expected = reference(Inputs(*inputs), call.neighborhoods, call.scale)
    torch.testing.assert_close(ours, expected)
    upstream = [torch.randn_like(t) for t in ours]
    torch.testing.assert_close(
        torch.autograd.grad(ours, given_tensors, upstream), torch.autograd.grad(expected, given_tensors, upstream)
    )


@settings(max_examples=15)
@given(strategies.calls(ranks=(1,), max_head_dim=4))
def test_gradcheck(call):
    inputs = [None if t is None else t.requires_grad_() for t in call.inputs().numbers]

    def run(q, k, v, ek, ev, rpb):
        return vicinal.neighborhood_attention(
            q, k, v, call.neighborhoods, additional_keys=ek, additional_values=ev, rpb=rpb, return_lse=True
        )

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", ["numba", "unfused", None])
def test_causal_window_longer_than_its_axis(backend):
    q, v = torch.zeros(1, 2, 1, 1), torch.arange(2.0).view(1, 2, 1, 1)
    assert vicinal.na1d(q, q, v, 3, is_causal=True, backend=backend).flatten().tolist() == [0, 0.5]


# Options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0])
def test_scale_is_taken_as_given(scale):
    inputs = qkv((8,))
    expected, _ = reference(Inputs(*inputs), [Neighborhood.of(1, 3)], scale)
    torch.testing.assert_close(vicinal.na1d(*inputs, 3, scale=scale), expected)


@pytest.mark.parametrize(("dtype", "lse"), [(torch.float16, torch.float32), (torch.bfloat16, torch.float32),
                                            (torch.float32, torch.float32), (F64, F64)])  # fmt: skip
def test_dtypes_of_results(dtype, lse):
    output = vicinal.na1d(*qkv((8,), dtype=dtype), 3, return_lse=True)
    assert [t.dtype for t in output] == [dtype, lse]


def test_non_contiguous_inputs():
    fused = torch.randn(2, 6, 8, 3, 4, 5, dtype=F64)
    views = fused.unbind(3)
    assert not views[0].is_contiguous()
    output = vicinal.na2d(*views, 3)
    torch.testing.assert_close(output, vicinal.na2d(*(t.contiguous() for t in views), 3))
    transposed = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in views]
    torch.testing.assert_close(vicinal.na2d(*transposed, 3), output)


def test_is_causal_of_none_means_not_causal():
    inputs = qkv((8,))
    torch.testing.assert_close(vicinal.na1d(*inputs, 3, is_causal=None), vicinal.na1d(*inputs, 3))


def test_meta_tensors_give_shapes_and_dtypes():
    query, key, value = (t.to("meta") for t in qkv((7,), dtype=torch.bfloat16))
    output, lse = vicinal.attention(query, key[:, :5], value[:, :5], return_lse=True)
    assert (output.shape, output.dtype, output.is_meta) == ((2, 7, 4, 3), torch.bfloat16, True)
    assert (lse.shape, lse.dtype, lse.is_meta) == ((2, 7, 4), torch.float32, True)


@pytest.mark.parametrize("neighborhood", [3, (3, 5), [3, None], None])
def test_a_window_stands_for_its_neighborhood(neighborhood):
    inputs = qkv((6, 8))
    expected = vicinal.na2d(*inputs, neighborhood)
    assert torch.equal(vicinal.neighborhood_attention(*inputs, neighborhood), expected)
    assert torch.equal(vicinal.neighborhood_attention(*inputs, Neighborhood.of(2, neighborhood)), expected)


def test_a_scale_that_changes_is_compiled():
    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(x, scale):
        return vicinal.na1d(x, x, x, 3, scale=scale)

    x = torch.randn(1, 6, 2, 4)
    for scale in (0.5, 0.25, 2.0):
        torch.testing.assert_close(compiled(x, scale), vicinal.na1d(x, x, x, 3, scale=scale))
