"""What tests of wrong calls share: right arguments, and rows of wrong ones for several functions.

Each wrong call raises TypeError or ValueError that names the argument, what came and what is allowed. A row: what is
wrong, the error, parts of its message, and what differs from a right call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

NAN, INF = float("nan"), float("inf")
Row = tuple[str, type[Exception], str, dict[str, Any]]


def tensor(*shape: int, **kwargs: Any) -> torch.Tensor:
    return torch.zeros(shape, **kwargs)


Q, K, V = tensor(2, 6, 8, 4, 5), tensor(2, 6, 8, 2, 5), tensor(2, 6, 8, 2, 3)  # of two axes
EK, EV = tensor(2, 3, 2, 5), tensor(2, 3, 2, 3)
RPB = tensor(4, 5, 5)
A, B, C = tensor(2, 7, 4, 5), tensor(2, 9, 2, 5), tensor(2, 9, 2, 3)  # of plain attention
OUT, LSE = tensor(2, 6, 4, 3), tensor(2, 6, 4)
X = tensor(1, 6, 8, 12)
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


def called(call: Callable[..., Any], rows: list[Row], name: str, **right: Any) -> list[Any]:
    return [
        pytest.param(call, {**right, **change}, error, parts, id=f"{name}: {what}")
        for what, error, parts, change in rows
    ]


MODULES = {"embed_dim": 12, "num_heads": 2, "kernel_size": 3}
TWO = {"query": Q, "key": K, "value": V}


def check_refused(call: Callable[..., Any], arguments: dict[str, Any], error: type[Exception], parts: str) -> None:
    """The call raises exactly `error`, with every one of the ` | `-separated parts in its message."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**arguments)
    assert caught.type is error, caught.value
    missing = [part for part in parts.split(" | ") if part not in str(caught.value)]
    assert not missing, caught.value
