"""How the Hopper kernels run a pass: the backend's own configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vicinal.backends.protocol import DERIVED
from vicinal.words import by


@dataclass(frozen=True)
class ForwardConfig:
    """A tiling of the forward kernel: two warpgroups of 64 rows each, their tiles side by side.

    Attributes:
        query_tile: queries of a warpgroup's tile along each axis.
        key_tile: keys of a step along each axis; with `paired`, of each of its two chunks.
        split: the axis along which the tiles of the two warpgroups lie side by side.
        stages: slots of the rings of keys and values.
        heads: query heads of one key head that are rows of each query; times `query_tile` they are 64.
        paired: a step is two chunks of keys that need not touch.
        persistent: as many programs as there are multiprocessors take turns with the tiles.
    """

    query_tile: tuple[int, ...]
    key_tile: tuple[int, ...]
    split: int
    stages: int
    heads: int = 1
    paired: bool = False
    persistent: bool = field(default=False, metadata=DERIVED)

    @property
    def unfolded(self) -> None:
        """No tile holds tokens of several dilation groups."""

    def __str__(self) -> str:
        queries = f"{by(self.query_tile)} queries" + f" of {self.heads} heads" * (self.heads > 1)
        keys = f"{'two chunks of ' * self.paired}{by(self.key_tile)} keys"
        words = f"{queries} by {keys}, side by side along axis {self.split}, {self.stages} stages"
        return words + ", persistent" * self.persistent


@dataclass(frozen=True)
class BackwardConfig:
    """A tiling of the backward's kernels: tiles of 64 queries and of 64 keys.

    Attributes:
        query_tile, key_tile: tokens of a tile along each axis.
        split: the axis along which the tiles of two warpgroups lie side by side: of queries for dQ, of keys for dK, dV.
        stages: slots of a ring.
        one_pass: one kernel makes all gradients and adds dQ up in float32 scratch, in any order. Where that may not be
            (deterministic algorithms), or not all three gradients are wanted, the best of the others runs instead.
    """

    query_tile: tuple[int, ...]
    key_tile: tuple[int, ...]
    split: int
    stages: int
    one_pass: bool = False

    @property
    def unfolded(self) -> None:
        """No tile holds tokens of several dilation groups."""

    def __str__(self) -> str:
        queries, keys = by(self.query_tile), by(self.key_tile)
        words = f"{queries} queries by {keys} keys, side by side along axis {self.split}, {self.stages} stages"
        return words + ", in one pass with dQ in float32 as scratch" * self.one_pass


HopperConfig = ForwardConfig | BackwardConfig


def of_settings(settings: Mapping[str, Any]) -> HopperConfig:
    """The configuration of these fields, as JSON gives them back."""
    lists = {name: tuple(settings[name]) for name in ("query_tile", "key_tile")}
    kind = BackwardConfig if "one_pass" in settings else ForwardConfig
    return kind(**{**settings, **lists})
