"""Wrong modules, and wrong calls of right ones; see `wrong_calls`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vicinal
from wrong_calls import (
    MODULE,
    MODULES,
    X,
    bad_tensors,
    called,
    check_refused,
)

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


def forward(x: Any) -> torch.Tensor:
    return vicinal.NeighborhoodAttention2D(12, 2, 3)(x)


def with_attribute(**change: Any) -> None:
    module = vicinal.NeighborhoodAttention2D(12, 2, 3)
    for name, value in change.items():
        setattr(module, name, value)
    module(X)


ROWS = [
    *called(vicinal.NeighborhoodAttention2D, MODULE, "NeighborhoodAttention2D", **MODULES),
    *called(vicinal.nn.NeighborhoodAttention, RANKLESS, "NeighborhoodAttention", **MODULES),
    *called(forward, FORWARD, "module called"),
    *called(with_attribute, ATTRIBUTES, "attribute"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "error", "parts"), ROWS)
def test_wrong_call(call, arguments, error, parts):
    check_refused(call, arguments, error, parts)
