"""Slots: where each neighbor's score sits in a tensor of attention weights.

Attention weights are `[B, *X, H, slots]`: one slot per key of a whole window, `K0 * K1 * ...` of them. Along one axis
a key at `key'` (its position in its dilation group) sits in slot `key' - window_start(query')`; slots of several axes
are numbered in row-major order. So the first slot is the window's first key, and a window that a border cuts (causal,
or `boundary="clip"`) fills the first slots of that axis; the others are absent: minus infinity as scores, hence zero as
weights, and with zero gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.window import SHIFT, mode


@dataclass(frozen=True)
class Slots:
    """Where keys sit among the slots: a resolved neighborhood and the lengths of the spatial axes."""

    neighborhood: Neighborhood
    lengths: tuple[int, ...]

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(k for k in self.neighborhood.window if k is not None)

    @property
    def count(self) -> int:
        """Slots per query: the product of the window's sizes."""
        return prod(self.window)

    @property
    def tokens(self) -> int:
        return prod(self.lengths)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """The shape of a relative positional bias table, less its heads."""
        return tuple(2 * k - 1 for k in self.window)

    @property
    def has_absent_slots(self) -> bool:
        """Whether some query has fewer neighbors than slots."""
        return any(mode(axis) != SHIFT for axis in self.neighborhood.axes)
