"""Launch preparation for `vicinal.backends.triton`: a `Problem`, a tiling and the inputs' strides -> kernel arguments.

Everything here is computed once per problem and cached by the backend: a call only appends tensors to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from math import ceil, gcd, prod
from typing import Any

import torch
import triton
from torch import Tensor

from vicinal.backends.gpu.kernel_cache import settle_keys
from vicinal.backends.gpu.kernels import memory as kernels
from vicinal.backends.gpu.kernels.window import Axes, Flags
from vicinal.backends.triton.kernels.forward import forward_kernel
from vicinal.backends.triton.kernels.softmax import LOG2E
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.tiles import alike, key_interval, query_interval, tiles
from vicinal.geometry.unfold import beside, parts, tile_count
from vicinal.geometry.window import SHIFT, mode
from vicinal.problem import Inputs, Problem, lse_dtype
from vicinal.tuning.config import TileConfig

Tile = tuple[int, ...]
Strides = tuple[tuple[int, ...], ...]


@dataclass
class Launch:
    """A kernel with all its arguments but the tensors, which come first.

    The first call compiles (or finds) the kernel through Triton; later ones go straight to the compiled one, which
    holds as long as every pointer is 16-byte aligned, as in the call that compiled it.

    Integers in tuples are never specialised on; others are, unless the kernel says otherwise.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, int]
    _run: Callable[..., None] | None = field(default=None, repr=False)
    _plain: tuple[Any, ...] = field(init=False, repr=False)  # reading a named tuple takes a launch 5 times as long

    def __post_init__(self) -> None:
        self._plain = _plain(self.arguments)

    def __call__(self, tensors: Sequence[Tensor | None], aligned: bool) -> None:
        if self._run is not None and aligned:
            self._run(*tensors, *self._plain)
            return
        if not isinstance(self.kernel, triton.JITFunction):  # it is interpreted
            self.kernel[self.grid](*tensors, *self.arguments, **self.options)
            return
        settle_keys()
        run = self.compile(tensors)[self.grid]
        run(*tensors, *self._plain)
        if aligned:
            self._run = run

    def compile(self, tensors: Sequence[Any]) -> Any:
        """The compiled kernel, for tensors of these dtypes and alignments.

        Triton specialises on integers in tuples, whatever `do_not_specialize` says: so it gets to see others of the
        same width, of which there is nothing special.
        """
        parameters = self.kernel.params[len(tensors) :]
        arguments = [a if p.is_constexpr else _unspecial(a) for p, a in zip(parameters, self.arguments)]
        return self.kernel.warmup(*tensors, *arguments, grid=self.grid, **self.options)


class Forward:
    """The forward pass of one problem, tiling and set of strides."""

    def __init__(self, prepared: Prepared, config: TileConfig, copies: bool) -> None:
        """`copies`: the inputs need copying before the kernels can read them (`readable`)."""
        problem = prepared.problem
        self._shape = (problem.batch, *problem.lengths, problem.heads, problem.value_dim)
        self._lse_dtype = lse_dtype(problem.dtype)
        self._empty = problem.batch == 0
        self._copies = copies
        programs = tiles_of(problem, config)
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
                *prepared.arguments(config.unfolded),
                config.query_tile,
                config.key_tile,
                prepared.vector,
                prepared.flags(config),
                problem.scale <= 0,
                precision_of(problem.dtype),
            ),
            options_of(config, prepared.chained),
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


def tiles_of(problem: Problem, config: TileConfig) -> int:
    """How many tiles one head has, the most of any head's neighborhood."""
    each = set(problem.neighborhoods)
    return max(tile_count(n, problem.lengths, config.query_tile, config.unfolded) for n in each)


def may_pass_end(problem: Problem, config: TileConfig, inverse: bool = False) -> bool:
    """Whether the tiles laid over some box may pass the end of an axis: then they need bounds checks.

    Boxes of keys for tiles of queries; if `inverse`, boxes of queries for tiles of keys.
    """
    interval = query_interval if inverse else key_interval
    seen = [part for n in set(problem.neighborhoods) for part in parts(n, problem.lengths, config.unfolded)]
    for part in seen:
        for axis, length, size, step in zip(part.neighborhood.axes, part.lengths, config.query_tile, config.key_tile):
            for kind in alike(axis, length):
                for own in tiles(kind.length, size):
                    start, stop = interval(axis, kind.length, own)
                    if ceil((stop - start) / step) * step > kind.length:
                        return True
    return False


