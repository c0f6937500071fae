"""`natten.types`: names of types, which other packages import for annotations."""

from __future__ import annotations

from enum import Enum

from torch import Tensor

NoneType = type(None)

Dimension1DType = tuple[int]
Dimension2DType = tuple[int, int]
Dimension3DType = tuple[int, int, int]
DimensionType = Dimension1DType | Dimension2DType | Dimension3DType
Dimension1DTypeOrDed = int | Dimension1DType
Dimension2DTypeOrDed = int | Dimension2DType
Dimension3DTypeOrDed = int | Dimension3DType
DimensionTypeOrDed = int | DimensionType

CausalArg1DType = tuple[bool]
CausalArg2DType = tuple[bool, bool]
CausalArg3DType = tuple[bool, bool, bool]
CausalArgType = CausalArg1DType | CausalArg2DType | CausalArg3DType
CausalArg1DTypeOrDed = bool | CausalArg1DType
CausalArg2DTypeOrDed = bool | CausalArg2DType
CausalArg3DTypeOrDed = bool | CausalArg3DType
CausalArgTypeOrDed = bool | CausalArgType

ListOrNestedTensor = list | Tensor  # type: ignore[type-arg]


class KernelSchedule(Enum):
    """How NATTEN's kernels for Hopper schedule their warps; ignored here."""

    NonPersistent = 0
    WarpSpecializedCooperative = 1
    WarpSpecializedPingpong = 2


QKTileShapeType = (  # of the query and of the key
    tuple[Dimension1DType, Dimension1DType]
    | tuple[Dimension2DType, Dimension2DType]
    | tuple[Dimension3DType, Dimension3DType]
)
FnaTileShapeType = FnaForwardConfigType = QKTileShapeType
FnaBackwardConfigType = (
    tuple[Dimension1DType, Dimension1DType, Dimension1DType, bool]
    | tuple[Dimension2DType, Dimension2DType, Dimension2DType, bool]
    | tuple[Dimension3DType, Dimension3DType, Dimension3DType, bool]
)
FmhaForwardConfigType = tuple[int, int]
CutlassFnaForwardConfigType = CutlassFnaBackwardConfigType = QKTileShapeType
CutlassBlackwellFnaForwardConfigType = CutlassBlackwellFnaBackwardConfigType = QKTileShapeType
CutlassHopperFnaForwardConfigType = tuple[QKTileShapeType, KernelSchedule]
CutlassHopperFnaBackwardConfigType = FlexFnaForwardConfigType = QKTileShapeType
CutlassFmhaForwardConfigType = CutlassFmhaBackwardConfigType = FmhaForwardConfigType
CutlassBlackwellFmhaForwardConfigType = CutlassBlackwellFmhaBackwardConfigType = FmhaForwardConfigType
CutlassHopperFmhaForwardConfigType = tuple[FmhaForwardConfigType, KernelSchedule]
CutlassHopperFmhaBackwardConfigType = FlexFmhaForwardConfigType = FmhaForwardConfigType


def create_dim_from_int(na_dim: int, value: int) -> tuple[int, ...]:
    """`value` for each axis."""
    return (value,) * na_dim


def create_causal_arg_from_bool(na_dim: int, value: bool) -> tuple[bool, ...]:
    """`value` for each axis."""
    return (value,) * na_dim
