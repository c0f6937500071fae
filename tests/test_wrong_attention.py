"""Wrong calls of plain and packed attention, of `Neighborhood`, of `tune` and `precompile`; see `wrong_calls`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import vicinal
from vicinal import Neighborhood
from vicinal.geometry.neighborhood import Axis
from wrong_calls import (
    GEOMETRY,
    LSE,
    NESTED,
    OUT,
    RPB,
    SWITCH,
    A,
    B,
    C,
    K,
    Q,
    V,
    bad_scales,
    bad_tensors,
    called,
    check_refused,
    unlike,
)

int32 = partial(torch.tensor, dtype=torch.int32)


def packed(q: Any = (3, 4), kv: Any = (4, 5), **change: Any) -> dict[str, Any]:
    """Two sequences by their lengths."""
    lengths = {f"seqlens_{side}": int32(x) if isinstance(x, tuple) else x for side, x in (("Q", q), ("KV", kv))}
    return {"query": A[:1], "key": B[:1], "value": C[:1], **lengths, **change}


def added(q: Any = (0, 3, 7), kv: Any = (0, 4, 9), **change: Any) -> dict[str, Any]:
    """Two sequences by their lengths added up."""
    return {name.replace("seqlens", "cumulative_seqlen"): x for name, x in packed(q, kv).items()} | change


ATTENTION = [
    *bad_tensors("query", A), *bad_tensors("key", B), *bad_tensors("value", C), *unlike("key", B), *unlike("value", C),
    ("query of 3 dimensions", ValueError, "query | 4 dimensions | [7, 4, 5]", {"query": A[0]}),
    ("query of 5 dimensions", ValueError, "query | 4 dimensions | [2, 6, 8, 4, 5]", {"query": Q}),
    ("query without heads", ValueError, "query | one head | 0, 5]", {"query": A[:, :, :0]}),
    ("query without head_dim", ValueError, "query | head_dim | 4, 0]", {"query": A[..., :0]}),
    ("key without heads", ValueError, "key | one head | 0, 5]", {"key": B[:, :, :0]}),
    ("value without head_dim", ValueError, "value | head_dim | 2, 0]", {"value": C[..., :0]}),
    ("key of another head_dim", ValueError, "key | query's batch and head_dim | 4]", {"key": B[..., :4]}),
    ("key of another batch", ValueError, "key | query's batch | [1,", {"key": B[:1]}),
    ("no keys", ValueError, "key | at least one token | [2, 0, 2, 5]", {"key": B[:, :0], "value": C[:, :0]}),
    ("value of another length", ValueError, "value | key's | [2, 8, 2, 3]", {"value": C[:, :8]}),
    ("heads no multiple", ValueError, "query's heads | multiple of key's | 3 and 2", {"query": A[:, :, :3]}),
    ("scale where is_causal stands", TypeError, "is_causal | True or False | 0.5", {"is_causal": 0.5}),
    ("is_causal None", TypeError, "is_causal | True or False | None", {"is_causal": None}),
    ("backend where lengths differ", ValueError, "backend | None | 7 and 9 tokens | numba", {"backend": "numba"}),
    ("backend of packed sequences", ValueError, "backend | None | packed", packed(backend="numba")),
    ("backend unknown", ValueError, "backend | triton | 'fmha'", {"query": A, "key": A, "value": A, "backend": "fmha"}),
    *bad_scales(), *SWITCH,
    ("seqlens_Q alone", ValueError, "seqlens_Q and seqlens_KV | got seqlens_Q", packed(kv=None)),
    ("cumulative_seqlen_KV alone", ValueError, "cumulative_seqlen_Q and | got cumulative_seqlen_KV", added(q=None)),
    ("both kinds of lengths", ValueError, "not both", added(seqlens_Q=int32([3, 4]), seqlens_KV=int32([4, 5]))),
    ("max_seqlen_Q alone", ValueError, "packed sequences need | got max_seqlen_Q", {"max_seqlen_Q": 7}),
    ("packed with a batch", ValueError, "query | batch of 1 | [2,", packed(query=A, key=B, value=C)),
    ("seqlens_Q a list", TypeError, "seqlens_Q | torch.Tensor | list", packed(q=[3, 4])),
    ("seqlens_KV of floats", TypeError, "seqlens_KV | int32 | float32", packed(kv=torch.tensor([4.0, 5.0]))),
    ("seqlens_Q of 2 dimensions", ValueError, "seqlens_Q | 1 dimension | [1, 2]", packed(q=int32([[3, 4]]))),
    ("seqlens_Q elsewhere", ValueError, "seqlens_Q | on cpu | meta", packed(q=int32([3, 4]).to("meta"))),
    ("seqlens_Q of none", ValueError, "seqlens_Q | at least one sequence", packed(q=())),
    ("seqlens_KV negative", ValueError, "seqlens_KV | below 0 | [-1, 10]", packed(kv=(-1, 10))),
    ("seqlens_Q of too few tokens", ValueError, "seqlens_Q | all 7 tokens | got 6", packed(q=(3, 3))),
    ("seqlens_KV of too many tokens", ValueError, "seqlens_KV | all 9 tokens | got 10", packed(kv=(5, 5))),
    ("lengths of two counts", ValueError, "seqlens_Q and seqlens_KV | 2 and 3", packed(kv=(4, 4, 1))),
    ("cumulative_seqlen_Q without its 0", ValueError, "cumulative_seqlen_Q | start with 0 | [3, 7]", added(q=(3, 7))),
    ("cumulative_seqlen_Q of one", ValueError, "cumulative_seqlen_Q | per sequence | [0]", added(q=(0,))),
    ("cumulative_seqlen_KV decreasing", ValueError, "cumulative_seqlen_KV | below 0", added(kv=(0, 10, 9))),
    ("cumulative_seqlen_KV too short", ValueError, "cumulative_seqlen_KV | all 9 tokens | got 8", added(kv=(0, 4, 8))),
    ("added lengths of bytes", TypeError, "cumulative_seqlen_Q | int32 | uint8", added(q=int32([0, 3, 7]).byte())),
    ("max_seqlen_Q a tensor", TypeError, "max_seqlen_Q | integer | Tensor", added(max_seqlen_Q=int32(4))),
    ("max_seqlen_Q 4.0", TypeError, "max_seqlen_Q | integer | 4.0", added(max_seqlen_Q=4.0)),
    ("max_seqlen_Q True", TypeError, "max_seqlen_Q | integer | True", added(max_seqlen_Q=True)),
    ("max_seqlen_KV too small", ValueError, "max_seqlen_KV | from 5 | got 4", added(max_seqlen_KV=4)),
    ("max_seqlen_KV beyond all", ValueError, "max_seqlen_KV | to 9 | got 10", added(max_seqlen_KV=10)),
    ("max_seqlen_Q negative", ValueError, "max_seqlen_Q | from 4 | got -1", added(max_seqlen_Q=-1)),
]  # fmt: skip
FLAT_Q, FLAT_K, FLAT_V = (t.flatten(0, 2) for t in (Q, K, V))  # 96 tokens: two maps of 6x8
FLAT = {"query": FLAT_Q, "key": FLAT_K, "value": FLAT_V}
VARLEN = [
    ("query of the wrong rank", ValueError, "query | [total, heads, head_dim] | [2, 6, 8, 4, 5]", {"query": Q}),
    ("query a list", TypeError, "query | torch.Tensor | list", {"query": [1.0]}),
    ("key of other tokens", ValueError, "key | lengths of query", {"key": FLAT_K[:7]}),
    ("lengths None", TypeError, "lengths | tensor or a sequence | None", {"lengths": None}),
    ("lengths of none", TypeError, "lengths | sequence", {"lengths": []}),
    ("lengths of one axis", ValueError, "lengths | 2 integers for each map | [96]", {"lengths": [96]}),
    ("lengths of floats", TypeError, "lengths | integers | 6.0", {"lengths": [(6.0, 8), (6, 8)]}),
    ("lengths a tensor of floats", TypeError, "lengths | integers | float32", {"lengths": torch.ones(2, 2)}),
    ("lengths negative", ValueError, "lengths | negative", {"lengths": [(-6, 8), (6, 8)]}),
    ("lengths of too few tokens", ValueError, "lengths | all 96 tokens | got 90", {"lengths": [(6, 8), (6, 7)]}),
    ("a window beyond one map", ValueError, "map 1 of [2, 24] | 3", {"lengths": [(6, 8), (2, 24)]}),
    ("windows of other maps", ValueError, "kernel_size | each of 2 | 3", {"kernel_size": [(3, 3)] * 3}),
    ("rpb and a window each", ValueError, "rpb | one kernel_size", {"kernel_size": [(3, 3)] * 2, "rpb": RPB}),
    ("kernel_size 3.0", TypeError, "kernel_size | integer | 3.0", {"kernel_size": 3.0}),
    ("clamp 1", TypeError, "clamp | True or False | 1", {"clamp": 1}),
    ("backend that cannot", ValueError, "'triton' | cannot", {"backend": "triton"}),
    *SWITCH,
]  # fmt: skip
MERGE = [
    ("outputs a tensor", TypeError, "outputs | list or tuple | Tensor", {"outputs": OUT}),
    ("lse_tensors a tensor", TypeError, "lse_tensors | list or tuple | Tensor", {"lse_tensors": LSE}),
    ("outputs a generator", TypeError, "outputs | list or tuple | generator", {"outputs": (t for t in (OUT, OUT))}),
    ("outputs None", TypeError, "outputs | list or tuple | NoneType", {"outputs": None}),
    ("nothing", ValueError, "at least 1 | 0 and 0", {"outputs": [], "lse_tensors": []}),
    ("an output too many", ValueError, "same length | 3 and 2", {"outputs": [OUT] * 3}),
    ("outputs of numbers", TypeError, "outputs[0] | torch.Tensor | float", {"outputs": [1.0, 2.0]}),
    ("lse_tensors of None", TypeError, "lse_tensors[0] | torch.Tensor | NoneType", {"lse_tensors": [None, None]}),
    ("outputs of integers", TypeError, "outputs[0] | float32 | int64", {"outputs": [OUT.long()] * 2}),
    (
        "a complex output",
        TypeError,
        "outputs[1] | float32 | complex64",
        {"outputs": [OUT, OUT.to(torch.complex64)]},
    ),
    (
        "outputs of two dtypes",
        TypeError,
        "outputs[1] | outputs[0]'s dtype | float32 | float64",
        {"outputs": [OUT, OUT.double()]},
    ),
    ("lse_tensors of integers", TypeError, "lse_tensors[0] | float32 | int32", {"lse_tensors": [LSE.int()] * 2}),
    ("lse_tensors of half", TypeError, "lse_tensors[0] | float32 | float16", {"lse_tensors": [LSE.half()] * 2}),
    (
        "lse_tensors of bfloat16",
        TypeError,
        "lse_tensors[1] | float64 | bfloat16",
        {"lse_tensors": [LSE, LSE.bfloat16()]},
    ),
    (
        "lse_tensors of two dtypes",
        TypeError,
        "lse_tensors[1] | lse_tensors[0]'s dtype | float64",
        {"lse_tensors": [LSE, LSE.double()]},
    ),
    ("a sparse output", TypeError, "outputs[0] | dense | sparse_coo", {"outputs": [OUT.to_sparse(), OUT]}),
    ("a nested output", TypeError, "outputs[1] | dense | nested", {"outputs": [OUT, NESTED]}),
    ("an mkldnn lse", TypeError, "lse_tensors[0] | dense | mkldnn", {"lse_tensors": [LSE.to_mkldnn(), LSE]}),
    ("outputs of two shapes", ValueError, "outputs | one shape | [1, 6, 4, 3]", {"outputs": [OUT, OUT[:1]]}),
    ("an output of 1 dimension", ValueError, "outputs | one shape | [3]", {"outputs": [OUT[0, 0, 0]] * 2}),
    (
        "an lse of another shape",
        ValueError,
        "lse_tensors[1] | [2, 6, 4] | [2, 6]",
        {"lse_tensors": [LSE, LSE[..., 0]]},
    ),
    (
        "an lse with a last dimension",
        ValueError,
        "lse_tensors[0] | [2, 6, 4] | [2, 6, 4, 1]",
        {"lse_tensors": [LSE[..., None]] * 2},
    ),
    ("an output elsewhere", ValueError, "outputs[1] | device cpu | meta", {"outputs": [OUT, OUT.to("meta")]}),
    ("an lse elsewhere", ValueError, "lse_tensors[0] | device cpu | meta", {"lse_tensors": [LSE.to("meta"), LSE]}),
]
NEIGHBORHOOD = [
    ("rank 0", ValueError, "rank | 1 to 3 | 0", {"rank": 0}),
    ("rank 4", ValueError, "rank | 1 to 3 | 4", {"rank": 4}),
    ("rank 2.0", ValueError, "rank | 1 to 3 | 2.0", {"rank": 2.0}),
    *[row for row in GEOMETRY if row[0] not in ("kernel_size too large", "dilation too large")],
]
AXES = [
    ("an Axis", TypeError, "axes | tuple of Axis | Axis(", {"axes": Axis(3)}),
    ("numbers", TypeError, "axes | tuple of Axis | (3, 3)", {"axes": (3, 3)}),
    ("a number in a list", TypeError, "axes | tuple of Axis | 3]", {"axes": [Axis(3), 3]}),
    ("none", ValueError, "axes | 1 to 3 | 0", {"axes": ()}),
    ("four", ValueError, "axes | 1 to 3 | 4", {"axes": (Axis(3),) * 4}),
]
LINES = [
    ("lengths of floats", TypeError, "lengths | integers | 48.0", {"lengths": [48.0, 48.0]}),
    ("lengths of pairs", ValueError, "lengths | one integer for each | [(6, 8)", {"lengths": [(6, 8), (6, 8)]}),
]
PROBLEMS = [
    ("problems a number", TypeError, "problems | vicinal.problem.Problem | 3 of type int", {"problems": 3}),
    ("problems of numbers", TypeError, "problems | vicinal.problem.Problem | 3 of type int", {"problems": [3]}),
    ("directions a word", TypeError, "directions | 'forward', 'backward' | 'forward'", {"directions": "forward"}),
    ("directions unknown", ValueError, "directions | 'forward', 'backward' | 'up'", {"directions": ["up"]}),
]
ROWS = [
    *called(vicinal.attention, ATTENTION, "attention", query=A, key=B, value=C),
    *called(vicinal.na2d_varlen, VARLEN, "na2d_varlen", **FLAT, lengths=[(6, 8)] * 2, kernel_size=3),
    *called(vicinal.na1d_varlen, LINES, "na1d_varlen", **FLAT, kernel_size=3),
    *called(vicinal.merge_attentions, MERGE, "merge_attentions", outputs=[OUT] * 2, lse_tensors=[LSE] * 2),
    *called(Neighborhood.of, NEIGHBORHOOD, "Neighborhood.of", rank=2, kernel_size=3),
    *called(Neighborhood, AXES, "Neighborhood"),
    *called(vicinal.tune, PROBLEMS, "tune", problems=[]),
    *called(vicinal.precompile, PROBLEMS, "precompile", problems=[]),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "error", "parts"), ROWS)
def test_wrong_call(call, arguments, error, parts):
    check_refused(call, arguments, error, parts)
