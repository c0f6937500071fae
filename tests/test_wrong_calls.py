"""Wrong calls of `na1d`, `na2d`, `na3d` and `neighborhood_attention`; see `wrong_calls`."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import vicinal
from vicinal import Neighborhood, Span, unfused
from vicinal.geometry.neighborhood import Axis
from wrong_calls import (
    EK,
    EV,
    GEOMETRY,
    LSE,
    RPB,
    SHAPES,
    SWITCH,
    TWO,
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

N1, N2, N2_OF_5 = Neighborhood.of(1, 3), Neighborhood.of(2, 3), Neighborhood.of(2, 5)
CLAMP = [
    ("clamp 1", TypeError, "clamp | True or False | 1 | int", {"clamp": 1}),
    ("clamp with a query of the wrong rank", ValueError, "query | 5 dimensions", {"clamp": True, "query": Q[0]}),
    ("clamp with a query that is a list", TypeError, "query | torch.Tensor", {"clamp": True, "query": [1.0]}),
    (
        "clamp with rpb of another window",
        ValueError,
        "rpb | [4, 5, 5] | [4, 5, 7]",
        {"clamp": True, "rpb": tensor(4, 5, 7)},
    ),
]
BACKENDS = [
    ("backend unknown", ValueError, "backend | triton | 'cutlass-fna'", {"backend": "cutlass-fna"}),
    ("backend a number", ValueError, "backend | triton | 3", {"backend": 3}),
    ("backend a list", ValueError, "backend | triton | ['numba']", {"backend": ["numba"]}),
    ("backend that cannot", ValueError, "'hopper' | cannot", {"backend": "hopper"}),
]
VALUES = [
    ("value of the wrong rank", ValueError, "value | 5 dimensions | [6, 8, 2, 3]", {"value": V[0]}),
    ("value without heads", ValueError, "value | one head | [2, 6, 8, 0, 3]", {"value": V[..., :0, :]}),
    ("value without head_dim", ValueError, "value | head_dim | [2, 6, 8, 2, 0]", {"value": V[..., :0]}),
    ("value of another length", ValueError, "value | key's | [2, 6, 7, 2, 3]", {"value": V[:, :, :7]}),
    ("value of other heads", ValueError, "value | key's | heads | [2, 6, 8, 1, 3]", {"value": V[..., :1, :]}),
]
EMPTY = (
    "an axis of length 0",
    ValueError,
    "axis 0 has length 0",
    {"query": Q[:, :0], "key": K[:, :0], "value": V[:, :0]},
)
EXTRA = [
    ("additional_keys alone", ValueError, "additional_values is None | together", {"additional_values": None}),
    ("additional_values alone", ValueError, "additional_keys is None | together", {"additional_keys": None}),
    (
        "additional_keys of another dim",
        ValueError,
        "additional_keys | [2, M, 2, 5] | 4",
        {"additional_keys": EK[..., :4]},
    ),
    (
        "additional_keys of another batch",
        ValueError,
        "additional_keys | [2, M, 2, 5] | [1,",
        {"additional_keys": EK[:1]},
    ),
    (
        "additional_values of other heads",
        ValueError,
        "additional_values | [2, M, 2, 3] | 1, 3]",
        {"additional_values": EV[:, :, :1]},
    ),
    ("additional_values of 5 dimensions", ValueError, "additional_values | [2, M, 2, 3]", {"additional_values": V}),
    (
        "additional tokens that differ",
        ValueError,
        "same number of tokens | 3 and 2",
        {"additional_values": EV[:, :2]},
    ),
    (
        "no additional tokens",
        ValueError,
        "additional_keys | M at least 1",
        {"additional_keys": EK[:, :0], "additional_values": EV[:, :0]},
    ),
    *unlike("additional_keys", EK),
    *unlike("additional_values", EV),
    ("additional_keys a list", TypeError, "additional_keys | torch.Tensor | list", {"additional_keys": [1.0]}),
    (
        "additional_values sparse",
        TypeError,
        "additional_values | dense | sparse_coo",
        {"additional_values": EV.to_sparse()},
    ),
    ("rpb of another window", ValueError, "rpb | [4, 5, 5] | [4, 5, 7]", {"rpb": tensor(4, 5, 7)}),
    ("rpb of other heads", ValueError, "rpb | [4, 5, 5] | [2, 5, 5]", {"rpb": RPB[:2]}),
    ("rpb a number", TypeError, "rpb | torch.Tensor | float", {"rpb": 0.5}),
    *unlike("rpb", RPB),
]
MASK = torch.ones(2, 6, 8, dtype=torch.bool)
MASKS = [
    ("key_mask a list", TypeError, "key_mask | torch.Tensor | list", {"key_mask": [True]}),
    ("key_mask of integers", TypeError, "key_mask | torch.bool | int64", {"key_mask": MASK.long()}),
    ("key_mask elsewhere", ValueError, "key_mask | device cpu | meta", {"key_mask": MASK.to("meta")}),
    ("key_mask sparse", TypeError, "key_mask | dense | sparse_coo", {"key_mask": MASK.to_sparse()}),
    ("key_mask of other lengths", ValueError, "key_mask | [6, 8] or [2, 6, 8] | [2, 8, 6]", {"key_mask": MASK.mT}),
    (
        "key_mask per head",
        ValueError,
        "key_mask | [6, 8] or [2, 6, 8] | 4]",
        {"key_mask": MASK[..., None].expand(-1, -1, -1, 4)},
    ),
    ("key_mask where it cannot be", ValueError, "'unfused' | key mask", {"key_mask": MASK, "backend": "unfused"}),
]
OTHER = {"query": Q[:, :3]}
GRIDS = [
    ("key of another grid than value", ValueError, "value | key's | [2, 6, 8, 2, 3]", {"key": K[:, :5]}),
    ("rpb and another grid", ValueError, "rpb | another grid | [3, 8] and [6, 8]", {"rpb": RPB, **OTHER}),
    ("a window beyond the keys' grid", ValueError, "axis 0 has length 6 | kernel_size 7", {"kernel_size": 7, **OTHER}),
    ("another grid without keys", ValueError, "key | [2, 0, 8, 2, 5]", {"key": K[:, :0]}),
    ("another grid and batch", ValueError, "key | batch | [1, 6, 8, 2, 5]", {"key": K[:1], **OTHER}),
]
SIZES = torch.full((2, 6, 8), 3)


def sized(sizes: Any = SIZES, most: Any = 5, **change: Any) -> dict[str, Any]:
    return {"kernel_size": sizes, "max_kernel_size": most, **change}


PER_TOKEN = [
    ("sizes without a maximum", TypeError, "kernel_size | Tensor | max_kernel_size", {"kernel_size": SIZES}),
    ("a maximum without sizes", TypeError, "max_kernel_size | kernel_size | Tensor | 3", {"max_kernel_size": 5}),
    ("sizes above the maximum", ValueError, "kernel_size | odd | 1 to 5 | 7", sized(SIZES + 4)),
    ("even sizes", ValueError, "kernel_size | odd | 4", sized(SIZES + 1)),
    ("sizes of 0", ValueError, "kernel_size | odd | from 1 | -1", sized(SIZES - 4)),
    ("sizes of floats", TypeError, "kernel_size | torch.int32 | float32", sized(SIZES.float())),
    ("sizes beyond 32 bits", ValueError, "kernel_size | 1 to 2147483647", sized(SIZES + 2**31, 2**40, is_causal=True)),
    ("sizes elsewhere", ValueError, "kernel_size | device cpu | meta", sized(SIZES.to("meta"))),
    ("sizes of other lengths", ValueError, "kernel_size | [2, 6, 8] or [2, 6, 8, 4] | [2, 8, 6]", sized(SIZES.mT)),
    ("sizes and strides", ValueError, "stride | kernel_size per token | (2, 2)", sized(stride=2)),
    ("a maximum too large", ValueError, "kernel_size 7 | axis 0 has length 6", sized(most=7)),
    ("sizes where they cannot be", ValueError, "'unfused' | windows per token", sized(backend="unfused")),
]
NA2D = [
    *bad_tensors("query", Q), *bad_tensors("key", K), *bad_tensors("value", V), *unlike("key", K), *unlike("value", V),
    ("query None", TypeError, "query | torch.Tensor | NoneType", {"query": None}),
    ("key None", TypeError, "key | torch.Tensor | NoneType", {"key": None}),
    *SHAPES, *VALUES, EMPTY, *EXTRA, *GEOMETRY, *bad_scales(), *SWITCH, *CLAMP, *MASKS, *PER_TOKEN, *GRIDS, *BACKENDS,
]  # fmt: skip
NA1D = [
    (
        "tensors of two axes",
        ValueError,
        "query | 4 dimensions [batch, X0, | [2, 6, 8, 4, 5]",
        {"query": Q, "key": K, "value": V},
    ),
    ("kernel_size of two", ValueError, "kernel_size | 1 (one per axis) | 2", {"kernel_size": (3, 3)}),
    ("rpb of two axes", ValueError, "rpb | [4, 5] | [4, 5, 5]", {"rpb": RPB}),
]
NA3D = [
    (
        "tensors of one axis",
        ValueError,
        "query | 6 dimensions [batch, X0, X1, X2, | [2, 6, 4, 5]",
        {"query": Q[:, :, 0], "key": K[:, :, 0], "value": V[:, :, 0]},
    ),
    ("is_causal of two", ValueError, "is_causal | 3 (one per axis) | 2", {"is_causal": (True, False)}),
    ("third axis too short", ValueError, "axis 2 has length 1 | kernel_size 3", {}),
]


def spanned(queries: tuple[int, int], keys: tuple[int, int]) -> dict[str, Any]:
    """Queries and keys of a first axis of 9 tokens."""
    return {"spans": [Span(9, queries, keys), None]}


ANY_RANK = [
    ("neighborhood empty", ValueError, "neighborhood | empty", {"neighborhood": []}),
    ("neighborhoods too few", ValueError, "neighborhood | 4 query heads | got 3", {"neighborhood": [N2] * 3}),
    ("neighborhoods of 2 ranks", ValueError, "neighborhood | one rank | [2, 1, 2, 1]", {"neighborhood": [N2, N1] * 2}),
    ("neighborhoods mixed with numbers", TypeError, "neighborhood | Neighborhood | int", {"neighborhood": [N2, 3]}),
    ("neighborhood of another rank", ValueError, "neighborhood | 2 axes | got 1", {"neighborhood": N1}),
    ("window_sizes even", ValueError, "window_sizes | odd | got 2", {"window_sizes": SIZES * 0 + 2}),
    ("window_sizes of floats", TypeError, "window_sizes | int32 | float32", {"window_sizes": SIZES.float()}),
    ("window_sizes of another shape", ValueError, "window_sizes | [2, 6, 8] | [6, 8]", {"window_sizes": SIZES[0]}),
    ("neighborhoods of another rank", ValueError, "neighborhood | 2 axes | got 1", {"neighborhood": [N1] * 4}),
    ("neighborhood 3.0", TypeError, "neighborhood | integer | 3.0", {"neighborhood": 3.0}),
    ("neighborhood of three windows", ValueError, "neighborhood | 2 (one per axis) | 3", {"neighborhood": (3, 3, 3)}),
    ("neighborhood text", TypeError, "neighborhood | integer | '3'", {"neighborhood": "3"}),
    ("neighborhood an Axis", TypeError, "neighborhood | integer | Axis", {"neighborhood": Axis(3)}),
    ("no rank for a window", ValueError, "query | 1 to 3 lengths | [2]", {"query": LSE[:, 0, 0], "neighborhood": 3}),
    ("a window where query is a list", TypeError, "query | torch.Tensor | list", {"query": [1.0], "neighborhood": 3}),
    ("a window that does not fit", ValueError, "kernel_size | 7", {"neighborhood": 7}),
    ("a circle that the dilation does not divide", ValueError, "dilation must divide | axis 1 | 8 | 3", {
        "neighborhood": Neighborhood.of(2, 2, dilation=(1, 3), boundary="wrap"),
    }),
    ("a window larger than a circle", ValueError, "axis 0 | length 6 | 7", {
        "neighborhood": Neighborhood.of(2, 7, boundary="wrap"),
    }),
    ("a circle for some heads", ValueError, "'wrap' | of all heads or of none | axis 0", {
        "neighborhood": [N2, Neighborhood.of(2, 3, boundary="wrap")] * 2,
    }),
    ("rpb of two windows", ValueError, "rpb | one kernel_size", {"neighborhood": [N2, N2_OF_5] * 2, "rpb": RPB}),
    ("spans of one axis", ValueError, "spans | 2, one Span or None for every axis", {"spans": [None]}),
    ("spans a Span", ValueError, "spans | 2, one Span or None", {"spans": Span(9, (0, 6), (0, 6))}),
    ("spans of intervals", TypeError, "spans | Span or None | (0, 6)", {"spans": [(0, 6), None]}),
    ("a span of other queries", ValueError, "spans | axis 0 | [1, 6) | got 6", spanned((1, 6), (0, 6))),
    ("a span of other keys", ValueError, "key | spans | [7, 8] | [2, 6, 8, 2, 5]", spanned((0, 6), (0, 7))),
    ("a span without keys that are needed", ValueError, "of axis 0 | [1, 9) | [2, 8)", spanned((2, 8), (2, 8))),
    ("a span of keys beyond the axis", ValueError, "spans: keys | [0, 9) | [6, 12)", spanned((3, 9), (6, 12))),
    ("spans that differ by head", ValueError, "spans | the same for all heads", {
        "neighborhood": [N2.over([Span(6, (0, 6), (0, 6)), None]), N2] * 2
    }),
    *bad_scales(), *SWITCH, *BACKENDS,
]  # fmt: skip
ONE_AXIS = {name: t[:, :, 0] for name, t in TWO.items()}
EXTRAS = {"additional_keys": EK, "additional_values": EV}
ROWS = [
    *called(vicinal.na2d, NA2D, "na2d", **TWO, **EXTRAS, kernel_size=3),
    *called(vicinal.na1d, NA1D, "na1d", **ONE_AXIS, kernel_size=3),
    *called(vicinal.na3d, NA3D, "na3d", **{name: t[:, :, :, None] for name, t in TWO.items()}, kernel_size=3),
    *called(vicinal.neighborhood_attention, ANY_RANK, "neighborhood_attention", **TWO, neighborhood=N2),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "error", "parts"), ROWS)
def test_wrong_call(call, arguments, error, parts):
    check_refused(call, arguments, error, parts)


RIGHT = {"kernel_size": 3, "stride": (1, 1), "is_causal": (True, False), "scale": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"kernel_size": 3.0},
        {"kernel_size": (3, 3.0)},
        {"stride": (1, True)},
        {"is_causal": (1, 0)},
        {"scale": True},
        pytest.param({"query": Q.to_sparse()}, id="sparse"),
        pytest.param({"query": Q.to_mkldnn()}, id="mkldnn"),
    ],
    ids=str,
)
def test_a_right_call_does_not_let_a_wrong_one_pass(change):
    """What is remembered of right calls tells numbers of other types, and other kinds of tensors, apart."""
    vicinal.na2d(**TWO, **RIGHT)
    with pytest.raises(TypeError):
        vicinal.na2d(**TWO | RIGHT | change)


@pytest.mark.parametrize(("name", "value"), [("kernel_size", (3, 3.0)), ("dilation", (1, True))])
def test_nor_does_one_of_an_unfused_operator(name, value):
    right = {"kernel_size": (3, 3), "dilation": (1, 1)}
    unfused.na2d_qk(Q, K, **right)
    with pytest.raises(TypeError, match=f"{name} must be an integer"):
        unfused.na2d_qk(Q, K, **right | {name: value})


@pytest.mark.parametrize("scale", [2, Fraction(1, 2), np.float32(0.5), np.float64(0.5), np.int64(1), 0, -1.5])
def test_any_real_number_is_a_scale(scale):
    q = torch.randn(1, 6, 2, 4)
    assert torch.equal(vicinal.na1d(q, q, q, 3, scale=scale), vicinal.na1d(q, q, q, 3, scale=float(scale)))
