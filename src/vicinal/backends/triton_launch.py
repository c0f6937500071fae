"""Launch preparation for `vicinal.backends.triton`: a `Problem`, a tiling and the inputs' strides -> kernel arguments.

Everything here is computed once per problem and cached by the backend: a call only appends tensors to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import ceil, gcd, prod
from typing import Any

import torch
import triton
from torch import Tensor

from vicinal.geometry.neighborhood import MAX_RANK, Neighborhood
from vicinal.geometry.tiles import groups, key_interval, query_interval, tiles
from vicinal.geometry.window import SHIFT, mode
from vicinal.kernels.triton.forward import forward_kernel
from vicinal.kernels.triton.softmax import LOG2E
from vicinal.problem import Inputs, Problem, lse_dtype
from vicinal.tuning.config import TileConfig

Tile = tuple[int, ...]
Strides = tuple[tuple[int, ...], ...]


@dataclass
class Launch:
    """A kernel with all its arguments but the tensors, which come first.

    The first call compiles (or finds) the kernel through Triton; later ones go straight to the compiled one, which
    holds as long as every pointer is 16-byte aligned, as in the call that compiled it.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, int]
    _run: Callable[..., None] | None = field(default=None, repr=False)

    def __call__(self, tensors: Sequence[Tensor | None], aligned: bool) -> None:
        if self._run is not None and aligned:
            self._run(*tensors, *self.arguments)
            return
        compiled = self.kernel[self.grid](*tensors, *self.arguments, **self.options)
        if compiled is not None and aligned:
            self._run = compiled[self.grid]


