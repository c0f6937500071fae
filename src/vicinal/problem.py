"""`Inputs`: the tensors of one call. `Problem`: everything else about it, frozen and hashable, so that plans cache.

Shapes, everywhere: query `[B, *X, H, D]`, key `[B, *X, Hkv, D]`, value `[B, *X, Hkv, Dv]` (as parts of axes
each with its own `X`: `vicinal.geometry.span`), additional keys and values `[B, M, Hkv, D]` and `[B, M, Hkv, Dv]`,
relative positional bias `[H, 2*K0-1, ...]`; key mask `[B, *X]`, True where there is a key; window sizes per
token `[B, *X, H]`; output `[B, *X, H, Dv]`, log-sum-exp `[B, *X, H]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vicinal.geometry.maps import Maps
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.unroll import unrolled
from vicinal.geometry.work import backward_flops, call_scores, forward_flops
from vicinal.words import by

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Inputs(NamedTuple):
    """The tensors of one call; also the shape of their gradients, with None where there is none.

    The first ones, as many as `Wanted` has, are numbers that have gradients; the rest says which scores count.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    additional_keys: Tensor | None = None
    additional_values: Tensor | None = None
    rpb: Tensor | None = None
    key_mask: Tensor | None = None
    window_sizes: Tensor | None = None

    @property
    def numbers(self) -> tuple[Tensor | None, ...]:
        """Those that have gradients."""
        return self[: len(Wanted._fields)]


class Upstream(NamedTuple):
    """What a backward pass is given besides the inputs: the forward's results and the gradients of them.

    `grad_lse` is None when nothing depends on the log-sum-exp.
    """

    output: Tensor
    lse: Tensor
    grad_output: Tensor
    grad_lse: Tensor | None = None


class Wanted(NamedTuple):
    """Which inputs' gradients somebody needs: True only for tensors that are there."""

    query: bool = True
    key: bool = True
    value: bool = True
    additional_keys: bool = True
    additional_values: bool = True
    rpb: bool = True

    @classmethod
    def of(cls, inputs: Inputs) -> Wanted:
        """Of every tensor that is there."""
        return cls(*(t is not None for t in inputs.numbers))


