"""Launch preparation for `vicinal.backends.triton`: a `Problem`, a tiling, the inputs' strides -> kernel arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vicinal.backends.gpu.arguments import axes_of, in_vectors, kernel_axis, seen
from vicinal.backends.gpu.devices import chains
from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.gpu.kernels.memory import InputStrides
from vicinal.backends.gpu.kernels.window import Flags
from vicinal.backends.gpu.launch import options_of
from vicinal.backends.gpu.strides import contiguous_strides, dense, has_rows, rows_last, strides_of, vector_of
from vicinal.backends.gpu.tables import table_of
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.estimate import Kernel, padded, program_of
from vicinal.backends.triton.kernels.classes import Alike
from vicinal.backends.triton.kernels.softmax import LOG2E
from vicinal.caching import Cache
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.unfold import parts, tile_count
from vicinal.geometry.walks import walks
from vicinal.geometry.window import SHIFT, mode
from vicinal.problem import Inputs, Problem

MAX_EXTENT = 2**8  # tokens along an axis of a box that is walked in order


def tiles_of(problem: Problem, config: Tiling, inverse: bool = False) -> int:
    """How many tiles one head has, the most of any head's neighborhood: of queries, or of keys if `inverse`."""
    each, lengths = set(problem.neighborhoods), problem.key_lengths if inverse else problem.lengths
    return max(tile_count(n, lengths, config.query_tile, config.unfolded) for n in each)


def may_pass_end(problem: Problem, config: Tiling, inverse: bool = False) -> bool:
    """Whether the tiles laid over some box may pass the end of an axis: then they need bounds checks.

    Boxes of keys for tiles of queries; if `inverse`, boxes of queries for tiles of keys.
    """
    return any(
        walks(axis, length, inverse).may_pass_end(tile, step)
        for neighborhood in set(problem.neighborhoods)
        for part in parts(neighborhood, problem.lengths, config.unfolded)
        for axis, length, tile, step in zip(part.neighborhood.axes, part.lengths, config.tile, config.step)
    )


def readable(inputs: Inputs) -> Inputs:
    """The inputs as the kernels read them: in place, unless a last dimension is not contiguous."""
    q, k, v, ek, ev, rpb, key_mask, sizes = inputs
    return Inputs(
        rows_last(q),
        rows_last(k),
        rows_last(v),
        None if ek is None else rows_last(ek),
        None if ev is None else rows_last(ev),
        None if rpb is None else dense(rpb),
        None if key_mask is None else key_mask.contiguous().view(torch.uint8),
        None if sizes is None else sizes.to(torch.int32).contiguous(),
    )


def launch_options(config: Tiling, device: torch.device, chained: bool, most: int | None = None) -> dict[str, int]:
    """Of a kernel of this tiling; `most`: registers of a thread, where the tiling does not say."""
    options = options_of(config.warps, config.stages, chained)
    most = most if config.registers is None else config.registers
    if most is None or gpu_of(device).architecture.warp != 32:  # AMD's compiler takes no limit of registers
        return options
    return options | {"maxnreg": most}


