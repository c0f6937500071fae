"""Hypothesis strategies for random axes, neighborhoods, problems and layouts in memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.span import Span
from vicinal.geometry.tiles import reach
from vicinal.problem import Inputs, Upstream


@st.composite
def axes(draw, max_length: int = 40, circular: bool = False) -> tuple[Axis, int]:
    """An axis and a length that it fits; some are `circular`."""
    length = draw(st.integers(1, max_length))
    causal = draw(st.booleans())
    boundary = draw(st.sampled_from(["shift", "clip"]))
    dilation = draw(st.integers(1, min(4, length)))
    fits = length + 3 if boundary == "clip" or causal else length // dilation
    window = draw(st.integers(1, fits))
    stride = draw(st.integers(1, window))
    if circular and not causal and window * dilation <= length and length % dilation == 0 and draw(st.booleans()):
        boundary = "wrap"
    return Axis(window, stride, dilation, causal, boundary), length


def part_of(draw, axes: Iterable[Axis], length: int) -> Span:
    """Some queries of an axis, and at least the keys that they need of any of `axes`."""
    start = draw(st.integers(0, length - 1))
    queries = start, draw(st.integers(start + 1, length))
    axes = list(axes)
    needed = [reach(axis, length, queries) for axis in axes]
    first, last = min(low for low, _ in needed), max(high for _, high in needed)
    least, most = (-length, 2 * length) if axes[0].boundary == "wrap" else (0, length)
    spare = draw(st.sampled_from([0, 1, 3, 2 * length])), draw(st.sampled_from([0, 1, 3, 2 * length]))
    return Span(length, queries, (max(least, first - spare[0]), min(most, last + spare[1])))


@st.composite
def spans(draw, max_length: int = 40) -> tuple[Axis, int]:
    """An axis with a span, and the length of its queries."""
    axis, length = draw(axes(max_length, circular=True))
    span = part_of(draw, [axis], length)
    return replace(axis, span=span), span.query_length


@st.composite
def neighborhoods(draw, rank: int, max_length: int, circular: bool = False) -> tuple[Neighborhood, tuple[int, ...]]:
    """A neighborhood and lengths that it fits."""
    pairs = [draw(axes(max_length, circular)) for _ in range(rank)]
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
    masked: float = 0.0  # about how many of the keys are; 0 for no mask
    sized: bool = False  # whether windows are per token; then without strides

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
        y = self.neighborhoods[0].key_lengths(x)
        return Inputs(
            make(b, *x, h, d),
            make(b, *y, hkv, d),
            make(b, *y, hkv, dv),
            make(b, self.additional, hkv, d) if self.additional else None,
            make(b, self.additional, hkv, dv) if self.additional else None,
            make(h, *table) if self.has_rpb else None,
            torch.rand(b, *y, generator=generator).to(device) >= self.masked if self.masked else None,
            self._sizes(generator).to(device) if self.sized else None,
        )

    def _sizes(self, generator: torch.Generator) -> torch.Tensor:
        most = max(k for n in self.neighborhoods for k in n.window)
        return 2 * torch.randint(0, (most + 1) // 2, (self.batch, *self.lengths, self.heads), generator=generator) + 1

    def unstrided(self) -> Call:
        """With strides of 1."""
        axes = (tuple(replace(a, stride=1) for a in n.axes) for n in self.neighborhoods)
        return replace(self, neighborhoods=tuple(map(Neighborhood, axes)))


MAX_LENGTH = {1: 40, 2: 11, 3: 6}  # keeps the dense oracle small


@st.composite
def calls(
    draw, ranks: tuple[int, ...] = (1, 2, 3), per_head: bool = True, max_head_dim: int = 12, spans: bool = False
) -> Call:
    """A call with every feature mixed in; with `spans`, of parts of some axes, and of circular ones, too."""
    rank = draw(st.sampled_from(ranks))
    neighborhood, lengths = draw(neighborhoods(rank, MAX_LENGTH[rank], circular=spans))
    kv_heads = draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 2))
    every = (neighborhood,)
    has_rpb = draw(st.booleans())
    if per_head and heads > 1 and draw(st.booleans()):
        # The same windows, so that a bias table fits; everything else may differ by head.
        every = tuple(
            Neighborhood(
                tuple(
                    Axis(
                        a.window,
                        draw(st.integers(1, a.window)),
                        a.dilation,
                        a.boundary != "wrap" and draw(st.booleans()),
                        a.boundary,
                    )
                    if a.window * a.dilation <= n
                    else a
                    for a, n in zip(neighborhood.axes, lengths)
                )
            )
            for _ in range(heads)
        )
    if spans and draw(st.booleans()):
        parts = [
            part_of(draw, [n.axes[i] for n in every], length) if draw(st.booleans()) else None
            for i, length in enumerate(lengths)
        ]
        every = tuple(n.over(parts) for n in every)
        lengths = tuple(n if part is None else part.query_length for n, part in zip(lengths, parts))
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


# Layouts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """One way to lie in memory; call it with a tensor of any rank, on any device.

    The result has the tensor's shape, dtype and values, except that an "expanded" one repeats some of its values.
    Memory around it holds NaN. `seed` chooses what a kind leaves open: which order, which axes.
    """

    kind: str
    seed: int = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        laid_out = KINDS[self.kind](tensor, random.Random(self.seed))
        assert laid_out.shape == tensor.shape
        return laid_out


def _contiguous(tensor: Tensor, _: random.Random) -> Tensor:
    return tensor.contiguous()


def _in_order(tensor: Tensor, order: list[int]) -> Tensor:
    """With dimension `order[0]` outermost in memory, and so on."""
    back = sorted(range(tensor.ndim), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(back)


def _channels_last(tensor: Tensor, _: random.Random) -> Tensor:
    return _in_order(tensor, [0, *range(2, tensor.ndim), 1][: tensor.ndim])


def _permuted(tensor: Tensor, rng: random.Random) -> Tensor:
    return _in_order(tensor, rng.sample(range(tensor.ndim), tensor.ndim))


def _sliced(tensor: Tensor, rng: random.Random) -> Tensor:
    steps = [rng.choice((1, 1, 2)) for _ in tensor.shape]
    starts = [rng.randrange(3) for _ in tensor.shape]
    around = [start + step * n + rng.randrange(2) for start, step, n in zip(starts, steps, tensor.shape)]
    place = tensor.new_full(around, float("nan"))
    place = place[tuple(slice(a, a + s * n, s) for a, s, n in zip(starts, steps, tensor.shape))]
    return place.copy_(tensor)


def _packed(tensor: Tensor, rng: random.Random) -> Tensor:
    """One of three side by side: q, k and v of one projection."""
    dim = max(tensor.ndim - 2, 0)
    place = tensor.new_full((*tensor.shape[:dim], 3, *tensor.shape[dim:]), float("nan"))
    return place.select(dim, rng.randrange(3)).copy_(tensor)


def _expanded(tensor: Tensor, rng: random.Random) -> Tensor:
    """With stride 0 along some axes, or all."""
    shape = tensor.shape
    long = [dim for dim, n in enumerate(shape) if n > 1]
    for dim in rng.sample(long, rng.randint(min(1, len(long)), len(long))):
        tensor = tensor.narrow(dim, 0, 1)
    return tensor.expand(shape)


def _misaligned(tensor: Tensor, rng: random.Random) -> Tensor:
    """Contiguous, from a few elements into its storage."""
    start = rng.choice((1, 2, 3, 5))
    return tensor.new_full((start + tensor.numel(),), float("nan"))[start:].view(tensor.shape).copy_(tensor)


def _negated(tensor: Tensor, rng: random.Random) -> Tensor:
    """A view that negates what is in memory: as such, or as the imaginary part of a conjugate."""
    if tensor.dtype == torch.bool:
        return _permuted(tensor, rng)
    if tensor.dtype in (torch.float32, torch.float64) and rng.random() < 0.5:
        return torch.complex(torch.full_like(tensor, float("nan")), -tensor).conj().imag
    return torch._neg_view(_permuted(-tensor, rng))


KINDS: dict[str, Callable[[Tensor, random.Random], Tensor]] = {
    "contiguous": _contiguous,
    "channels_last": _channels_last,
    "permuted": _permuted,
    "sliced": _sliced,
    "packed": _packed,
    "expanded": _expanded,
    "misaligned": _misaligned,
    "negated": _negated,
}


@dataclass(frozen=True)
class Layouts:
    """A layout for every tensor of a call, and of its backward pass.

    What was laid out may have other values ("expanded"): an oracle takes them from the results.
    """

    of_inputs: tuple[Layout, ...]
    of_upstream: tuple[Layout, ...]

    def inputs(self, inputs: Inputs) -> Inputs:
        return Inputs(*(None if t is None else layout(t) for layout, t in zip(self.of_inputs, inputs, strict=True)))

    def upstream(self, upstream: Upstream) -> Upstream:
        """Also of output and log-sum-exp, which a backend is given as they were saved: any strides, the same values."""
        return Upstream(
            *(None if t is None else layout(t) for layout, t in zip(self.of_upstream, upstream, strict=True))
        )

    def gradients(self, grad_output: Tensor, grad_lse: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What comes from above."""
        of_output, of_lse = self.of_upstream[2:]
        return of_output(grad_output), None if grad_lse is None else of_lse(grad_lse)


def layout(kinds: Iterable[str] = tuple(KINDS)) -> st.SearchStrategy[Layout]:
    """A layout of one of these kinds."""
    return st.builds(Layout, st.sampled_from(list(kinds)), st.integers(0, 1 << 16))


@st.composite
def any_layouts(draw) -> Layouts:
    """Every tensor in a layout of its own."""
    same_values = tuple(kind for kind in KINDS if kind != "expanded")
    saved = (draw(layout(same_values)), draw(layout(same_values)))
    return Layouts(tuple(draw(layout()) for _ in Inputs._fields), (*saved, draw(layout()), draw(layout())))


def tiles(length: int, size: int) -> list[tuple[int, int]]:
    """Consecutive tiles of `size` positions; the last may be shorter."""
    return [(start, min(start + size, length)) for start in range(0, length, size)]
