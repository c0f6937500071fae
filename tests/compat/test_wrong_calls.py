"""Wrong calls of the names of NATTEN's versions; see `wrong_calls`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vicinal.compat import install_as_natten, uninstall_natten
from wrong_calls import (
    MODULE,
    MODULES,
    RPB,
    TWO,
    A,
    B,
    C,
    K,
    Q,
    X,
    called,
    check_refused,
    tensor,
)


def first(t: torch.Tensor) -> torch.Tensor:
    """Heads first, as NATTEN's unfused operators had it."""
    return t.movedim(-2, 1)


COMPAT_QK = [
    ("query of another rank", ValueError, "[batch, heads, 2 lengths, dim] | [4, 6, 8, 5]", {"query": first(Q)[0]}),
    ("key of another head_dim", ValueError, "key | query's head_dim 5 | 4", {"key": first(K)[..., :4]}),
    ("key of another dtype", TypeError, "key | query's dtype | float64", {"key": first(K).double()}),
    ("kernel_size too large", ValueError, "axis 0 has length 6 | kernel_size 7", {"kernel_size": 7}),
    ("kernel_size 3.0", TypeError, "kernel_size | integer | 3.0", {"kernel_size": 3.0}),
    ("dilation 0", ValueError, "dilation | at least 1 | 0", {"dilation": 0}),
    ("is_causal 1", TypeError, "is_causal | bool | 1", {"is_causal": 1}),
    ("rpb of another window", ValueError, "rpb | [4, 5, 5] | [4, 5, 7]", {"rpb": tensor(4, 5, 7)}),
    ("rpb elsewhere", ValueError, "rpb | device cpu | meta", {"rpb": RPB.to("meta")}),
    ("rpb of another dtype", TypeError, "rpb | query's dtype | float64", {"rpb": RPB.double()}),
]
COMPAT_FUSED = [
    ("query of another rank", ValueError, "query | 5 dimensions | [6, 8, 4, 5]", {"query": Q[0]}),
    ("key elsewhere", ValueError, "key | device cpu | meta", {"key": K.to("meta")}),
    ("kernel_size too large", ValueError, "axis 0 has length 6 | kernel_size 7", {"kernel_size": 7}),
    ("dilation 2.5", TypeError, "dilation | integer | 2.5", {"dilation": 2.5}),
    ("scale a tensor", TypeError, "scale | multiply the query", {"scale": torch.ones(())}),
    ("rpb of another window", ValueError, "rpb | [4, 5, 5] | [4, 5, 7]", {"rpb": tensor(4, 5, 7)}),
]
COMPAT_MODULE = [
    ("dim 0", ValueError, "dim | at least 1 | 0", {"dim": 0}),
    ("dim no multiple", ValueError, "dim | multiple of num_heads | 12 and 5", {"num_heads": 5}),
    ("num_heads 2.0", TypeError, "num_heads | integer | 2.0", {"num_heads": 2.0}),
    ("num_heads True", TypeError, "num_heads | integer | True", {"num_heads": True}),
    ("kernel_size 0", ValueError, "kernel_size | at least 1 | 0", {"kernel_size": 0}),
    ("dilation True", TypeError, "dilation | integer | True", {"dilation": True}),
    ("qkv_bias text", TypeError, "qkv_bias | True or False | 'no'", {"qkv_bias": "no"}),
    ("qk_scale a tensor", TypeError, "qk_scale | multiply the query", {"qk_scale": torch.ones(1)}),
    ("attn_drop above 1", ValueError, "attn_drop | 0 to 1 | 2", {"attn_drop": 2.0}),
]
COMPAT_FORWARD = [
    ("x a list", TypeError, "x | torch.Tensor | list", {"x": [1.0]}),
    ("x of another dtype", TypeError, "x | parameters' dtype torch.float32 | float64", {"x": X.double()}),
    ("x of other channels", ValueError, "x | 12] | [1, 6, 8, 11]", {"x": X[..., :11]}),
    ("x of another rank", ValueError, "x | 4 dimensions | [6, 8, 12]", {"x": X[0]}),
]
COMPAT_ATTENTION = [  # 0.21.0 had no is_causal: scale came fourth
    ("is_causal where scale stands", TypeError, "scale | real number | True", {"scale": True}),
    ("no tensor", TypeError, "value | torch.Tensor | NoneType", {"value": None}),
]
VERSIONS = [
    ("unknown", ValueError, "0.17 | '9.9'", {"generation": "9.9"}),
    ("a number", ValueError, "0.17 | 3", {"generation": 3}),
]


def natten(version: str) -> Any:
    module = install_as_natten(version)
    uninstall_natten()
    return module


N14, N17, N21 = natten("0.14"), natten("0.17"), natten("0.21.0")
ROWS = [
    *called(N17.functional.na2d_qk, COMPAT_QK, "0.17 na2d_qk", query=first(Q), key=first(K), kernel_size=3),
    *called(N17.functional.na2d, COMPAT_FUSED, "0.17 na2d", **TWO, kernel_size=3),
    *called(N17.NeighborhoodAttention2D, COMPAT_MODULE, "0.17 module", dim=12, num_heads=2, kernel_size=3),
    *called(N14.NeighborhoodAttention2D, COMPAT_MODULE, "0.14 module", dim=12, num_heads=2, kernel_size=3),
    *called(lambda x: N14.NeighborhoodAttention2D(12, 2, 3)(x), COMPAT_FORWARD, "0.14 module called"),
    *called(lambda x: N17.NeighborhoodAttention2D(12, 2, 3)(x), COMPAT_FORWARD, "0.17 module called"),
    *called(N21.attention, COMPAT_ATTENTION, "0.21.0 attention", query=A, key=B, value=C),
    *called(N21.NeighborhoodAttention2D, MODULE[:12], "0.21.0 module", **MODULES),
    *called(install_as_natten, VERSIONS, "install_as_natten"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "error", "parts"), ROWS)
def test_wrong_call(call, arguments, error, parts):
    check_refused(call, arguments, error, parts)