class Forward:
    """The forward pass of one problem, tiling and set of strides."""

    def __init__(self, prepared: Prepared, config: TileConfig, copies: bool) -> None:
        """`copies`: the inputs need copying before the kernels can read them (`readable`)."""
        problem = prepared.problem
        tile, key_tile = config.query_tile, config.key_tile
        self._shape = (problem.batch, *problem.lengths, problem.heads, problem.value_dim)
        self._lse_dtype = lse_dtype(problem.dtype)
        self._empty = problem.batch == 0
        self._copies = copies
        programs = tiles_of(problem, tile)
        self._table = prepared.table
        self._launch = Launch(
            forward_kernel,
            (problem.batch * problem.heads * programs, 1, 1),
            (
                prepared.scale,
                problem.heads,
                problem.group_size,
                problem.additional,
                programs,
                *prepared.window_arguments(),
                *prepared.stride_arguments(),
                *prepared.additional_strides(),
                *prepared.sizes(),
                *prepared.layout(tile, key_tile),
                *prepared.geometry.flags(),
                may_pass_end(problem, tile, key_tile),
                problem.scale <= 0,
                problem.has_rpb,
                problem.additional > 0,
                precision_of(problem),
            ),
            options_of(config),
        )

    def __call__(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        if self._copies or (inputs.rpb is not None and not inputs.rpb.is_contiguous()):
            inputs = readable(inputs)
        query = inputs.query
        output = query.new_empty(self._shape)
        lse = query.new_empty(self._shape[:-1], dtype=self._lse_dtype)
        if not self._empty:
            with device_of(query):
                self._launch((*inputs, self._table, output, lse), aligned(inputs))
        return output, lse


@dataclass(frozen=True)
class Geometry:
    """What the kernels need to know of a problem's neighborhoods, always over three axes (absent ones lead)."""

    lengths: tuple[int, ...]
    scalars: tuple[int, ...]  # windows, strides, dilations, modes of all heads; of the first head when per head
    table: tuple[tuple[int, ...], ...]  # the same of each head; empty unless per head
    strided: bool
    dilated: bool
    moded: bool

    @classmethod
    def of(cls, problem: Problem) -> Geometry:
        axes = [axis for n in problem.neighborhoods for axis in n.axes]
        rows = tuple(_scalars(n) for n in problem.neighborhoods)
        return cls(
            lengths=lead(problem.lengths, 1),
            scalars=rows[0],
            table=rows if problem.per_head else (),
            strided=any(a.stride > 1 for a in axes),
            dilated=any(a.dilation > 1 for a in axes),
            moded=any(mode(a) != SHIFT for a in axes),
        )

    def flags(self) -> tuple[bool, ...]:
        return self.strided, self.dilated, self.moded, bool(self.table)


def lead(values: Sequence[int], filler: int) -> tuple[int, ...]:
    """`values` of a problem's axes as those of three axes."""
    return (filler,) * (MAX_RANK - len(values)) + tuple(values)


def tiles_of(problem: Problem, tile: Tile) -> int:
    """How many tiles one head has, the most of any head's neighborhood."""

    def count(neighborhood: Neighborhood) -> int:
        return prod(
            a.dilation * ceil(ceil(length / a.dilation) / size)
            for a, length, size in zip(neighborhood.axes, problem.lengths, tile)
        )

    return max(count(n) for n in set(problem.neighborhoods))


def may_pass_end(problem: Problem, tile: Tile, box_tile: Tile, inverse: bool = False) -> bool:
    """Whether the tiles laid over some box may pass the end of an axis: then they need bounds checks.

    Boxes of keys for tiles of queries; if `inverse`, boxes of queries for tiles of keys.
    """
    interval = query_interval if inverse else key_interval
    for neighborhood in set(problem.neighborhoods):
        for axis, length, size, step in zip(neighborhood.axes, problem.lengths, tile, box_tile):
            for group_size in {g.length for g in groups(axis, length)}:
                for own in tiles(group_size, size):
                    start, stop = interval(axis, group_size, own)
                    if ceil((stop - start) / step) * step > group_size:
                        return True
    return False


def vector_of(strides: Strides, itemsize: int) -> int:
    """The power of two, at most 16 bytes of elements, that divides every stride."""
    return gcd(16 // itemsize, *(s for each in strides for s in each))


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """Strides of all dimensions but the last; 0 where the size is 1, since any stride means the same there."""
    return tuple(s if n > 1 else 0 for s, n in zip(tensor.stride()[:-1], tensor.shape[:-1]))


def token_strides(strides: tuple[int, ...], vector: int) -> tuple[int, ...]:
    """Strides of `[B, *X, H]`, as those of `[B, X0, X1, X2, H]` in units of `vector`."""
    batch, *spatial, head = strides
    return tuple(s // vector for s in (batch, *lead(spatial, 0), head))


def is_wide(problem: Problem, strides: Strides, tiles: Sequence[Tile]) -> bool:
    """Whether offsets within a tile may need more than 31 bits."""
    most = 0
    for neighborhood in problem.neighborhoods:
        for tile in tiles:
            for each in strides:
                spatial = each[1:-1]
                reach = [(t - 1) * a.dilation * s for t, a, s in zip(tile, neighborhood.axes, spatial)]
                most = max(most, sum(reach))
    return most + 512 >= 2**31


def rows_last(tensor: Tensor) -> Tensor:
    """The tensor with a last dimension that is contiguous: itself, unless it is not."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def readable(inputs: Inputs) -> Inputs:
    """The inputs as the kernels read them: in place, unless a last dimension is not contiguous."""
    q, k, v, ek, ev, rpb = inputs
    return Inputs(
        rows_last(q),
        rows_last(k),
        rows_last(v),
        None if ek is None else rows_last(ek),
        None if ev is None else rows_last(ev),
        None if rpb is None else rpb.contiguous(),
    )


def padded(size: int) -> int:
    """A head dim as the kernels compute it: a power of two, at least what a matrix instruction takes."""
    return max(16, triton.next_power_of_2(size))


def precision_of(problem: Problem) -> str:
    """How float32 is multiplied: TF32 where torch's own setting allows it, else to float32's accuracy.

    The latter is three TF32 products on NVIDIA ("tf32x3"), float32 multiply-adds elsewhere.
    """
    if problem.dtype != torch.float32 or torch.version.hip:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@dataclass(frozen=True)
class Prepared:
    """The parts of a launch that several kernels of one problem share."""

    problem: Problem
    geometry: Geometry
    strides: Strides  # query, key, value, then additional keys and values if any
    vector: int
    table: Tensor | None

    @classmethod
    def of(cls, problem: Problem, inputs: Inputs) -> Prepared:
        geometry = Geometry.of(problem)
        strides = tuple(strides_of(t) for t in inputs[:5] if t is not None)
        table = None
        if geometry.table:
            table = torch.tensor(geometry.table, dtype=torch.int32, device=problem.device)
        return cls(problem, geometry, strides, vector_of(strides, problem.dtype.itemsize), table)

    @property
    def scale(self) -> float:
        """The factor of the scores, times log2(e)."""
        return self.problem.scale * LOG2E.value

    def window_arguments(self) -> tuple[int, ...]:
        return self.geometry.lengths + self.geometry.scalars

    def stride_arguments(self, count: int = 3) -> tuple[int, ...]:
        """The strides of the first `count` of query, key and value."""
        return tuple(s for each in self.strides[:count] for s in token_strides(each, self.vector))

    def additional_strides(self) -> tuple[int, ...]:
        return tuple(s // self.vector for each in self.strides[3:] for s in each) or (0,) * 6

    def sizes(self) -> tuple[int, ...]:
        d, dv = self.problem.head_dim, self.problem.value_dim
        return d, dv, padded(d), padded(dv)

    def layout(self, tile: Tile, box_tile: Tile) -> tuple[Any, ...]:
        """Tiles, rank, vector and whether offsets are wide: constexprs in the kernels' order."""
        contiguous = (1, *_contiguous_strides(self.problem), 1)
        wide = is_wide(self.problem, (*self.strides[:3], contiguous), (tile, box_tile))
        return (*lead(tile, 1), *lead(box_tile, 1), self.problem.rank, self.vector, wide)


def aligned(inputs: Inputs) -> bool:
    """Whether every input starts at a multiple of 16 bytes, as all that torch allocates does."""
    addresses = 0
    for tensor in inputs:
        if tensor is not None:
            addresses |= tensor.data_ptr()
    return addresses & 15 == 0


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's GPU the current one."""
    device = tensor.device
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def options_of(config: TileConfig) -> dict[str, int]:
    """The tiling's launch options. Multiply-adds are fused: the newest Triton asks to be told."""
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}


def _contiguous_strides(problem: Problem) -> list[int]:
    step = problem.heads * max(problem.head_dim, problem.value_dim)
    return [step * prod(problem.lengths[i + 1 :]) for i in range(problem.rank)]


def _scalars(neighborhood: Neighborhood) -> tuple[int, ...]:
    axes = neighborhood.axes
    windows = [a.window for a in axes if a.window is not None]
    return (
        *lead(windows, 1),
        *lead([a.stride for a in axes], 1),
        *lead([a.dilation for a in axes], 1),
        *lead([mode(a) for a in axes], SHIFT),
    )
