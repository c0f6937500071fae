"""How the Hopper kernels see a tensor: five-dimensional TMA descriptors, and which subproblems cover a problem.

Every tensor `[B, *X, heads, columns]` is described as `[B, X0, X1, X2, columns]`, with leading axes of length 1 for
fewer than three. A dilation group of an axis is every `d`-th token: lengths divided by `d`, strides times `d`. Groups
need no dimension of their own: the first token of a group is so many tokens, and so many columns, after the first.
Where kernels are compiled for more columns than a head has, a descriptor is `[units, X0, X1, X2, columns of one head]`:
what lies outside of a head is read as zero, and not written. Batch element, group and head are so many units (of 8
elements) after the first.
A descriptor has one length per axis, so where the dilation does not divide an axis, its longer groups and its shorter
ones are subproblems of their own: at most two per dilated axis. Nothing is ever copied for dilation.

A copy's coordinates are 32-bit integers, and so are extents as Triton passes them; strides and addresses are not. So a
subproblem is halved, by its groups or its batch elements, until its columns are few enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from torch import Tensor

from vicinal.backends.gpu.arguments import placed
from vicinal.backends.gpu.strides import contiguous_strides, dense
from vicinal.backends.hopper.kernels.arguments import UnitStrides
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import alike
from vicinal.problem import Inputs, Problem

ALIGNMENT = 8  # elements of 2 bytes: descriptors take strides and addresses of 16 bytes
ANY_STRIDE = 16  # of an axis with one token: divisible by 16, which Triton likes to know of what it loads by pointers
LARGEST = 2**31 - 1  # coordinate or extent
RANK = 3
LEADING = Axis(1)
Triple = tuple[int, int, int]


# --- tensors -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strided:
    """A tensor `[B, *X, heads, columns]` without its memory; strides are in elements.

    `keys`: its tokens are keys, else queries; they differ where a problem is of parts of axes.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    keys: bool = False

    @classmethod
    def contiguous(cls, *shape: int, keys: bool = False) -> Strided:
        return cls(shape, contiguous_strides(shape), keys)

    @cached_property
    def token(self) -> int:
        """From a token to the next: the stride of the last axis that has more than one (others' say nothing)."""
        return next((s for s, n in zip(self.strides[-3:0:-1], self.shape[-3:0:-1]) if n > 1), ANY_STRIDE)

    @property
    def batch(self) -> int:
        """From a batch element to the next."""
        return self.strides[0] if self.shape[0] > 1 else ANY_STRIDE

    @property
    def width(self) -> int:
        """Columns of all heads of a token."""
        return self.shape[-2] * self.shape[-1]


