"""What the Hopper kernels take besides tensors: named tuples that launchers make and kernels read.

Each field of those at run time is an integer, or a tuple of them; strides are in elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Constants(NamedTuple):
    """What a kernel is compiled for. "Own" tiles are a warpgroup's queries (for dK and dV: its keys)."""

    head_dim: int
    value_dim: int
    tile: tuple[int, int, int]  # tokens of an own tile along each axis
    step: tuple[int, int, int]  # tokens of a tile (or chunk) of the walk along each axis
    split: int  # the axis along which the own tiles of the two warpgroups lie side by side
    stages: int  # slots of a ring
    rank: int  # of three axes, those before the last `rank` have length 1
    strided: bool  # some stride exceeds 1
    moded: bool  # some axis is causal or clipped
    per_head: bool  # heads have neighborhoods of their own, in a table
    grouped: bool  # there are dilation groups
    own_output: bool = False  # forward: outputs have a buffer of their own, not the queries'
    paired: bool = False  # forward: a key tile is two chunks
    heads: int = 1  # forward: query heads that are rows of each token
    chained: bool = False  # launched while the kernel before may still run: `vicinal.backends.hopper.kernels.chain`
    inverse: bool = False  # dK and dV: own tiles are keys, and the walk is over the queries that attend to them
    shared: bool = False  # dK and dV: both warpgroups have the same keys, one makes dK, the other dV
    makes_dk: bool = True  # dK and dV: which of them somebody needs
    makes_dv: bool = True
    padded: bool = False  # heads have fewer columns than `head_dim` or `value_dim`: strides of tiles are `UnitStrides`
    additional: bool = False  # forward and dQ: tiles of additional keys follow the walk
    cut: int = -1  # dK and dV of additional keys: see `vicinal.backends.hopper.kernels.additional`
    aligned: bool = False  # dK, dV and dQ in one pass: walks begin at multiples of a block along each axis
    ragged: bool = False  # likewise: some tiles pass the end of an axis
    parts: bool = False  # queries and keys are parts of the axes: see `GroupAxes`
    scaled: bool = False  # scores are scaled before they are masked: the scale is not positive, or next to nothing
    masked: bool = False  # there is a key mask: `vicinal.backends.hopper.kernels.steps`


# 32-bit integers of a program's lists of steps (`kernels.steps`): before the lists, and of an entry; how many lists.
HEADER, ENTRY, LISTS = 16, 8, 3


def is_narrow(constants: Constants) -> bool:
    """Whether registers and shared memory are left in one pass: see `vicinal.backends.hopper.kernels.onepass`."""
    return constants.head_dim == 64


def parts_of(head_dim: int) -> int:
    """Parts in which the columns of an addend of dQ are made in one pass."""
    return 1 if head_dim == 64 else 2


def block_of(step: tuple[int, int, int]) -> tuple[int, int, int]:
    """The box of the first 16 queries of a step, and of each 16 that follow: a block, in one pass."""
    left, block = 16, []
    for n in reversed(step):
        block.insert(0, min(n, left))
        left //= block[0]
    return block[0], block[1], block[2]


class RowConstants(NamedTuple):
    """What `backward.prepare` is compiled for: some tokens of a row."""

    columns: int
    width: int  # `columns` rounded up to a power of two
    tokens: int  # of a program
    grouped: bool  # there are dilation groups
    chained: bool = False  # see `Constants`
    has_grad_lse: bool = False  # prepare: something depends on the log-sum-exp
    negated: bool = False  # prepare: results are added by who reads them, not subtracted
    masked: bool = False  # prepare: what has no answer is read as zero
    cleared: int = 0  # prepare: so many elements at a time are set to 0; none if 0


class FinishConstants(NamedTuple):
    """What `finish.finish` is compiled for."""

    columns: int  # of a head
    width: int  # that kernels have
    block: tuple[int, int, int]  # queries of a block along each axis
    grouped: bool  # there are dilation groups
    chained: bool = False  # see `Constants`


class GroupAxes(NamedTuple):
    """Three axes, of one dilation group: each field has one integer per axis.

    With `Constants.parts`, lengths are followed by where the queries that are given start, how many they are, where the
    keys start, and how many they are, three integers each. All else speaks of positions among those given.
    """

    lengths: Any
    windows: Any
    strides: Any
    modes: Any  # of `vicinal.backends.gpu.kernels.window`


class Grid(NamedTuple):
    """What work items are counted over, besides batch elements and dilation groups."""

    tiles: Any  # along each axis: pairs of own tiles (with `Constants.shared`: own tiles)
    heads: Any  # query heads, or tiles of `Constants.heads` of them
    kv_heads: Any
    group: Any  # query heads of a key head
    items: Any  # in all
    short: Any = 0  # one pass, along one axis: tiles at both ends, together, that have fewer queries than others


class Groups(NamedTuple):
    """Dilation groups."""

    counts: Any  # along each axis
    spread: Any  # tokens of the whole problem along the last two axes


class Scalars(NamedTuple):
    """What a launch is told at run time, but its tensors and dilation groups."""

    axes: GroupAxes
    grid: Grid
    strides: Any  # the kernel's own
    scale: Any  # of scores; of the forward times log2(e)


class More(NamedTuple):
    """What kernels need of additional keys. Strides as of a tensor with one token."""

    count: Any
    key: Any
    value: Any
    chunk: Any  # with `Constants.cut`: queries along that axis that a program walks


class Lists(NamedTuple):
    """Beside the scalars of a kernel that takes lists of steps, in the place of `More`: see `kernels.steps`."""

    room: Any  # entries of a list


class TokenStrides(NamedTuple):
    """Of a `[B, *X, H, ...]` tensor."""

    batch: Any
    token: Any  # between neighboring tokens of the whole problem, which start dilation groups
    axes: Any  # between neighboring tokens of a dilation group, along each axis


class UnitStrides(NamedTuple):
    """Of a tensor that a descriptor moves with `Constants.padded`: its first dimension counts units of 8 elements."""

    batch: Any
    token: Any  # between neighboring tokens of the whole problem
    head: Any


class RowStrides(NamedTuple):
    """Of a `[rows, X0, X1, X2]` tensor that `backward.prepare` writes."""

    row: Any
    axes: Any  # along all but the last


class ForwardStrides(NamedTuple):
    """Of `forward`: of a tensor that a descriptor moves, columns between neighboring tokens of the whole problem.

    Here and below, with `Constants.padded`: `UnitStrides`.
    """

    query: Any
    key: Any
    value: Any
    output: Any
    query_batch: Any  # between batch elements
    output_batch: Any
    lse: TokenStrides


class PrepareStrides(NamedTuple):
    """Of `backward.prepare`."""

    output: TokenStrides  # and its gradient
    lse: TokenStrides  # and its gradient
    result: RowStrides


class KeysStrides(NamedTuple):
    """Of `backward.backward_keys`: columns between neighboring tokens of the whole problem."""

    query: Any
    grad_output: Any
    key: Any
    value: Any
    grad_key: Any
    grad_value: Any


class QueriesStrides(NamedTuple):
    """Of `backward.backward_queries`: columns between neighboring tokens of the whole problem."""

    query: Any
    grad_output: Any
    key: Any
    value: Any
    grad_query: Any
    prepared: RowStrides