@dataclass(frozen=True)
class Prepared:
    """The parts of a launch that several kernels of one problem share."""

    problem: Problem
    strides: tuple[tuple[int, ...], ...]  # query, key, value, then additional keys and values if any
    vector: int
    table: Tensor | None  # windows, strides, dilations, modes of each head, where heads differ: `[H, 4 * rank]`
    device: torch.device  # of such tables
    chained: bool  # whether kernels are launched before the one ahead has ended
    _arguments: dict[int | None, tuple[Any, ...]] = field(default_factory=dict, repr=False, compare=False)
    _flags: dict[tuple[Tiling, bool], Flags] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, problem: Problem, inputs: Inputs) -> Prepared:
        read = [t for t in inputs[:5] if t is not None]
        assert all(has_rows(t) and not t.is_neg() for t in read)
        strides = tuple(strides_of(t) for t in read)
        device = inputs.query.device if inputs.query.is_meta else problem.device
        key = problem, strides, device, chains(problem.device)
        return _prepared.get(key, lambda: cls._made(*key))

    @classmethod
    def _made(
        cls, problem: Problem, strides: tuple[tuple[int, ...], ...], device: torch.device, chained: bool
    ) -> Prepared:
        table = None
        if problem.per_head:
            rows = [_table_row(n, problem.lengths) for n in problem.neighborhoods]
            table = table_of(("triton", problem.neighborhoods, problem.lengths), device, lambda: rows)
        return cls(problem, strides, vector_of(strides, problem.dtype.itemsize), table, device, chained)

    @property
    def alike(self) -> Alike:
        """Which tokens lie in memory as others do."""
        problem, (query, key, value) = self.problem, self.strides[:3]
        shape = (1, *problem.lengths, problem.heads, problem.value_dim)
        queries = problem.head_dim == problem.value_dim and query[1:-1] == contiguous_strides(shape)[1:-2]
        return Alike(key[1:-1] == value[1:-1], queries)

    @property
    def scale(self) -> float:
        """The factor of the scores, times log2(e)."""
        return self.problem.scale * LOG2E.value

    def arguments(self, unfolded: int | None = None) -> tuple[Any, ...]:
        """Axes (of the first head when heads differ), strides, and the sizes of keys and values."""
        found = self._arguments.get(unfolded)
        if found is None:
            found = self._arguments[unfolded] = self._seen(unfolded)
        return found

    def _seen(self, unfolded: int | None) -> tuple[Any, ...]:
        problem = self.problem
        own = [in_vectors(each, self.vector, unfolded) for each in self.strides[:3]]
        extra = [in_vectors(each, self.vector) for each in self.strides[3:]]
        axes = axes_of(problem.neighborhoods[0], problem.lengths, unfolded, problem.neighborhoods)
        return axes, InputStrides(*own, *extra), problem.head_dim, problem.value_dim

    def options(self, config: Tiling, kernel: Kernel | None = None) -> dict[str, int]:
        """Launch options of a kernel of this tiling; `kernel`: which one, where its registers may be bounded."""
        most = None if kernel is None or config.registers is not None else self._most_registers(config, kernel)
        return launch_options(config, self.problem.device, self.chained, most)

    def _most_registers(self, config: Tiling, kernel: Kernel) -> int | None:
        """Under a mask what lets in as many programs as without: steps whose keys are partly there hold more, a little.

        None where a thread may have all that there are, and where other features hold much more.
        """
        problem = self.problem
        more = problem.has_rpb or problem.has_window_sizes or problem.per_head or problem.goes_around
        architecture, one = gpu_of(problem.device).architecture, program_of(problem, kernel, config)
        if not problem.has_key_mask or more or problem.dtype.itemsize > 2:
            # Unless told that it may have all, ptxas 12.8 gives some of these 32, and spills up to 11 kB a thread.
            uneven = kernel == "key_value" and padded(problem.head_dim) != padded(problem.value_dim)
            return architecture.thread_registers if uneven else None
        threads = architecture.warp * config.warps
        at_once = min(architecture.registers / (threads * one.registers), architecture.shared / max(one.shared, 1))
        at_once = min(at_once, architecture.programs, architecture.threads / threads)
        most = architecture.registers // (threads * max(1, int(at_once))) // 8 * 8
        return most if most < architecture.thread_registers else None

    def flags(self, config: Tiling, inverse: bool = False) -> Flags:
        """What to compile a kernel of this tiling for; `inverse`: see `may_pass_end`."""
        found = self._flags.get((config, inverse))
        if found is None:
            found = self._flags[config, inverse] = self._flags_of(config, inverse)
        return found

    def _flags_of(self, config: Tiling, inverse: bool) -> Flags:
        problem, (strided, dilated, moded) = self.problem, self._features
        circles, turns = _circles(problem, config)
        return Flags(
            strided=strided,
            dilated=dilated,
            moded=moded,
            wide=self._is_wide(config),
            checked=not config.of_classes and may_pass_end(problem, config, inverse),
            chained=self.chained,
            circles=circles,
            turns=turns,
            unfolded=kernel_axis(config.unfolded),
        )

    def _is_wide(self, config: Tiling) -> bool:
        """Whether offsets within a tile may need more than 31 bits."""
        strides = [each[1:-1] for each in (*self.strides[:3], self._contiguous)]
        farthest = tuple([max(each) for each in zip(*strides)])
        if self._offset(farthest, config) < 2**31:  # nearly always so
            return False
        return max(self._offset(each, config) for each in strides) >= 2**31

    def _offset(self, strides: tuple[int, ...], config: Tiling) -> int:
        """Elements from the first token of a tile to the last, of these strides of the axes, and a row's."""
        problem, spatial, most = self.problem, seen(strides, config.unfolded), 0
        every = [self.arguments(config.unfolded)[0]]
        if problem.per_head:
            every = [axes_of(own, problem.lengths, config.unfolded) for own in problem.neighborhoods]
        walked = [min(MAX_EXTENT, n) for n in problem.lengths] if config.of_classes else config.step
        for axes in every:
            for tile in (config.tile, walked):
                most = max(most, sum([(t - 1) * d * s for t, d, s in zip(tile, axes.dilations, spatial)]))
        if problem.goes_around:  # what is beyond an axis is read from its start
            most = max(most, sum([n * s for n, s in zip(problem.lengths, spatial)]))
        return most + 512

    @cached_property
    def _features(self) -> tuple[bool, bool, bool]:
        """Whether some axis is strided, dilated, or has windows that do not shift."""
        axes = [axis for n in self.problem.neighborhoods for axis in n.axes]
        strided, dilated = max(a.stride for a in axes) > 1, max(a.dilation for a in axes) > 1
        return strided, dilated, any(mode(a) != SHIFT for a in axes)

    @cached_property
    def _contiguous(self) -> tuple[int, ...]:
        """Strides of results."""
        problem = self.problem
        shape = (1, *problem.lengths, problem.heads, max(problem.head_dim, problem.value_dim))
        return contiguous_strides(shape)[:-1]


_prepared: Cache[Prepared] = Cache(entries=256)  # both passes of a problem share theirs


def _circles(problem: Problem, config: Tiling) -> tuple[int, int]:
    """`Flags.circles` and `Flags.turns`: at most 2, since what is walked ends a length beyond the axis."""
    circles = turns = 0
    for i, (length, step) in enumerate(zip(problem.lengths, config.step)):
        axes = [n.axes[i] for n in problem.neighborhoods]
        if axes[0].span is not None and axes[0].span.circle:
            circles |= 1 << i
            if config.of_classes:  # a box at a time
                step = config.tile[i] + max(a.window or length for a in axes)
            turns = max(turns, *(min(2, (length - 1 + (step - 1) * a.dilation) // length) for a in axes))
    return circles, turns


def _table_row(neighborhood: Neighborhood, lengths: tuple[int, ...]) -> list[int]:
    return [number for each in axes_of(neighborhood, lengths)[1:5] for number in each]
