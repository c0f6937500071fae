"""Wrong calls of the unfused operators; see `wrong_calls`."""

from __future__ import annotations

import pytest
import torch

from vicinal import unfused
from wrong_calls import (
    EK,
    EV,
    GEOMETRY,
    RPB,
    SHAPES,
    K,
    Q,
    V,
    bad_scales,
    bad_tensors,
    called,
    check_refused,
    tensor,
    unlike,
)

WEIGHTS = tensor(2, 6, 8, 4, 9)
QK = [
    *bad_tensors("query", Q), *bad_tensors("key", K), *unlike("key", K), *SHAPES, *GEOMETRY, *bad_scales(),
    ("an axis of length 0", ValueError, "axis 0 has length 0", {"query": Q[:, :0], "key": K[:, :0]}),
    ("key of another length", ValueError, "key | lengths of query | [2, 5, 8, 2, 5]", {"key": K[:, :5]}),
    ("rpb of another window", ValueError, "rpb | [4, 5, 5] | [4, 5, 7]", {"rpb": tensor(4, 5, 7)}),
    ("rpb complex", TypeError, "rpb | float32 | complex64", {"rpb": RPB.to(torch.complex64)}),
    ("rpb of integers", TypeError, "rpb | float32 | int64", {"rpb": RPB.long()}),
    ("rpb a list", TypeError, "rpb | torch.Tensor | list", {"rpb": RPB.tolist()}),
    *unlike("rpb", RPB),
    ("additional_keys a list", TypeError, "additional_keys | torch.Tensor | list", {"additional_keys": [1.0]}),
    ("additional_keys of another batch", ValueError, "additional_keys | [2, M, 2, 5]", {"additional_keys": EK[:1]}),
    *unlike("additional_keys", EK),
    ("variant unknown", ValueError, "variant | 'gemm' | 'fast'", {"variant": "fast"}),
    ("variant a number", ValueError, "variant | 'gemm' | 1", {"variant": 1}),
    ("no float64", ValueError, "'gemm' | float64", {"query": Q.double(), "key": K.double(), "variant": "gemm"}),
]  # fmt: skip
AV = [
    *bad_tensors("attn", WEIGHTS), *bad_tensors("value", V), *unlike("attn", WEIGHTS, "value"), *GEOMETRY,
    ("value of the wrong rank", ValueError, "value | 5 dimensions | [6, 8, 2, 3]", {"value": V[0]}),
    ("value without heads", ValueError, "value | one head | 0, 3]", {"value": V[..., :0, :]}),
    ("value without head_dim", ValueError, "value | head_dim | 2, 0]", {"value": V[..., :0]}),
    ("attn of other slots", ValueError, "attn | slots | 9] | [2, 6, 8, 4, 8]", {"attn": WEIGHTS[..., :8]}),
    ("attn of another length", ValueError, "attn | [2, 6, 8, | [2, 5, 8, 4, 9]", {"attn": WEIGHTS[:, :5]}),
    ("attn of 4 dimensions", ValueError, "attn | [2, 6, 8, | [6, 8, 4, 9]", {"attn": WEIGHTS[0]}),
    ("attn of 3 heads", ValueError, "attn's heads | multiple of value's 2 | 3", {"attn": WEIGHTS[..., :3, :]}),
    ("attn without heads", ValueError, "attn's heads | multiple of value's 2 | 0", {"attn": WEIGHTS[..., :0, :]}),
    ("additional_values a list", TypeError, "additional_values | torch.Tensor | list", {"additional_values": [1.0]}),
    ("additional_values without slots", ValueError, "attn | 12] | 9]", {"additional_values": EV}),
    ("additional_values of another dim", ValueError, "additional_values | [2, M, 2, 3]", {"additional_values": EK}),
    *unlike("additional_values", EV, "value"),
    ("variant unknown", ValueError, "variant | 'gemm' | 'fast'", {"variant": "fast"}),
]  # fmt: skip
RANKED = [
    ("query of another rank", ValueError, "query | 4 dimensions [batch, X0, | [2, 6, 8, 4, 5]", {}),
    ("query a list", TypeError, "query | torch.Tensor | list", {"query": [1.0]}),
]
ROWS = [
    *called(unfused.na2d_qk, QK, "na2d_qk", query=Q, key=K, kernel_size=3),
    *called(unfused.na2d_av, AV, "na2d_av", attn=WEIGHTS, value=V, kernel_size=3),
    *called(unfused.na1d_qkrpb, RANKED, "na1d_qkrpb", query=Q, key=K, rpb=None, kernel_size=3),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "error", "parts"), ROWS)
def test_wrong_call(call, arguments, error, parts):
    check_refused(call, arguments, error, parts)
