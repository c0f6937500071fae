"""Attention without neighborhoods and merging: against softmax written out, in float64; odd rows; packed sequences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vicinal
from closeness import plain_attention as truth
from strategies import KINDS, Layout
from vicinal import dense

F64 = torch.float64
INF = math.inf


def qkv(queries, keys, batch=2, heads=4, kv_heads=2, head_dim=5, value_dim=3, dtype=F64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(queries, heads, head_dim), (keys, kv_heads, head_dim), (keys, kv_heads, value_dim)]
    return [torch.randn(batch, *s, generator=g, dtype=F64).to(dtype).requires_grad_() for s in shapes]


def gradients(results, inputs):
    results = results if isinstance(results, tuple) else (results,)
    return torch.autograd.grad(sum(t.sin().sum() for t in results), inputs)


@pytest.mark.parametrize("tokens", [(12, 12), (12, 7), (7, 12), (1, 12), (12, 1)])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("return_lse", [False, True])
def test_attention(tokens, is_causal, return_lse):
    inputs = qkv(*tokens)
    ours = vicinal.attention(*inputs, is_causal, return_lse=return_lse)
    expected = truth(*inputs, is_causal)
    torch.testing.assert_close(ours, expected if return_lse else expected[0])
    torch.testing.assert_close(gradients(ours, inputs), gradients(expected if return_lse else expected[0], inputs))


@pytest.mark.parametrize("scale", [0, -0.5, 2.0])
@pytest.mark.parametrize("keys", [6, 4])
def test_scale_is_taken_as_given(scale, keys):
    inputs = qkv(6, keys)
    torch.testing.assert_close(vicinal.attention(*inputs, scale=scale), truth(*inputs, scale=scale)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_of_results(dtype):
    output, lse = vicinal.attention(*qkv(4, 6, dtype=dtype), return_lse=True)
    assert (output.dtype, lse.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("keys", [6, 4])
def test_autocast_is_followed(keys, return_lse):
    """The tensors are rounded, as by torch's own attention; what is computed from them is not rounded again."""
    inputs = [t.detach().float() for t in qkv(6, keys)]
    with torch.autocast("cpu", torch.bfloat16):
        ours = vicinal.attention(*inputs, return_lse=return_lse)
    output = ours[0] if return_lse else ours
    assert output.dtype == torch.bfloat16
    expected = truth(*(t.bfloat16() for t in inputs))
    torch.testing.assert_close(output.double(), expected[0], atol=2**-7, rtol=2**-7)
    if return_lse:
        torch.testing.assert_close(ours[1], expected[1].float(), atol=1e-5, rtol=1e-5)


# Packed sequences -----------------------------------------------------------------------------------------------


def packed(lengths, **kwargs):
    inputs = qkv(sum(q for q, _ in lengths), sum(k for _, k in lengths), batch=1, **kwargs)
    ends = [torch.tensor([0, *column]).cumsum(0) for column in zip(*lengths)]
    places = [(slice(q, q2), slice(k, k2)) for q, q2, k, k2 in zip(*(t for e in ends for t in (e[:-1], e[1:])))]
    parts = [(inputs[0][:, q], inputs[1][:, k], inputs[2][:, k]) for q, k in places]
    return inputs, parts, ends