@dataclass(frozen=True)
class Problem:
    """What is computed, without the data.

    Attributes:
        batch, lengths, heads, kv_heads, head_dim, value_dim: sizes of the tensors (see the module's docstring).
            `lengths` are the queries'.
        neighborhoods: resolved (no window is None); one for all heads, or one per query head. Where queries and keys
            are parts of the axes, these say which (`Axis.span`), the same for all heads. Circular axes are unrolled:
            their keys are more than the axis, or go around it (`Span.circle`).
        additional: number of additional keys, 0 for none.
        has_rpb: whether there is a relative positional bias.
        has_key_mask: whether some keys may be masked.
        has_window_sizes: whether each query has a window size of its own, at most the neighborhood's.
        scale: factor of the scores.
    """

    batch: int
    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    neighborhoods: tuple[Neighborhood, ...]
    scale: float
    additional: int = 0
    has_rpb: bool = False
    has_key_mask: bool = False
    has_window_sizes: bool = False

    @classmethod
    def of(cls, inputs: Inputs, neighborhoods: Sequence[Neighborhood], scale: float) -> Problem:
        """The problem of a call whose tensors have been checked."""
        query, key, value = inputs.query, inputs.key, inputs.value
        lengths = tuple(query.shape[1:-2])
        return cls(
            batch=query.shape[0],
            lengths=lengths,
            heads=query.shape[-2],
            kv_heads=key.shape[-2],
            head_dim=query.shape[-1],
            value_dim=value.shape[-1],
            dtype=query.dtype,
            device=query.device,
            neighborhoods=tuple(n.resolve(lengths) for n in neighborhoods),
            scale=scale,
            additional=0 if inputs.additional_keys is None else inputs.additional_keys.shape[1],
            has_rpb=inputs.rpb is not None,
            has_key_mask=inputs.key_mask is not None,
            has_window_sizes=inputs.window_sizes is not None,
        )

    def __post_init__(self) -> None:
        if any(n.is_circular for n in self.neighborhoods):
            object.__setattr__(self, "neighborhoods", unrolled(self.neighborhoods, self.lengths))

    def __hash__(self) -> int:  # plans are looked up on every call: hash the fields once
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(_every_field(self))

    def __getstate__(self) -> dict[str, Any]:  # without what is cached: another process has other hashes
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def rank(self) -> int:
        return len(self.lengths)

    @property
    def key_lengths(self) -> tuple[int, ...]:
        return self.neighborhoods[0].key_lengths(self.lengths)

    @property
    def is_part(self) -> bool:
        """Whether queries or keys are parts of an axis."""
        return self.neighborhoods[0].is_part

    @property
    def goes_around(self) -> bool:
        """Whether keys are read around circular axes, where they are."""
        return self.neighborhoods[0].goes_around

    @property
    def per_head(self) -> bool:
        """Whether heads have neighborhoods of their own."""
        return len(self.neighborhoods) > 1

    @property
    def neighborhood(self) -> Neighborhood:
        """The one neighborhood of all heads (ask `per_head` first)."""
        (neighborhood,) = self.neighborhoods
        return neighborhood

    @property
    def group_size(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    @cached_property
    def useful_scores(self) -> int:
        """Query-key pairs over all heads and the batch, additional keys included."""
        return self.batch * call_scores(self.neighborhoods, self.lengths, self.heads, self.additional)

    @property
    def forward_flops(self) -> int:
        return forward_flops(self.useful_scores, self.head_dim, self.value_dim)

    @property
    def backward_flops(self) -> int:
        return backward_flops(self.useful_scores, self.head_dim, self.value_dim)

    def in_words(self) -> str:
        """The problem in one line; what is usual is left out."""
        words = [
            by(self.lengths),
            f"B{self.batch} H{self.heads}" + (f"/{self.kv_heads}" if self.kv_heads != self.heads else ""),
            f"D{self.head_dim}" + (f"/{self.value_dim}" if self.value_dim != self.head_dim else ""),
            dtype_name(self.dtype),
        ]
        if not self.per_head:
            words += self.neighborhood.in_words()
        more = {"masked": self.has_key_mask, "sizes per token": self.has_window_sizes}
        return " ".join([*words, *(word for word, applies in more.items() if applies)])


_every_field = attrgetter(*(field.name for field in fields(Problem)))


@dataclass(frozen=True)
class PackedProblem:
    """Maps of different sizes, packed: query `[total, H, D]`, key and value alike.

    Attributes:
        maps: their lengths and neighborhoods.
        typical: a problem of as many equal maps, at least as large as the largest along every axis, rounded up to
            powers of two: what kernels are chosen by, so that new sizes need no new kernels.
    """

    maps: Maps
    typical: Problem

    @classmethod
    def of(cls, inputs: Inputs, maps: Maps, scale: float) -> PackedProblem:
        """The problem of checked tensors."""
        query, key, value = inputs.query, inputs.key, inputs.value
        sizes = query.shape[-2], key.shape[-2], query.shape[-1], value.shape[-1]
        return _packed(maps, sizes, query.dtype, query.device, scale)


@lru_cache(maxsize=256)
def _packed(
    maps: Maps, sizes: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, scale: float
) -> PackedProblem:
    """`sizes`: heads, heads of keys, head dim, value dim."""
    lengths = tuple(_power(max(own)) for own in zip(*maps.lengths))
    full = max(maps.neighborhoods, key=lambda n: [k or 0 for k in n.window])
    typical = Problem(_power(len(maps.lengths)), lengths, *sizes, dtype, device, (full,), scale)
    return PackedProblem(maps, typical)


def _power(n: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(n - 1, 0).bit_length()


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the log-sum-exp: float32, or float64 where the inputs are float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def stand_ins(problem: Problem) -> Inputs:
    """Contiguous tensors of a problem without memory."""

    def tensor(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=problem.dtype, device="meta")

    queries, keys = (problem.batch, *problem.lengths), (problem.batch, *problem.key_lengths)
    kv_heads, dims = problem.kv_heads, (problem.head_dim, problem.value_dim)
    extra: list[Tensor | None] = [None] * 5
    if problem.additional:
        extra[:2] = (tensor(problem.batch, problem.additional, kv_heads, dim) for dim in dims)
    if problem.has_rpb:
        extra[2] = tensor(problem.heads, *(2 * k - 1 for k in problem.neighborhoods[0].window if k is not None))
    if problem.has_key_mask:
        extra[3] = torch.empty(keys, dtype=torch.bool, device="meta")
    if problem.has_window_sizes:
        extra[4] = torch.empty((*queries, problem.heads), dtype=torch.int32, device="meta")
    return Inputs(tensor(*queries, problem.heads, dims[0]), *(tensor(*keys, kv_heads, dim) for dim in dims), *extra)
