"""The torch backend: plain torch operations over tiles, on any device. Right rather than fast.

It runs where no kernels of ours do: on CPUs without numba, on Apple's `mps`, Intel's `xpu`, other devices. What it
computes is in `formulas`, which second derivatives, forward mode and `vmap` use on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vicinal.backends.protocol import Backend, Direction
from vicinal.backends.torch.formulas import attend, attend_backward
from vicinal.backends.torch.tiles import tile_of
from vicinal.geometry.count import count
from vicinal.problem import DTYPES, Inputs, Problem, Upstream, Wanted
from vicinal.words import by


@dataclass(frozen=True)
class TorchConfig:
    """A tiling.

    Attributes:
        query_tile: queries per tile along each axis.
        key_tile: keys of its box along each axis.
    """

    query_tile: tuple[int, ...]
    key_tile: tuple[int, ...]
    unfolded: None = None

    def __str__(self) -> str:
        return f"{by(self.query_tile)} queries by {by(self.key_tile)} keys"


class TorchBackend(Backend[TorchConfig]):
    """See `vicinal.backends.protocol.Backend`."""

    name = "torch"

    def unsupported(self, problem: Problem) -> str | None:
        """A reason in words, or None."""
        if problem.dtype not in DTYPES.values():
            return f"{problem.dtype} is not one of {', '.join(map(str, DTYPES.values()))}"
        return None

    def configs(self, problem: Problem, direction: Direction) -> Sequence[TorchConfig]:
        """The cheapest tiling of the first head's neighborhood; others take the same."""
        axes = problem.neighborhoods[0].axes
        tile = tile_of(problem.neighborhoods[0], problem.lengths)
        box = tuple(count(*x, 1).widest for x in zip(axes, problem.lengths, tile))
        return [TorchConfig(tile, box)]

    def forward(self, problem: Problem, config: TorchConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        with torch.no_grad():
            return attend(inputs, problem.neighborhoods, problem.scale, config.query_tile)

    def backward(
        self, problem: Problem, config: TorchConfig, inputs: Inputs, upstream: Upstream, wanted: Wanted
    ) -> Inputs:
        """The gradients that are wanted."""
        with torch.no_grad():
            neighborhoods, scale = problem.neighborhoods, problem.scale
            return attend_backward(inputs, neighborhoods, scale, upstream, wanted, config.query_tile)


BACKEND = TorchBackend()