LENGTHS = [
    [(3, 3), (1, 1), (5, 5)],
    [(3, 4), (1, 6), (5, 2)],
    [(7, 3)],
    [(2, 3), (0, 4), (3, 0), (4, 4)],  # a sequence without queries, and one without keys
    [(0, 2), (3, 0)],
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("return_lse", [False, True])
def test_packed_sequences_are_separate_calls(lengths, is_causal, return_lse):
    inputs, parts, ends = packed(lengths)
    ours = vicinal.attention(
        *inputs,
        is_causal=is_causal,
        cumulative_seqlen_Q=ends[0].int(),
        cumulative_seqlen_KV=ends[1].int(),
        max_seqlen_Q=max(q for q, _ in lengths),
        max_seqlen_KV=max(k for _, k in lengths),
        return_lse=return_lse,
    )
    output = torch.cat([truth(*part, is_causal)[0] for part in parts], 1)
    lse = torch.cat([truth(*part, is_causal)[1] for part in parts], 1)
    torch.testing.assert_close(ours, (output, lse) if return_lse else output)
    finite = (output, lse[lse > -INF]) if return_lse else output
    ours = (ours[0], ours[1][ours[1] > -INF]) if return_lse else ours
    torch.testing.assert_close(gradients(ours, inputs), gradients(finite, inputs))


def test_lengths_may_be_given_as_they_are():
    inputs, _, ends = packed([(3, 4), (1, 6), (5, 2)])
    expected = vicinal.attention(*inputs, cumulative_seqlen_Q=ends[0], cumulative_seqlen_KV=ends[1])
    lengths = [e.diff().to(torch.int32) for e in ends]
    assert torch.equal(vicinal.attention(*inputs, seqlens_Q=lengths[0], seqlens_KV=lengths[1]), expected)


def test_maxima_of_zero_say_nothing():
    inputs = qkv(6, 4)
    assert torch.equal(vicinal.attention(*inputs, max_seqlen_Q=0, max_seqlen_KV=0), vicinal.attention(*inputs))


def test_a_query_of_a_sequence_without_keys_has_output_zero():
    inputs, _, ends = packed([(2, 3), (3, 0)])
    output, lse = vicinal.attention(*inputs, cumulative_seqlen_Q=ends[0], cumulative_seqlen_KV=ends[1], return_lse=True)
    assert (output[:, 2:] == 0).all()
    assert (lse[:, 2:] == -INF).all()


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4), st.booleans())
def test_packed_gradcheck(lengths, is_causal):
    inputs, _, ends = packed(lengths, heads=2, kv_heads=1, head_dim=2, value_dim=2)

    def run(*tensors):
        return vicinal.attention(
            *tensors, is_causal, cumulative_seqlen_Q=ends[0], cumulative_seqlen_KV=ends[1], return_lse=True
        )

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


# Merging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_merged_parts_are_the_whole(parts):
    inputs = query, key, value = qkv(6, 10)
    whole = vicinal.attention(*inputs, return_lse=True)
    pieces = [
        vicinal.attention(query, k, v, return_lse=True)
        for k, v in zip(key.tensor_split(parts, 1), value.tensor_split(parts, 1))
    ]
    merged = vicinal.merge_attentions([o for o, _ in pieces], [s for _, s in pieces])
    torch.testing.assert_close(merged, whole)
    torch.testing.assert_close(gradients(merged, inputs), gradients(whole, inputs))


@pytest.mark.parametrize(
    ("dtype", "lse_dtype"),
    [(torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float32, F64), (F64, F64)],
)  # fmt: skip
def test_merging_keeps_dtypes(dtype, lse_dtype):
    torch.manual_seed(0)
    outputs = [torch.randn(2, 3, 4, dtype=F64).to(dtype) for _ in range(3)]
    lses = [torch.randn(2, 3, dtype=F64).to(lse_dtype) for _ in range(3)]
    merged, lse = vicinal.merge_attentions(outputs, lses)
    assert (merged.dtype, lse.dtype) == (dtype, lse_dtype)
    weights = torch.stack(lses).double().softmax(0)[..., None]
    expected = (weights * torch.stack(outputs).double()).sum(0)
    eps = max(torch.finfo(dtype).eps, torch.finfo(lse_dtype).eps)
    torch.testing.assert_close(merged.double(), expected, atol=4 * eps, rtol=4 * eps)


@pytest.mark.parametrize("nothing", [0.0, math.nan, INF])
def test_a_part_of_minus_infinity_counts_for_nothing(nothing):
    """Also where its output holds no numbers; and it gets and gives no gradient that is none."""
    output, lse = torch.randn(2, 3, 4, dtype=F64), torch.randn(2, 3, dtype=F64)
    leaves = [t.requires_grad_() for t in (output, torch.full_like(output, nothing), lse, torch.full_like(lse, -INF))]
    merged, merged_lse = vicinal.merge_attentions(leaves[:2], leaves[2:])
    torch.testing.assert_close((merged, merged_lse), (output, lse))
    grads = torch.autograd.grad(merged.sin().sum() + merged_lse.sin().sum(), leaves)
    torch.testing.assert_close(grads[0], output.cos())
    torch.testing.assert_close(grads[2], lse.cos())
    assert not grads[1].any()
    assert not grads[3].any()


@pytest.mark.parametrize("wrong", [math.nan, INF])
def test_a_part_that_is_no_number_is_not_lost(wrong):
    """A sum of minus infinity would count for nothing where it is merged once more."""
    outputs, lse = [torch.randn(2, 3, 4, dtype=F64) for _ in range(2)], torch.randn(2, 3, dtype=F64)
    merged, merged_lse = vicinal.merge_attentions(outputs, [lse, torch.full_like(lse, wrong)])
    assert merged.isnan().all()
    assert merged_lse.isnan().all()