def described(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each `describable`."""
    return describable(inputs.query), describable(inputs.key), describable(inputs.value)


def describable(tensor: Tensor) -> Tensor:
    """`tensor`, or a contiguous copy where its strides or its address do not suit a descriptor."""
    if tensor.data_ptr() % 16 or tensor.is_neg():
        return packed(tensor)
    if tensor.is_contiguous() or suits(Strided(tuple(tensor.shape), tensor.stride())):
        return tensor
    return packed(tensor)


def packed(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy where it is not contiguous, negated when it is read, or not at a multiple of 16 bytes."""
    tensor = dense(tensor)
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


@lru_cache(maxsize=1024)
def suits(tensor: Strided) -> bool:
    """Whether descriptors can say these strides: heads packed, tokens evenly apart, multiples of 16 bytes."""
    shape, strides = tensor.shape, tensor.strides
    outer = [(s, n) for s, n in zip(strides[:-2], shape) if n > 1]
    spatial = [(strides[a], tensor.token * prod(shape[a + 1 : -2])) for a in range(1, len(shape) - 2) if shape[a] > 1]
    heads_packed = strides[-1] == 1 and (strides[-2] == shape[-1] or shape[-2] == 1)
    even = all(stride == want for stride, want in spatial)
    return heads_packed and even and tensor.token <= LARGEST and all(s > 0 and s % ALIGNMENT == 0 for s, _ in outer)


# --- subproblems -------------------------------------------------------------------------------------------


class Extent(NamedTuple):
    """Of a subproblem of parts of axes: what of each of its dilation groups is given, along each of three axes.

    Attributes:
        lengths: tokens per group, whole.
        query_starts: the position of the first query.
        key_starts: the position of the first key.
        key_lengths: keys.
        key_first: the first key of the first group, among the keys.
        key_spread: keys of the whole problem along each of the last two axes.
    """

    lengths: Triple
    query_starts: Triple
    key_starts: Triple
    key_lengths: Triple
    key_first: Triple
    key_spread: tuple[int, int]


@dataclass(frozen=True)
class Subproblem:
    """The part of a problem that one launch computes: dilation groups of the same lengths, of some batch elements.

    Attributes:
        lengths: tokens (of a part of axes: queries) per group along each of three axes.
        groups: groups along each of three axes.
        first: first token of the first group along each axis.
        spread: tokens of the whole problem along each of the last two axes.
        batch: batch elements.
        first_batch: the first of them.
        extent: of a problem of parts of axes.
    """

    lengths: Triple
    groups: Triple
    first: Triple
    spread: tuple[int, int]
    batch: int
    first_batch: int = 0
    extent: Extent | None = None

    @property
    def of_keys(self) -> Subproblem:
        """The same of keys: their lengths, first tokens and spread."""
        e = self.extent
        return self if e is None else replace(self, lengths=e.key_lengths, first=e.key_first, spread=e.key_spread)

    def tokens(self, group: Triple) -> int:
        """Tokens from the first group's first to this group's."""
        return (group[0] * self.spread[0] + group[1]) * self.spread[1] + group[2]

    @cached_property
    def farthest(self) -> int:
        """Tokens from the first group's first to the last group's."""
        return self.tokens((self.groups[0] - 1, self.groups[1] - 1, self.groups[2] - 1))


@dataclass(frozen=True)
class Reach:
    """What makes up the columns of a subproblem's descriptors, the most of any tensor's.

    Attributes:
        token: columns from a token to the next.
        width: columns of all heads of a token.
        batch: columns from a batch element to the next; 0 where the batch is a dimension of its own.

    Units of 8 elements are fewer than columns.
    """

    token: int = 0
    width: int = 0
    batch: int = 0

    @classmethod
    def of(cls, tensors: Iterable[Strided], with_batch: Iterable[Strided] = ()) -> Reach:
        """Of these tensors; `with_batch`: those of them that are described `with_heads` or `by_units`."""
        tensors = tuple(tensors)
        batch = max((t.batch for t in with_batch), default=0)
        return cls(max(t.token for t in tensors), max(t.width for t in tensors), batch)

    def columns(self, part: Subproblem) -> int:
        return part.farthest * self.token + (part.batch - 1) * self.batch + self.width


def subproblems(problem: Problem, reach: Reach = Reach()) -> list[Subproblem]:
    """Those that together cover `problem`, of at most `LARGEST` columns each; the first is one of the largest."""
    return [part for each in _whole(problem) for part in _halved(each, reach)]


@lru_cache(maxsize=1024)
def count_of(problem: Problem) -> int:
    """How many they are at least: where a part's columns are few."""
    return prod([len(alike(axis, n)) for axis, n in zip(_axes(problem), three(problem.lengths, 1))])


@lru_cache(maxsize=1024)
def _whole(problem: Problem) -> tuple[Subproblem, ...]:
    """The same, of any columns."""
    lengths, keys = three(problem.lengths, 1), three(problem.key_lengths, 1)
    axes = _axes(problem)
    found = []
    for part in product(*(alike(axis, n) for axis, n in zip(axes, lengths))):
        queries = [axis.span.queries[0] if axis.span else 0 for axis in axes]
        first = [kind.own[0] * axis.dilation + kind.first - q for kind, axis, q in zip(part, axes, queries)]
        extent = None
        if problem.is_part:
            of_keys = [axis.span.keys[0] if axis.span else 0 for axis in axes]
            extent = Extent(
                _triple([kind.length for kind in part]),
                _triple([kind.own[0] for kind in part]),
                _triple([kind.other[0] for kind in part]),
                _triple([kind.other[1] - kind.other[0] for kind in part]),
                _triple([k.other[0] * axis.dilation + k.first - n for k, axis, n in zip(part, axes, of_keys)]),
                (keys[1], keys[2]),
            )
        own = _triple([kind.own[1] - kind.own[0] for kind in part])
        groups = _triple([kind.count for kind in part])
        found.append(Subproblem(own, groups, _triple(first), lengths[1:], problem.batch, extent=extent))
    return tuple(sorted(found, key=lambda each: -prod(each.lengths) * prod(each.groups)))


def _axes(problem: Problem) -> list[Axis]:
    """Three axes; spans where they begin at 0 or later (`vicinal.backends.gpu.arguments.placed`)."""
    axes = list(problem.neighborhoods[0].axes)
    if problem.is_part:
        axes = [replace(a, span=s) for a, s in zip(axes, placed(problem.neighborhoods, problem.lengths))]
    return [LEADING] * (RANK - problem.rank) + axes


def three(values: tuple[int, ...], fill: int) -> Triple:
    """One value per axis of three: the leading axes get `fill`."""
    padded = (fill,) * (RANK - len(values)) + tuple(values)
    return padded[0], padded[1], padded[2]


def _halved(part: Subproblem, reach: Reach) -> list[Subproblem]:
    """`part`, or its halves, and theirs, along what reaches farthest, until columns are few enough."""
    if reach.columns(part) <= LARGEST:
        return [part]
    units = [part.tokens(unit) * reach.token for unit in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    extents = [(count - 1) * unit for count, unit in zip((*part.groups, part.batch), (*units, reach.batch))]
    along = max(range(RANK + 1), key=extents.__getitem__)
    assert extents[along] > 0, f"one token of one batch element has more than {LARGEST} columns: {part}, {reach}"
    return [each for half in _halves(part, along) for each in _halved(half, reach)]


def _halves(part: Subproblem, along: int) -> tuple[Subproblem, Subproblem]:
    if along == RANK:
        fewer = part.batch // 2
        rest = replace(part, batch=part.batch - fewer, first_batch=part.first_batch + fewer)
        return replace(part, batch=fewer), rest
    fewer = part.groups[along] // 2
    rest = replace(part, groups=_with(part.groups, along, part.groups[along] - fewer))
    rest = replace(rest, first=_with(part.first, along, part.first[along] + fewer))
    if part.extent is not None:
        key_first = _with(part.extent.key_first, along, part.extent.key_first[along] + fewer)
        rest = replace(rest, extent=part.extent._replace(key_first=key_first))
    return replace(part, groups=_with(part.groups, along, fewer)), rest


def _with(values: Triple, a: int, value: int) -> Triple:
    changed = [value if i == a else old for i, old in enumerate(values)]
    return changed[0], changed[1], changed[2]


def _triple(values: Iterable[int]) -> Triple:
    a, b, c = values
    return a, b, c


# --- descriptors -------------------------------------------------------------------------------------------


class Descriptor(NamedTuple):
    """Shape and strides of one tensor of one subproblem, in elements; `offset` of its first element.

    `token_columns` is the distance in columns between neighboring tokens of the whole problem; `batch_columns` that
    between batch elements, 0 where they are not in the columns. `units` is for what is described `by_units`.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    token_columns: int
    batch_columns: int = 0
    units: UnitStrides | None = None

    @property
    def steps(self) -> int | UnitStrides:
        """What kernels need to find a head: `units`, or columns between tokens."""
        return self.token_columns if self.units is None else self.units


def describe(problem: Problem, part: Subproblem, tensor: Strided) -> Descriptor:
    """The descriptor of a tensor's part `[batch, X0, X1, X2, columns]`."""
    d0, d1, d2 = three(problem.neighborhoods[0].dilation, 1)
    part = part.of_keys if tensor.keys else part
    token, (n0, n1, n2), (f0, f1, f2) = tensor.token, part.lengths, part.first
    x1 = token * part.spread[1]
    x0 = x1 * part.spread[0]
    steps = (x0 * d0 if n0 > 1 else ANY_STRIDE, x1 * d1 if n1 > 1 else ANY_STRIDE, token * d2 if n2 > 1 else ANY_STRIDE)
    return Descriptor(
        shape=(part.batch, n0, n1, n2, part.farthest * token + tensor.width),
        strides=(tensor.batch, *steps, 1),
        offset=part.first_batch * tensor.batch + f0 * x0 + f1 * x1 + f2 * token,
        token_columns=token,
    )


def by_units(description: Descriptor, tensor: Strided) -> Descriptor:
    """The same part of the same tensor as `[units, X0, X1, X2, columns of one head]`."""
    batch, *lengths, columns = description.shape
    own = tensor.shape[-1]
    farthest = (batch - 1) * tensor.batch + columns - own
    return description._replace(
        shape=(farthest // ALIGNMENT + 1, *lengths, own),
        strides=(ALIGNMENT, *description.strides[1:]),
        units=UnitStrides(tensor.batch // ALIGNMENT, description.token_columns // ALIGNMENT, own // ALIGNMENT),
    )


def with_heads(description: Descriptor, tensor: Strided) -> Descriptor:
    """The same part of the same tensor as `[X0, X1, X2, heads, columns]`: the batch is in the columns."""
    batch, *lengths, columns = description.shape
    heads, own = tensor.shape[-2:]
    between = tensor.batch if batch > 1 else 0
    return description._replace(
        shape=(*lengths, heads, columns - heads * own + (batch - 1) * between + own),
        strides=(*description.strides[1:4], own, 1),
        batch_columns=between,
    )
