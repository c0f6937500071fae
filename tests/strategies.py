"""Hypothesis strategies for random axes, neighborhoods and problems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.problem import Inputs


@st.composite
def axes(draw, max_length: int = 40) -> tuple[Axis, int]:
    """An axis and a length that it fits."""
    length = draw(st.integers(1, max_length))
    causal = draw(st.booleans())
    boundary = draw(st.sampled_from(["shift", "clip"]))
    dilation = draw(st.integers(1, min(4, length)))
    fits = length + 3 if boundary == "clip" and not causal else length // dilation
    window = draw(st.integers(1, fits))
    stride = draw(st.integers(1, window))
    return Axis(window, stride, dilation, causal, boundary), length


@st.composite
def neighborhoods(draw, rank: int, max_length: int) -> tuple[Neighborhood, tuple[int, ...]]:
    """A neighborhood and lengths that it fits."""
    pairs = [draw(axes(max_length)) for _ in range(rank)]
    return Neighborhood(tuple(a for a, _ in pairs)), tuple(n for _, n in pairs)


@dataclass(frozen=True)
class Call:
    """The arguments of one call of `neighborhood_attention`, with fresh random tensors on demand."""

    neighborhoods: tuple[Neighborhood, ...]
    lengths: tuple[int, ...]
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    additional: int
    has_rpb: bool
    seed: int

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    def inputs(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Inputs:
        generator = torch.Generator().manual_seed(self.seed)

        def make(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        b, x, h, hkv, d, dv = (
            self.batch,
            self.lengths,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.value_dim,
        )
        table = (2 * k - 1 for k in self.neighborhoods[0].window)
        return Inputs(
            make(b, *x, h, d),
            make(b, *x, hkv, d),
            make(b, *x, hkv, dv),
            make(b, self.additional, hkv, d) if self.additional else None,
            make(b, self.additional, hkv, dv) if self.additional else None,
            make(h, *table) if self.has_rpb else None,
        )


MAX_LENGTH = {1: 40, 2: 11, 3: 6}  # keeps the dense oracle small


@st.composite
def calls(draw, ranks: tuple[int, ...] = (1, 2, 3), per_head: bool = True, max_head_dim: int = 12) -> Call:
    """A call with every feature mixed in."""
    rank = draw(st.sampled_from(ranks))
    neighborhood, lengths = draw(neighborhoods(rank, MAX_LENGTH[rank]))
    kv_heads = draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 2))
    every = (neighborhood,)
    has_rpb = draw(st.booleans())
    if per_head and heads > 1 and draw(st.booleans()):
        # The same windows, so that a bias table fits; everything else may differ by head.
        every = tuple(
            Neighborhood(
                tuple(
                    Axis(a.window, draw(st.integers(1, a.window)), a.dilation, draw(st.booleans()), a.boundary)
                    if a.window * a.dilation <= n
                    else a
                    for a, n in zip(neighborhood.axes, lengths)
                )
            )
            for _ in range(heads)
        )
    return Call(
        neighborhoods=every,
        lengths=lengths,
        batch=draw(st.integers(1, 2)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=draw(st.integers(4, max_head_dim)),
        value_dim=draw(st.integers(1, max_head_dim)),
        additional=draw(st.sampled_from([0, 0, 1, 5])),
        has_rpb=has_rpb,
        seed=draw(st.integers(0, 2**31)),
    )


def whole(window: int, dilation: int = 1, **rest: Any) -> Call:
    """One small line of tokens."""
    return Call((Neighborhood((Axis(window, dilation=dilation, **rest),)),), (24,), 2, 2, 1, 8, 8, 0, False, 3)


def layouts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The same values in other strides: a slice, heads first, every second token, expanded, channels first."""
    yield torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]
    yield tensor.transpose(1, -2).contiguous().transpose(1, -2)
    yield tensor.repeat_interleave(2, 1)[:, ::2]
    yield torch.cat([tensor, tensor])[tensor.shape[0] :]
    yield tensor.transpose(1, -1).contiguous().transpose(1, -1)
