"""Wrong calls of the whole public API: each raises TypeError or ValueError that names the argument, what came and what
is allowed. One row per call: what is wrong, the error, parts of its message, and what differs from a right call.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import vicinal
from vicinal import Neighborhood, Span, unfused
from vicinal.compat import install_as_natten, uninstall_natten
from vicinal.geometry.neighborhood import Axis

NAN, INF = float("nan"), float("inf")
F64 = torch.float64
Row = tuple[str, type[Exception], str, dict[str, Any]]


def tensor(*shape: int, **kwargs: Any) -> torch.Tensor:
    return torch.zeros(shape, **kwargs)


Q, K, V = tensor(2, 6, 8, 4, 5), tensor(2, 6, 8, 2, 5), tensor(2, 6, 8, 2, 3)  # of two axes
EK, EV = tensor(2, 3, 2, 5), tensor(2, 3, 2, 3)
RPB = tensor(4, 5, 5)
A, B, C = tensor(2, 7, 4, 5), tensor(2, 9, 2, 5), tensor(2, 9, 2, 3)  # of plain attention
OUT, LSE = tensor(2, 6, 4, 3), tensor(2, 6, 4)
WEIGHTS = tensor(2, 6, 8, 4, 9)
X = tensor(1, 6, 8, 12)
N1, N2, N2_OF_5 = Neighborhood.of(1, 3), Neighborhood.of(2, 3), Neighborhood.of(2, 5)
NESTED = torch.nested.nested_tensor([tensor(6, 8, 4, 5), tensor(5, 8, 4, 5)])
JAGGED = torch.nested.nested_tensor([tensor(6, 8, 4, 5), tensor(5, 8, 4, 5)], layout=torch.jagged)


def bad_tensors(name: str, good: torch.Tensor) -> list[Row]:
    """What is no dense tensor of a supported dtype."""
    return [
        (f"{name} a list", TypeError, f"{name} | torch.Tensor | list", {name: good.tolist()}),
        (f"{name} an array", TypeError, f"{name} | torch.Tensor | ndarray", {name: good.numpy()}),
        (f"{name} of integers", TypeError, f"{name} | float32 | torch.int64", {name: good.long()}),
        (f"{name} of booleans", TypeError, f"{name} | float32 | torch.bool", {name: good.bool()}),
        (f"{name} complex", TypeError, f"{name} | float32 | torch.complex64", {name: good.to(torch.complex64)}),
        (f"{name} of 8 bits", TypeError, f"{name} | float32 | float8_e4m3fn", {name: good.to(torch.float8_e4m3fn)}),
        (f"{name} sparse", TypeError, f"{name} | dense | sparse_coo", {name: good.to_sparse()}),
        (f"{name} for mkldnn", TypeError, f"{name} | dense | mkldnn", {name: good.to_mkldnn()}),
        (f"{name} nested", TypeError, f"{name} | dense | nested", {name: NESTED}),
        (f"{name} jagged", TypeError, f"{name} | dense | nested", {name: JAGGED}),
    ]


def unlike(name: str, good: torch.Tensor, of: str = "query") -> list[Row]:
    """A right tensor that is not of the dtype or device of another."""
    return [
        (f"{name} of another dtype", TypeError, f"{name} | {of}'s dtype | float32 | float64", {name: good.double()}),
        (f"{name} of half precision", TypeError, f"{name} | {of}'s dtype | torch.float16", {name: good.half()}),
        (f"{name} elsewhere", ValueError, f"{name} | {of}'s device cpu | meta", {name: good.to("meta")}),
    ]


def bad_scales(name: str = "scale") -> list[Row]:
    return [
        (f"{name} a tensor", TypeError, f"{name} | real number | Tensor | multiply the query", {name: torch.ones(())}),
        (f"{name} learnable", TypeError, f"{name} | multiply", {name: torch.nn.Parameter(torch.ones(()))}),
        (f"{name} True", TypeError, f"{name} | real number | True | bool", {name: True}),
        (f"{name} text", TypeError, f"{name} | real number | '1.0' | str", {name: "1.0"}),
        (f"{name} nan", TypeError, f"{name} | finite | nan", {name: NAN}),
        (f"{name} inf", TypeError, f"{name} | finite | inf", {name: INF}),
        (f"{name} minus inf", TypeError, f"{name} | finite | -inf", {name: -INF}),
        (f"{name} beyond floats", TypeError, f"{name} | finite | int", {name: 10**400}),
        (f"{name} complex", TypeError, f"{name} | real number | complex", {name: 1j}),
        (f"{name} an array", TypeError, f"{name} | real number | ndarray", {name: np.ones(1)}),
        (f"{name} a list", TypeError, f"{name} | real number | list", {name: [1.0]}),
    ]


SWITCH = [
    ("return_lse 1", TypeError, "return_lse | True or False | 1 | int", {"return_lse": 1}),
    ("return_lse None", TypeError, "return_lse | True or False | None", {"return_lse": None}),
    ("return_lse text", TypeError, "return_lse | True or False | 'yes'", {"return_lse": "yes"}),
]
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
GEOMETRY = [
    ("kernel_size too large", ValueError, "axis 0 has length 6 | kernel_size 7", {"kernel_size": 7}),
    ("kernel_size 0", ValueError, "kernel_size | at least 1 | 0", {"kernel_size": 0}),
    ("kernel_size negative", ValueError, "kernel_size | at least 1 | -3", {"kernel_size": -3}),
    ("kernel_size 3.0", TypeError, "kernel_size | integer | 3.0", {"kernel_size": 3.0}),
    ("kernel_size True", TypeError, "kernel_size | integer | True", {"kernel_size": True}),
    ("kernel_size text", TypeError, "kernel_size | integer | '3'", {"kernel_size": "3"}),
    ("kernel_size a tensor", TypeError, "kernel_size | integer | Tensor", {"kernel_size": torch.tensor(3)}),
    ("kernel_size of three", ValueError, "kernel_size | 2 (one per axis) | 3", {"kernel_size": (3, 3, 3)}),
    ("kernel_size of none", ValueError, "kernel_size | 2 (one per axis) | 0", {"kernel_size": ()}),
    ("one kernel_size 3.0", TypeError, "kernel_size | integer | 3.0", {"kernel_size": (3, 3.0)}),
    ("one kernel_size True", TypeError, "kernel_size | integer | True", {"kernel_size": [3, True]}),
    ("stride 0", ValueError, "stride | at least 1 | 0", {"stride": 0}),
    ("stride above kernel_size", ValueError, "stride | kernel_size | 4 > 3", {"stride": 4}),
    ("stride 1.0", TypeError, "stride | integer | 1.0", {"stride": 1.0}),
    ("stride True", TypeError, "stride | integer | True", {"stride": (1, True)}),
    ("stride of one", ValueError, "stride | 2 (one per axis) | 1", {"stride": [1]}),
    ("dilation 0", ValueError, "dilation | at least 1 | 0", {"dilation": 0}),
    ("dilation too large", ValueError, "kernel_size 3 * dilation 3 = 9 | length 6", {"dilation": 3}),
    ("dilation 2.5", TypeError, "dilation | integer | 2.5", {"dilation": 2.5}),
    ("dilation of one", ValueError, "dilation | 2 (one per axis) | 1", {"dilation": (1,)}),
    ("is_causal 1", TypeError, "is_causal | bool | 1", {"is_causal": 1}),
    ("is_causal text", TypeError, "is_causal | bool | 'no'", {"is_causal": "no"}),
    ("is_causal of three", ValueError, "is_causal | 2 (one per axis) | 3", {"is_causal": (True, True, False)}),
    ("one is_causal 0", TypeError, "is_causal | bool | 0", {"is_causal": (True, 0)}),
    ("boundary unknown", ValueError, "boundary | shift | 'mirror'", {"boundary": "mirror"}),
    ("boundary None", ValueError, "boundary | shift | None", {"boundary": None}),
    ("boundary of three", ValueError, "boundary | 2 (one per axis) | 3", {"boundary": ("clip",) * 3}),
]
BACKENDS = [
    ("backend unknown", ValueError, "backend | triton | 'cutlass-fna'", {"backend": "cutlass-fna"}),
    ("backend a number", ValueError, "backend | triton | 3", {"backend": 3}),
    ("backend a list", ValueError, "backend | triton | ['numba']", {"backend": ["numba"]}),
    ("backend that cannot", ValueError, "'hopper' | cannot", {"backend": "hopper"}),
]
SHAPES = [
    ("query of the wrong rank", ValueError, "query | 5 dimensions | [6, 8, 4, 5]", {"query": Q[0]}),
    ("query a scalar", ValueError, "query | 5 dimensions | []", {"query": tensor()}),
    ("query without heads", ValueError, "query | one head | [2, 6, 8, 0, 5]", {"query": Q[..., :0, :]}),
    ("query without head_dim", ValueError, "query | head_dim | [2, 6, 8, 4, 0]", {"query": Q[..., :0]}),
    ("key of the wrong rank", ValueError, "key | 5 dimensions | [6, 8, 2, 5]", {"key": K[0]}),
    ("key without heads", ValueError, "key | one head | [2, 6, 8, 0, 5]", {"key": K[..., :0, :]}),
    ("key without head_dim", ValueError, "key | head_dim | [2, 6, 8, 2, 0]", {"key": K[..., :0]}),
    ("key of another batch", ValueError, "key | batch | [1, 6, 8, 2, 5]", {"key": K[:1]}),
    ("key of another head_dim", ValueError, "key | query's head_dim 5 | 4", {"key": K[..., :4]}),
    ("heads no multiple", ValueError, "query's heads | multiple of key's | 3 and 2", {"query": Q[..., :3, :]}),
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

MODULE = [
    ("embed_dim 0", ValueError, "embed_dim | at least 1 | 0", {"embed_dim": 0}),
    ("embed_dim negative", ValueError, "embed_dim | at least 1 | -12", {"embed_dim": -12}),
    ("embed_dim 12.0", TypeError, "embed_dim | integer | 12.0", {"embed_dim": 12.0}),
    ("embed_dim None", TypeError, "embed_dim | integer | None", {"embed_dim": None}),
    ("embed_dim True", TypeError, "embed_dim | integer | True", {"embed_dim": True, "num_heads": 1}),
    ("embed_dim no multiple", ValueError, "embed_dim | multiple of num_heads | 12 and 5", {"num_heads": 5}),
    ("num_heads 0", ValueError, "num_heads | at least 1 | 0", {"num_heads": 0}),
    ("num_heads negative", ValueError, "num_heads | at least 1 | -2", {"num_heads": -2}),
    ("num_heads 2.0", TypeError, "num_heads | integer | 2.0", {"num_heads": 2.0}),
    ("num_heads True", TypeError, "num_heads | integer | True", {"num_heads": True}),
    ("num_heads text", TypeError, "num_heads | integer | '2'", {"num_heads": "2"}),
    ("qkv_bias text", TypeError, "qkv_bias | True or False | 'no'", {"qkv_bias": "no"}),
    ("qkv_bias 1", TypeError, "qkv_bias | True or False | 1", {"qkv_bias": 1}),
    ("qkv_bias None", TypeError, "qkv_bias | True or False | None", {"qkv_bias": None}),
    *bad_scales("qk_scale"),
    ("proj_drop above 1", ValueError, "proj_drop | 0 to 1 | 1.5", {"proj_drop": 1.5}),
    ("proj_drop negative", ValueError, "proj_drop | 0 to 1 | -0.1", {"proj_drop": -0.1}),
    ("proj_drop None", TypeError, "proj_drop | real number | None", {"proj_drop": None}),
    ("proj_drop True", TypeError, "proj_drop | real number | True", {"proj_drop": True}),
    ("proj_drop nan", TypeError, "proj_drop | finite | nan", {"proj_drop": NAN}),
    ("dtype text", TypeError, "dtype | torch.float32 | 'float32'", {"dtype": "float32"}),
    ("dtype of integers", TypeError, "dtype | torch.float32 | int8", {"dtype": torch.int8}),
    ("device unknown", ValueError, "device | 'gpu'", {"device": "gpu"}),
    ("device a list", ValueError, "device | ['cpu']", {"device": ["cpu"]}),
    *[row for row in GEOMETRY if row[0] not in ("kernel_size too large", "dilation too large")],
]
RANKLESS = [("of no rank", TypeError, "NeighborhoodAttention has no rank | NeighborhoodAttention1D", {})]
FORWARD = [
    *bad_tensors("x", X)[:8],
    ("x None", TypeError, "x | torch.Tensor | NoneType", {"x": None}),
    ("x of another dtype", TypeError, "x | parameters' dtype torch.float32 | float64", {"x": X.double()}),
    ("x of half precision", TypeError, "x | parameters' dtype torch.float32 | float16", {"x": X.half()}),
    ("x of other channels", ValueError, "x | 12] | [1, 6, 8, 11]", {"x": X[..., :11]}),
    ("x of another rank", ValueError, "x | 4 dimensions | [6, 8, 12]", {"x": X[0]}),
    ("x too small", ValueError, "axis 1 has length 2 | kernel_size 3", {"x": X[:, :, :2]}),
    ("x without tokens", ValueError, "axis 0 has length 0", {"x": X[:, :0]}),
]
ATTRIBUTES = [
    ("kernel_size 0", ValueError, "kernel_size | at least 1 | 0", {"kernel_size": 0}),
    ("kernel_size 3.0", TypeError, "kernel_size | integer | 3.0", {"kernel_size": 3.0}),
    ("kernel_size of three", ValueError, "kernel_size | 2 (one per axis)", {"kernel_size": (3, 3, 3)}),
    ("stride above kernel_size", ValueError, "stride | kernel_size | 4 > 3", {"stride": 4}),
    ("dilation 0", ValueError, "dilation | at least 1", {"dilation": 0}),
    ("is_causal 1", TypeError, "is_causal | bool | 1", {"is_causal": 1}),
    ("boundary unknown", ValueError, "boundary | shift | 'mirror'", {"boundary": "mirror"}),
    ("scale a tensor", TypeError, "scale | multiply", {"scale": torch.ones(())}),
]

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
VERSIONS = [
    ("unknown", ValueError, "0.17 | '9.9'", {"generation": "9.9"}),
    ("a number", ValueError, "0.17 | 3", {"generation": 3}),
]


def natten(version: str) -> Any:
    module = install_as_natten(version)
    uninstall_natten()
    return module


N14, N17, N21 = natten("0.14"), natten("0.17"), natten("0.21.0")


def called(call: Callable[..., Any], rows: list[Row], name: str, **right: Any) -> list[Any]:
    return [
        pytest.param(call, {**right, **change}, error, parts, id=f"{name}: {what}")
        for what, error, parts, change in rows
    ]


def forward(x: Any) -> torch.Tensor:
    return vicinal.NeighborhoodAttention2D(12, 2, 3)(x)


def with_attribute(**change: Any) -> None:
    module = vicinal.NeighborhoodAttention2D(12, 2, 3)
    for name, value in change.items():
        setattr(module, name, value)
    module(X)


MODULES = {"embed_dim": 12, "num_heads": 2, "kernel_size": 3}
TWO = {"query": Q, "key": K, "value": V}
ONE_AXIS = {name: t[:, :, 0] for name, t in TWO.items()}
EXTRAS = {"additional_keys": EK, "additional_values": EV}
ROWS = [
    *called(vicinal.na2d, NA2D, "na2d", **TWO, **EXTRAS, kernel_size=3),
    *called(vicinal.na1d, NA1D, "na1d", **ONE_AXIS, kernel_size=3),
    *called(vicinal.na3d, NA3D, "na3d", **{name: t[:, :, :, None] for name, t in TWO.items()}, kernel_size=3),
    *called(vicinal.neighborhood_attention, ANY_RANK, "neighborhood_attention", **TWO, neighborhood=N2),
    *called(vicinal.attention, ATTENTION, "attention", query=A, key=B, value=C),
    *called(vicinal.na2d_varlen, VARLEN, "na2d_varlen", **FLAT, lengths=[(6, 8)] * 2, kernel_size=3),
    *called(vicinal.na1d_varlen, LINES, "na1d_varlen", **FLAT, kernel_size=3),
    *called(vicinal.merge_attentions, MERGE, "merge_attentions", outputs=[OUT] * 2, lse_tensors=[LSE] * 2),
    *called(Neighborhood.of, NEIGHBORHOOD, "Neighborhood.of", rank=2, kernel_size=3),
    *called(Neighborhood, AXES, "Neighborhood"),
    *called(vicinal.NeighborhoodAttention2D, MODULE, "NeighborhoodAttention2D", **MODULES),
    *called(vicinal.nn.NeighborhoodAttention, RANKLESS, "NeighborhoodAttention", **MODULES),
    *called(forward, FORWARD, "module called"),
    *called(with_attribute, ATTRIBUTES, "attribute"),
    *called(unfused.na2d_qk, QK, "na2d_qk", query=Q, key=K, kernel_size=3),
    *called(unfused.na2d_av, AV, "na2d_av", attn=WEIGHTS, value=V, kernel_size=3),
    *called(unfused.na1d_qkrpb, RANKED, "na1d_qkrpb", query=Q, key=K, rpb=None, kernel_size=3),
    *called(N17.functional.na2d_qk, COMPAT_QK, "0.17 na2d_qk", query=first(Q), key=first(K), kernel_size=3),
    *called(N17.functional.na2d, COMPAT_FUSED, "0.17 na2d", **TWO, kernel_size=3),
    *called(N17.NeighborhoodAttention2D, COMPAT_MODULE, "0.17 module", dim=12, num_heads=2, kernel_size=3),
    *called(N14.NeighborhoodAttention2D, COMPAT_MODULE, "0.14 module", dim=12, num_heads=2, kernel_size=3),
    *called(lambda x: N14.NeighborhoodAttention2D(12, 2, 3)(x), COMPAT_FORWARD, "0.14 module called"),
    *called(lambda x: N17.NeighborhoodAttention2D(12, 2, 3)(x), COMPAT_FORWARD, "0.17 module called"),
    *called(N21.attention, COMPAT_ATTENTION, "0.21.0 attention", query=A, key=B, value=C),
    *called(N21.NeighborhoodAttention2D, MODULE[:12], "0.21.0 module", **MODULES),
    *called(vicinal.tune, PROBLEMS, "tune", problems=[]),
    *called(vicinal.precompile, PROBLEMS, "precompile", problems=[]),
    *called(install_as_natten, VERSIONS, "install_as_natten"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "error", "parts"), ROWS)
def test_wrong_call(call, arguments, error, parts):
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**arguments)
    assert caught.type is error, caught.value
    missing = [part for part in parts.split(" | ") if part not in str(caught.value)]
    assert not missing, caught.value


def test_a_right_call_does_not_let_a_wrong_one_pass():
    """What is remembered of right calls tells numbers of other types, and other kinds of tensors, apart."""
    vicinal.na2d(Q, K, V, 3, stride=(1, 1), is_causal=(True, False), scale=1.0)
    unfused.na2d_qk(Q, K, (3, 3), dilation=(1, 1))
    for change in (
        {"kernel_size": 3.0},
        {"kernel_size": (3, 3.0)},
        {"stride": (1, True)},
        {"is_causal": (1, 0)},
        {"scale": True},
        {"query": Q.to_sparse()},
        {"query": Q.to_mkldnn()},
    ):
        with pytest.raises(TypeError):
            vicinal.na2d(
                **{**TWO, "kernel_size": 3, "stride": (1, 1), "is_causal": (True, False), "scale": 1.0} | change
            )
    with pytest.raises(TypeError, match="kernel_size must be an integer"):
        unfused.na2d_qk(Q, K, (3, 3.0), dilation=(1, 1))
    with pytest.raises(TypeError, match="dilation must be an integer"):
        unfused.na2d_qk(Q, K, (3, 3), dilation=(1, True))


@pytest.mark.parametrize("scale", [2, Fraction(1, 2), np.float32(0.5), np.float64(0.5), np.int64(1), 0, -1.5])
def test_any_real_number_is_a_scale(scale):
    q = torch.randn(1, 6, 2, 4)
    assert torch.equal(vicinal.na1d(q, q, q, 3, scale=scale), vicinal.na1d(q, q, q, 3, scale=float(scale)))
