"""Which of the unfused kernels run, and on which tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vicinal.words import by

Variant = Literal["gemm", "naive", "torch"]


@dataclass(frozen=True)
class UnfusedConfig:
    """A configuration of either pass.

    Attributes:
        variant: the kernels: "gemm" (tiles on tensor cores), "naive" (a query at a time), "torch" (plain torch).
        tile: queries, and keys, of a program along each axis.
        unfolded: a dilated axis that tiles see as two (`vicinal.geometry.unfold`): they have one more axis then.
    """

    variant: Variant
    tile: tuple[int, ...]
    unfolded: int | None = None

    @property
    def query_tile(self) -> tuple[int, ...]:
        return self.tile

    @property
    def key_tile(self) -> tuple[int, ...]:
        return self.tile

    def __str__(self) -> str:
        if self.variant != "gemm":
            return self.variant
        groups = "" if self.unfolded is None else f", groups of axis {self.unfolded} side by side"
        return f"gemm, tiles of {by(self.tile)}{groups}"
