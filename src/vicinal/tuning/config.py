"""`TileConfig`: how one kernel launch is tiled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TileConfig:
    """A tiling; what a backend's `configs` lists and its kernels take.

    Attributes:
        query_tile: queries per tile along each spatial axis.
        key_tile: keys per tile along each spatial axis.
        warps: warps per program (GPU).
        stages: depth of the key/value pipeline (GPU).
        variant: which of a backend's kernels, where it has several.
        unfolded: a dilated axis that tiles see as two (`vicinal.geometry.unfold`): they have one more axis then.
    """

    query_tile: tuple[int, ...]
    key_tile: tuple[int, ...]
    warps: int = 4
    stages: int = 2
    variant: str = ""
    unfolded: int | None = None

    def __str__(self) -> str:
        queries, keys = ("x".join(map(str, tile)) for tile in (self.query_tile, self.key_tile))
        words = f"{queries} queries by {keys} keys, {self.warps} warps, {self.stages} stages"
        groups = None if self.unfolded is None else f"groups of axis {self.unfolded} side by side"
        return ", ".join(filter(None, (words, self.variant, groups)))