@pytest.mark.parametrize("keys", [6, 4])
def test_a_query_that_is_no_number_has_a_sum_that_is_none(keys):
    query, key, value = (t.detach() for t in qkv(6, keys))
    query[0, 2] = math.nan
    output, lse = vicinal.attention(query, key, value, return_lse=True)
    assert output[0, 2].isnan().all()
    assert lse[0, 2].isnan().all()


def test_rows_where_every_part_is_minus_infinity():
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(2, 3, 4, dtype=F64, generator=generator).requires_grad_() for _ in range(2)]
    lses = [torch.randn(2, 3, dtype=F64, generator=generator) for _ in range(2)]
    for lse in lses:
        lse[0] = -INF
    lses = [lse.requires_grad_() for lse in lses]
    merged, merged_lse = vicinal.merge_attentions(outputs, lses)
    assert not merged[0].any()
    assert (merged_lse[0] == -INF).all()
    grads = torch.autograd.grad(merged.sum() + merged_lse[1].sum(), [*outputs, *lses], retain_graph=True)
    assert all(grad.isfinite().all() for grad in grads)
    assert not any(grad[0].any() for grad in grads)
    kept = torch.autograd.grad(merged_lse.sum(), lses)  # though the sum is minus infinity
    assert all(grad.isfinite().all() for grad in kept)


def test_merging_is_differentiable_twice():
    torch.manual_seed(0)
    outputs = [torch.randn(1, 2, 3, dtype=F64, requires_grad=True) for _ in range(2)]
    lses = [torch.randn(1, 2, dtype=F64, requires_grad=True) for _ in range(2)]

    def run(*leaves):
        return vicinal.merge_attentions(leaves[:2], leaves[2:])

    assert torch.autograd.gradgradcheck(run, (*outputs, *lses))


def test_scores_of_minus_infinity():
    scores = torch.tensor([[-INF, -INF], [0.0, -INF], [1.0, 1.0]], dtype=F64, requires_grad=True)
    weights, lse = dense.softmax(scores, -1)
    assert weights.tolist() == [[0, 0], [1, 0], [0.5, 0.5]]
    torch.testing.assert_close(lse, torch.tensor([-INF, 0.0, 1 + math.log(2)], dtype=F64))
    (grad,) = torch.autograd.grad(weights[:, 0].sum() + lse[1:].sum(), scores)
    torch.testing.assert_close(grad, torch.tensor([[0, 0], [1, 0], [0.75, 0.25]], dtype=F64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mapped", ["not", "by vmap", "by autograd's"])
def test_what_torchs_attention_reads_on_gpus_is_aligned_and_not_expanded(kind, mapped, monkeypatch):
    """Its kernels fault on other memory there: here only what reaches it is looked at."""
    seen, above_seen = [], []
    attention, laid_out = torch.nn.functional.scaled_dot_product_attention, dense._laid_out

    def attend(*tensors, **options):
        seen.extend(tensors)
        return attention(*tensors, **options)

    def hook(grad, strides):
        above_seen.append((found := laid_out(grad, strides), strides))
        return found

    monkeypatch.setattr(dense, "_is_read_on_gpu", lambda tensor: True)
    monkeypatch.setattr(dense, "_laid_out", hook)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    layout = Layout(kind, 2)
    inputs = [layout(t.detach()).requires_grad_() for t in qkv(6, 4, head_dim=8, value_dim=8)]
    expected = truth(*inputs)[0]
    above = layout(torch.randn(expected.shape, dtype=F64))
    if mapped == "by vmap":
        ours = torch.vmap(vicinal.attention)(*(t[None] for t in inputs))[0]
    else:
        ours = vicinal.attention(*inputs)
    torch.testing.assert_close(ours, expected)
    batched = mapped == "by autograd's"
    found = torch.autograd.grad(ours, inputs, above[None] if batched else above, is_grads_batched=batched)
    found = tuple(g[0] for g in found) if batched else found
    torch.testing.assert_close(found, torch.autograd.grad(expected, inputs, above))
    assert len(seen) == 3
    assert len(above_seen) == (mapped != "by vmap")  # below vmap a gradient cannot be met
    if mapped == "not":
        (grad, strides), *_ = above_seen
        assert all(t.data_ptr() % 16 == 0 and 0 not in t.stride() for t in (*seen, grad))
        assert grad.stride() == strides
