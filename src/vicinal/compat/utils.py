"""`natten.utils` and `natten.types` of 0.17: argument checks and type names that other packages import."""

from __future__ import annotations

from typing import Any

from vicinal.geometry.neighborhood import Neighborhood, PerAxis

CausalArg1DType = tuple[bool]
CausalArg2DType = tuple[bool, bool]
CausalArg3DType = tuple[bool, bool, bool]
Dimension1DType = tuple[int]
Dimension2DType = tuple[int, int]
Dimension3DType = tuple[int, int, int]
CausalArg1DTypeOrDed = CausalArg1DType | bool
CausalArg2DTypeOrDed = CausalArg2DType | bool
CausalArg3DTypeOrDed = CausalArg3DType | bool
Dimension1DTypeOrDed = Dimension1DType | int
Dimension2DTypeOrDed = Dimension2DType | int
Dimension3DTypeOrDed = Dimension3DType | int
TYPES = [
    f"{kind}{rank}DType{ded}" for kind in ("CausalArg", "Dimension") for rank in (1, 2, 3) for ded in ("", "OrDed")
]


def check_all_args(
    na_dim: int, kernel_size: PerAxis[int], dilation: PerAxis[int], is_causal: PerAxis[bool] | None
) -> tuple[Any, Any, Any]:
    """Window, dilation and causality as one tuple of `na_dim` values each.

    Raises:
        TypeError, ValueError: a value is of the wrong type, count or range.
    """
    neighborhood = Neighborhood.of(na_dim, kernel_size, 1, dilation, is_causal)
    return neighborhood.window, neighborhood.dilation, neighborhood.causal