def vector_of(strides: Strides, itemsize: int) -> int:
    """The power of two, at most 16 bytes of elements, that divides every stride."""
    return gcd(16 // itemsize, *(s for each in strides for s in each))


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """Strides of all dimensions but the last; 0 where the size is 1, since any stride means the same there."""
    return tuple(s if n > 1 else 0 for s, n in zip(tensor.stride()[:-1], tensor.shape[:-1]))


def in_vectors(strides: tuple[int, ...], vector: int, unfolded: int | None = None) -> kernels.Strides:
    """Strides of `[B, *X, H]` in units of `vector`."""
    batch, *tokens, head = (s // vector for s in strides)
    return kernels.Strides(batch, _seen(tuple(tokens), unfolded), head)


def is_wide(problem: Problem, strides: Strides, config: TileConfig) -> bool:
    """Whether offsets within a tile may need more than 31 bits."""
    most = 0
    for neighborhood in problem.neighborhoods:
        dilations = axes_of(neighborhood, problem.lengths, config.unfolded).dilations
        for tile in (config.query_tile, config.key_tile):
            for each in strides:
                spatial = _seen(each[1:-1], config.unfolded)
                most = max(most, sum((t - 1) * d * s for t, d, s in zip(tile, dilations, spatial)))
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


def precision_of(dtype: torch.dtype) -> str:
    """How matrices of `dtype` are multiplied: float32 in TF32 where torch's own setting allows it, else as itself.

    The latter is three TF32 products on NVIDIA ("tf32x3"), float32 multiply-adds elsewhere.
    """
    if dtype != torch.float32 or torch.version.hip:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@dataclass(frozen=True)
class Prepared:
    """The parts of a launch that several kernels of one problem share."""

    problem: Problem
    strides: Strides  # query, key, value, then additional keys and values if any
    vector: int
    table: Tensor | None  # windows, strides, dilations, modes of each head, where heads differ: `[H, 4, rank]`

    @classmethod
    def of(cls, problem: Problem, inputs: Inputs) -> Prepared:
        strides = tuple(strides_of(t) for t in inputs[:5] if t is not None)
        table = None
        if problem.per_head:
            rows = [axes_of(n, problem.lengths)[1:] for n in problem.neighborhoods]
            table = torch.tensor(rows, dtype=torch.int32, device=problem.device)
        return cls(problem, strides, vector_of(strides, problem.dtype.itemsize), table)

    @property
    def chained(self) -> bool:
        """Whether kernels are launched before the one ahead has ended."""
        return chains(self.problem.device)

    @property
    def scale(self) -> float:
        """The factor of the scores, times log2(e)."""
        return self.problem.scale * LOG2E.value

    def arguments(self, unfolded: int | None = None) -> tuple[Any, ...]:
        """Axes (of the first head when heads differ), strides, and the sizes of keys and values."""
        problem = self.problem
        own = [in_vectors(each, self.vector, unfolded) for each in self.strides[:3]]
        extra = [in_vectors(each, self.vector) for each in self.strides[3:]]
        axes = axes_of(problem.neighborhoods[0], problem.lengths, unfolded)
        return axes, kernels.InputStrides(*own, *extra), problem.head_dim, problem.value_dim

    def flags(self, config: TileConfig, inverse: bool = False) -> Flags:
        """What to compile a kernel of this tiling for; `inverse`: see `may_pass_end`."""
        problem = self.problem
        axes = [axis for n in problem.neighborhoods for axis in n.axes]
        contiguous = (1, *_contiguous_strides(problem), 1)
        return Flags(
            strided=any(a.stride > 1 for a in axes),
            dilated=any(a.dilation > 1 for a in axes),
            moded=any(mode(a) != SHIFT for a in axes),
            wide=is_wide(problem, (*self.strides[:3], contiguous), config),
            checked=may_pass_end(problem, config, inverse),
            chained=self.chained,
            unfolded=kernel_axis(config.unfolded),
        )


def axes_of(neighborhood: Neighborhood, lengths: tuple[int, ...], unfolded: int | None = None) -> Axes:
    """A neighborhood as kernels take it."""
    axes = neighborhood.axes
    return Axes(
        _seen(lengths, unfolded, 1),
        _seen(tuple(a.window for a in axes), unfolded, 1),
        _seen(tuple(a.stride for a in axes), unfolded, 1),
        _seen(tuple(a.dilation for a in axes), unfolded, 1),
        _seen(tuple(mode(a) for a in axes), unfolded, SHIFT),
    )


def kernel_axis(unfolded: int | None) -> int:
    """`Flags.unfolded`: the kernels' axis of the dilation groups of axis `unfolded`."""
    return -1 if unfolded is None else unfolded + 1


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


@cache
def chains(device: torch.device) -> bool:
    """Whether the GPU launches a kernel before the one ahead has ended, where both agree: NVIDIA's, from Hopper on."""
    if device.type != "cuda" or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def options_of(config: TileConfig, chained: bool = False) -> dict[str, int]:
    """The tiling's launch options. Multiply-adds are fused: the newest Triton asks to be told.

    `chained`: the kernel calls `await_previous` before it touches memory.
    """
    options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
    return options | {"launch_pdl": True} if chained else options


def _seen(values: tuple[Any, ...], unfolded: int | None, of_groups: int | None = None) -> tuple[Any, ...]:
    """One value per axis of the kernel: groups side by side have their own, or that of the axis they are from."""
    if unfolded is None:
        return values
    return beside(values, unfolded, values[unfolded] if of_groups is None else of_groups)


def _contiguous_strides(problem: Problem) -> list[int]:
    step = problem.heads * max(problem.head_dim, problem.value_dim)
    return [step * prod(problem.lengths[i + 1 :]) for i in range(problem.rank)]


def _unspecial(argument: Any) -> Any:
    """The same argument but for integers in tuples: of the same width, not 1, not divisible by anything but 1."""
    if not isinstance(argument, tuple):
        return argument
    values = [a | 3 if isinstance(a, int) else _unspecial(a) for a in argument]
    return argument._make(values) if hasattr(argument, "_make") else tuple(values)


def _plain(argument: Any) -> Any:
    """The same argument with plain tuples for named ones."""
    return tuple(_plain(a) for a in argument) if isinstance(argument, tuple) else argument
