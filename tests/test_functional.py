"""The public functions: identities of the design, options, errors. Numbers per backend are in tests/backends."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vicinal
from strategies import calls
from vicinal import Neighborhood, functional
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
@given(calls())
def test_forward_and_gradients_match_the_oracle(call):
    inputs = [None if t is None else t.requires_grad_() for t in call.inputs()]
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
@given(calls(ranks=(1,), max_head_dim=4))
def test_gradcheck(call):
    inputs = [None if t is None else t.requires_grad_() for t in call.inputs()]

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


def test_ignored_knobs_warn_once(recwarn):
    functional._warned.clear()
    inputs = qkv((8,))
    for _ in range(2):
        output = vicinal.na1d(*inputs, 3, q_tile_shape=(64,), run_persistent_kernel=False)
    messages = [str(w.message) for w in recwarn if "vicinal ignores" in str(w.message)]
    assert len(messages) == 1
    assert "q_tile_shape, run_persistent_kernel" in messages[0]
    torch.testing.assert_close(output, vicinal.na1d(*inputs, 3))


# attention and merge_attentions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [12, 7])
@pytest.mark.parametrize("return_lse", [False, True])
def test_attention(tokens, return_lse):
    query = qkv((12,))[0].requires_grad_()
    key, value = (t.requires_grad_() for t in qkv((tokens,), seed=1)[1:])
    ours = vicinal.attention(query, key, value, return_lse=return_lse)
    q, k, v = (t.transpose(1, 2) for t in (query, key.repeat_interleave(2, 2), value.repeat_interleave(2, 2)))
    scores = q @ k.transpose(-1, -2) / math.sqrt(5)
    expected = ((scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1).transpose(1, 2))
    torch.testing.assert_close(ours, expected if return_lse else expected[0])
    grads = [
        torch.autograd.grad(sum(t.sin().sum() for t in parts), (query, key, value))
        for parts in ((ours, expected) if return_lse else ([ours], expected[:1]))
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_merge_attentions(parts):
    query = qkv((6,))[0].requires_grad_()
    key, value = (t.requires_grad_() for t in qkv((10,), seed=1)[1:])
    whole = vicinal.attention(query, key, value, return_lse=True)
    pieces = [
        vicinal.attention(query, k, v, return_lse=True)
        for k, v in zip(key.tensor_split(parts, 1), value.tensor_split(parts, 1))
    ]
    merged = vicinal.merge_attentions([o for o, _ in pieces], [s for _, s in pieces])
    torch.testing.assert_close(merged, whole)
    grads = [torch.autograd.grad(sum(t.sin().sum() for t in both), (query, key, value)) for both in (merged, whole)]
    torch.testing.assert_close(*grads)


def test_merge_with_a_part_without_keys():
    output, lse = vicinal.na1d(*qkv((6,)), 3, return_lse=True)
    nothing = torch.full_like(lse, -math.inf)
    merged = vicinal.merge_attentions([output, torch.zeros_like(output)], [lse, nothing])
    torch.testing.assert_close(merged, (output, lse))
    none, none_lse = vicinal.merge_attentions([torch.zeros_like(output)] * 2, [nothing] * 2)
    assert not none.any()
    assert torch.equal(none_lse, nothing)


@settings(max_examples=20)
@given(st.integers(2, 4), st.sampled_from([torch.float32, torch.bfloat16]))
def test_merge_keeps_dtype(parts, dtype):
    pieces = [vicinal.na1d(*qkv((6,), dtype=dtype, seed=i), 3, return_lse=True) for i in range(parts)]
    merged, lse = vicinal.merge_attentions([o for o, _ in pieces], [s for _, s in pieces])
    assert (merged.dtype, lse.dtype) == (dtype, torch.float32)


# Errors ---------------------------------------------------------------------------------------------------------

Q, K, V = qkv((6, 8), dtype=torch.float32)
EXTRA_K, EXTRA_V = torch.randn(2, 3, 2, 5), torch.randn(2, 3, 2, 3)

BAD_CALLS = {
    "window larger than the axis": (dict(kernel_size=7), ValueError, "axis 0 has length 6, got kernel_size 7"),
    "window times dilation too large": (dict(kernel_size=3, dilation=3), ValueError, "kernel_size 3 . dilation 3 = 9"),
    "stride larger than window": (dict(kernel_size=3, stride=4), ValueError, "stride must not exceed kernel_size"),
    "stride below 1": (dict(kernel_size=3, stride=0), ValueError, "stride must be at least 1"),
    "window below 1": (dict(kernel_size=0), ValueError, "kernel_size must be at least 1"),
    "window not an integer": (dict(kernel_size=3.0), TypeError, "kernel_size must be an integer"),
    "dilation below 1": (dict(kernel_size=3, dilation=-1), ValueError, "dilation must be at least 1"),
    "causal not a bool": (dict(kernel_size=3, is_causal="yes"), TypeError, "is_causal must be a bool"),
    "unknown boundary": (dict(kernel_size=3, boundary="wrap"), ValueError, "boundary must be one of .* got 'wrap'"),
    "tuple of the wrong length": (dict(kernel_size=(3, 3, 3)), ValueError, "kernel_size must be one value or 2"),
    "query of the wrong rank": (dict(query=Q[0]), ValueError, "query must have 5 dimensions"),
    "key of the wrong rank": (dict(key=K[0]), ValueError, "key must have 5 dimensions"),
    "key of another length": (dict(key=K[:, :5]), ValueError, "key must have the batch and spatial lengths of query"),
    "key of another head_dim": (dict(key=K[..., :4]), ValueError, "key must have query's head_dim 5"),
    "value of another length": (dict(value=V[:, :, :7]), ValueError, "value must have key's batch, spatial lengths"),
    "value of other heads": (dict(value=V[..., :1, :]), ValueError, "value must have key's .* heads"),
    "heads not divisible": (dict(query=Q[..., :3, :]), ValueError, "query's heads must be a multiple .* got 3 and 2"),
    "no heads": (dict(query=Q[..., :0, :]), ValueError, "query must have at least one head"),
    "head_dim 0": (dict(query=Q[..., :0], key=K[..., :0]), ValueError, "head_dim of at least 1"),
    "mixed dtypes": (dict(key=K.double()), TypeError, "key must have query's dtype torch.float32, got torch.float64"),
    "mixed devices": (dict(key=K.to("meta")), ValueError, "key must be on query's device cpu, got meta"),
    "integers": (dict(query=Q.int()), TypeError, "query must be of one of the dtypes .* got torch.int32"),
    "complex numbers": (dict(query=Q.to(torch.complex64)), TypeError, "got torch.complex64"),
    "not a tensor": (dict(query=np.zeros((2, 6, 8, 4, 5))), TypeError, "query must be a torch.Tensor, got ndarray"),
    "key None": (dict(key=None), TypeError, "key must be a torch.Tensor, got NoneType"),
    "additional_values missing": (dict(additional_keys=EXTRA_K), ValueError, "additional_values is None"),
    "additional_keys missing": (dict(additional_values=EXTRA_V), ValueError, "additional_keys is None"),
    "additional_keys of the wrong shape": (
        dict(additional_keys=EXTRA_K[..., :4], additional_values=EXTRA_V), ValueError,
        r"additional_keys must have shape .*\[2, M, 2, 5\]",
    ),
    "additional tokens that differ": (
        dict(additional_keys=EXTRA_K, additional_values=EXTRA_V[:, :2]), ValueError, "same number of tokens"
    ),
    "no additional tokens": (
        dict(additional_keys=EXTRA_K[:, :0], additional_values=EXTRA_V[:, :0]), ValueError, "with M at least 1"
    ),
    "rpb of the wrong shape": (dict(rpb=torch.zeros(4, 5, 4)), ValueError, r"rpb must have shape .*\[4, 5, 5\]"),
    "rpb of another dtype": (dict(rpb=torch.zeros(4, 5, 5, dtype=F64)), TypeError, "rpb must have query's dtype"),
    "unknown backend": (dict(backend="cutlass-fna"), ValueError, "backend must be one of .* got 'cutlass-fna'"),
    "backend that cannot": (dict(backend="hopper"), ValueError, "backend 'hopper' cannot"),
    "empty axis": (dict(query=Q[:, :0], key=K[:, :0], value=V[:, :0]), ValueError, "axis 0 has length 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call(name):
    change, error, message = BAD_CALLS[name]
    arguments = {"query": Q, "key": K, "value": V, "kernel_size": 3} | change
    with pytest.raises(error, match=message):
        vicinal.na2d(**arguments)


@pytest.mark.parametrize(
    ("neighborhood", "error", "message"),
    [
        ([], ValueError, "empty"),
        ([Neighborhood.of(2, 3)] * 3, ValueError, "one for each of the 4 query heads, got 3"),
        ([Neighborhood.of(2, 3), Neighborhood.of(1, 3)] * 2, ValueError, "one rank"),
        ((3, 3), TypeError, "neighborhood must be a Neighborhood or a sequence of them, got int"),
        (Neighborhood.of(1, 3), ValueError, "query must have 4 dimensions"),
    ],
)
def test_bad_neighborhood(neighborhood, error, message):
    with pytest.raises(error, match=message):
        vicinal.neighborhood_attention(Q, K, V, neighborhood)


def test_bias_of_heads_with_different_windows():
    each = [Neighborhood.of(2, 3), Neighborhood.of(2, 5)] * 2
    with pytest.raises(ValueError, match="rpb needs one kernel_size for all heads"):
        vicinal.neighborhood_attention(Q, K, V, each, rpb=torch.zeros(4, 5, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(query=Q), "query must have 4 dimensions"),
        (dict(key=K[:, 0, :, :, :4]), "key must have query's batch and head_dim"),
        (dict(value=V[:1, 0]), "value must have key's batch"),
        (dict(query=Q[:, 0, :, :3]), "must be a multiple"),
        (dict(key=K[:, 0, :5], value=V[:, 0, :5], backend="cpu"), "cannot be chosen where key has another length"),
        (dict(key=K[:, 0, :0], value=V[:, 0, :0]), "at least one token"),
    ],
)
def test_bad_attention(change, message):
    arguments = {"query": Q[:, 0], "key": K[:, 0], "value": V[:, 0]} | change
    with pytest.raises(ValueError, match=message):
        vicinal.attention(**arguments)


@pytest.mark.parametrize(
    ("outputs", "lses", "error", "message"),
    [
        ([], [], ValueError, "at least 1, got 0 and 0"),
        ([Q], [], ValueError, "same length, at least 1, got 1 and 0"),
        ([Q, Q[:1]], [Q[..., 0]] * 2, ValueError, "must agree in shape and dtype"),
        ([Q, Q.double()], [Q[..., 0]] * 2, ValueError, "must agree in shape and dtype"),
        ([Q], [Q[..., 0, 0]], ValueError, r"lse_tensors\[0\] must have shape"),
        ([None], [None], TypeError, "must be tensors"),
    ],
)
def test_bad_merge(outputs, lses, error, message):
    with pytest.raises(error, match=message):
        vicinal.merge_attentions(outputs, lses)
