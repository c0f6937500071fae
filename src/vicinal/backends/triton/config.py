"""How the Triton kernels are tiled: a `Tiling` for each, two of them for the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from vicinal.words import by


@dataclass(frozen=True)
class Tiling:
    """How one kernel is tiled; a configuration of the forward pass.

    Attributes:
        tile: tokens of a program along each axis: queries, or keys where it computes the gradients of keys and values.
        step: tokens of the other side that it takes at a time.
        warps: per program.
        stages: depth of the pipeline that loads steps.
        unfolded: a dilated axis that tiles see as two (`vicinal.geometry.unfold`): they have one more axis then.
        of_classes: tiles are of classes (`vicinal.backends.triton.kernels.starts`): a step has tokens of the box in
            order, as many as `step` has, and its scores start from what is laid out for the class.
        registers: of a thread, at most; None: as many as the compiler likes.
        abreast: batch entries that a program computes side by side: the query gradient's, of tiles of classes.
    """

    tile: tuple[int, ...]
    step: tuple[int, ...]
    warps: int = 4
    stages: int = 2
    unfolded: int | None = None
    of_classes: bool = False
    registers: int | None = None
    abreast: int = 1

    @property
    def query_tile(self) -> tuple[int, ...]:
        return self.tile

    @property
    def key_tile(self) -> tuple[int, ...]:
        return (1,) * len(self.step) if self.of_classes else self.step

    def __str__(self) -> str:
        return f"{by(self.tile)} queries by {self._step} keys, {self._launched}"

    @property
    def _step(self) -> str:
        return f"{prod(self.step)} of their" if self.of_classes else by(self.step)

    @property
    def _launched(self) -> str:
        groups = "" if self.unfolded is None else f", groups of axis {self.unfolded} side by side"
        registers = "" if self.registers is None else f", {self.registers} registers"
        abreast = "" if self.abreast == 1 else f", {self.abreast} batch entries side by side"
        return f"{self.warps} warps, {self.stages} stages{registers}{groups}{abreast}"


@dataclass(frozen=True)
class GradientTilings:
    """A configuration of the backward pass.

    Attributes:
        query: of the query gradient's kernel.
        key_value: of the kernel of keys' and values' gradients.
        together: whether both are computed in one launch; warps, stages and the axis unfolded are the same then.
    """

    query: Tiling
    key_value: Tiling
    together: bool = False

    def __post_init__(self) -> None:
        if self.together and not can_be_together(self.query, self.key_value):
            raise ValueError(f"kernels in one launch have the same warps, stages and unfolded axis, got {self}")

    @property
    def query_tile(self) -> tuple[int, ...]:
        return self.query.tile

    @property
    def key_tile(self) -> tuple[int, ...]:
        return self.query.step

    @property
    def unfolded(self) -> int | None:
        return self.query.unfolded

    def __str__(self) -> str:
        own = self.key_value
        keys = f"{by(own.tile)} keys by {own._step} queries"
        if self.together:
            return f"{by(self.query.tile)} queries by {self.query._step} keys and {keys} at once, {own._launched}"
        return f"{self.query}; {keys}, {own._launched}"


def of_settings(settings: Mapping[str, Any]) -> Tiling | GradientTilings:
    """The configuration of these fields, as JSON gives them back."""
    if "query" not in settings:
        lists = {name: tuple(settings[name]) for name in ("tile", "step")}
        return Tiling(**{**settings, **lists})
    query, key_value = (of_settings(settings[name]) for name in ("query", "key_value"))
    assert isinstance(query, Tiling)
    assert isinstance(key_value, Tiling)
    return GradientTilings(**{**settings, "query": query, "key_value": key_value})


def can_be_together(query: Tiling, key_value: Tiling) -> bool:
    """Whether one launch can run both."""
    if query.of_classes or key_value.of_classes:
        return False
    return (query.warps, query.stages, query.unfolded) == (key_value.warps, key_value.stages, key_value.unfolded)
