"""Maps of different sizes in one launch each way: the kernels of equal maps, with a table of where each map is.

Tilings are those of the problem's `typical` one, so that new sizes compile nothing; the table is made on the host, once
for the same sizes. Where all windows are the same and shift with every query, tiles may be of classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from vicinal.backends.gpu.arguments import axes_of, in_vectors, precision_of
from vicinal.backends.gpu.devices import chains, current
from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.gpu.kernels.memory import InputStrides
from vicinal.backends.gpu.kernels.window import Flags
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.gpu.run import Run, run_of
from vicinal.backends.gpu.strides import contiguous_like, dense, rows_last, strides_of, vector_of
from vicinal.backends.gpu.tables import in_use, table_of
from vicinal.backends.triton.classes import Starts, classes_of_maps, maps_may_have_classes, starts_of_maps, turns_of
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.estimate import Kernel, estimate
from vicinal.backends.triton.gradients import delta_launch
from vicinal.backends.triton.kernels.backward import key_value_gradient_kernel, query_gradient_kernel
from vicinal.backends.triton.kernels.classes import (
    Alike,
    forward_of_classes_kernel,
    key_value_gradient_of_classes_kernel,
    query_gradient_of_classes_kernel,
)
from vicinal.backends.triton.kernels.forward import forward_kernel
from vicinal.backends.triton.kernels.softmax import LOG2E
from vicinal.backends.triton.launch import launch_options
from vicinal.backends.triton.shortlist import of_classes_sizes, shortlist
from vicinal.backends.triton.tilings import SHAPES, candidates, candidates_of_classes, fits
from vicinal.caching import Cache
from vicinal.geometry.maps import Maps
from vicinal.geometry.unfold import tile_count
from vicinal.geometry.walks import walks
from vicinal.geometry.window import SHIFT, mode
from vicinal.problem import Inputs, PackedProblem, Problem, Upstream, Wanted, lse_dtype

_launches: Cache[Launch] = Cache(entries=1024)
UNLIKE = Alike(False, False)  # tokens of packed maps: their strides are computed for each map


class Work(NamedTuple):
    """What a launch runs.

    Attributes:
        programs: of its grid.
        numbers: come after those that all kernels take.
        rest: come before the last.
    """

    kernel: Any
    programs: int
    tiling: Tiling
    numbers: list[Any]
    rest: list[Any]


@dataclass(frozen=True)
class Prepared:
    """What the launches of a problem share; `vector` and `strides` are the inputs'."""

    problem: PackedProblem
    strides: tuple[tuple[int, ...], ...]
    vector: int

    @classmethod
    def of(cls, problem: PackedProblem, inputs: Inputs) -> Prepared:
        strides = tuple(strides_of(t[None]) for t in inputs[:3] if t is not None)
        return cls(problem, strides, vector_of(strides, problem.typical.dtype.itemsize))

    def table(self, tiling: Tiling) -> tuple[Tensor, int]:
        """For `map_of`, and how many programs a head has."""
        maps, device = self.problem.maps, self.problem.typical.device
        counts = _counts(maps, tiling.tile)
        table = table_of(("triton maps", maps, tiling.tile), device, lambda: _rows(maps, counts))
        in_use(table)
        return table, sum(counts)

    def launch(self, run: Run, work: Work, *tensors: Tensor | None) -> None:
        """Launch a kernel; prepared once for the same maps and the same tensors that are there."""
        there = tuple([t is not None for t in tensors])
        key = (self, work.kernel, work.tiling, *work.rest, there, precision_of(self.problem.typical.dtype))
        run.launch(_launches.get(key, lambda: self._launch(work)), *tensors)

    def starts(self, tiling: Tiling, kernel: Kernel) -> Starts:
        """What the scores of a tiling of classes start from."""
        typical = self.problem.typical
        return starts_of_maps(typical.neighborhood, tiling, kernel, typical.device)

    def _launch(self, work: Work) -> Launch:
        typical, tiling = self.problem.typical, work.tiling
        axes = [axis for n in self.problem.maps.neighborhoods for axis in n.axes]
        chained, inverse = chains(typical.device), work.kernel is key_value_gradient_kernel
        flags = Flags(
            strided=any(a.stride > 1 for a in axes),
            dilated=any(a.dilation > 1 for a in axes),
            moded=any(mode(a) != SHIFT for a in axes),
            wide=max(s for each in self.strides for s in each) * self.problem.maps.total >= 2**31 - 512,
            checked=not tiling.of_classes and _may_pass_end(self.problem.maps, tiling, inverse),
            chained=chained,
            packed=True,
        )
        arguments = (
            typical.scale * LOG2E.value,
            typical.heads,
            typical.group_size,
            *work.numbers,
            axes_of(typical.neighborhoods[0], typical.lengths),
            InputStrides(*(in_vectors(each, self.vector) for each in self.strides)),
            typical.head_dim,
            typical.value_dim,
            tiling.tile,
            tiling.step,
            *((tiling.warps,) if tiling.of_classes else ()),
            self.vector,
            flags,
            *work.rest,
            precision_of(typical.dtype),
        )
        options = launch_options(tiling, typical.device, chained)
        return Launch(work.kernel, (work.programs, 1, 1), arguments, options)


def forward(problem: PackedProblem, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output `[total, H, Dv]` and log-sum-exp `[total, H]`."""
    query, key, value = read = [rows_last(t) for t in inputs[:3] if t is not None]
    typical, heads = problem.typical, problem.typical.heads
    output = query.new_empty((*query.shape[:-1], typical.value_dim))
    lse = query.new_empty(query.shape[:-1], dtype=lse_dtype(typical.dtype))
    prepared = Prepared.of(problem, Inputs(*read))
    tiling, run = _tiling(problem, "forward"), run_of(read)
    walked: tuple[Tensor | None, ...]
    with current(typical.device):
        table, programs = prepared.table(tiling)
        if tiling.of_classes:
            starts = prepared.starts(tiling, "forward")
            turns = turns_of(programs * heads, heads, starts.classes)
            numbers = [0, programs, heads, turns, starts.classes]
            rest = [True, typical.group_size > 1, UNLIKE, False, False]
            work = Work(forward_of_classes_kernel, programs * -(-heads // turns), tiling, numbers, rest)
            walked = None, None, starts(run, None, query), None, None, table
        else:
            work = Work(forward_kernel, programs * heads, tiling, [0, programs, 0], [typical.scale <= 0])
            walked = *(None,) * 5, table, None
        prepared.launch(run, work, query, key, value, *walked, output, lse)
    return output, lse


def backward(problem: PackedProblem, inputs: Inputs, upstream: Upstream, wanted: Wanted) -> Inputs:
    """The gradients that are wanted of query, key and value."""
    query, key, value = read = [rows_last(t) for t in inputs[:3] if t is not None]
    output, lse, grad_output, grad_lse = (None if t is None else dense(t) for t in upstream)
    assert output is not None
    assert lse is not None
    assert grad_output is not None
    typical, prepared = problem.typical, Prepared.of(problem, Inputs(*read))
    grads = [contiguous_like(t) if wants else None for t, wants in zip(read, wanted)]
    run = run_of((*read, output, lse, grad_output, grad_lse))
    delta = contiguous_like(lse) if wanted.query or wanted.key else None
    tensors: tuple[Tensor | None, ...]
    with current(typical.device):
        if wanted.query:
            tiling = _tiling(problem, "query")
            table, programs = prepared.table(tiling)
            numbers: list[Any] = [0, programs, 0]
            programs *= typical.heads
            above = output, lse, grad_output, grad_lse, delta, grads[0]
            if tiling.of_classes:
                starts = prepared.starts(tiling, "query")
                numbers.append(starts.classes)
                rest = [True, typical.group_size > 1, UNLIKE, 1]
                work = Work(query_gradient_of_classes_kernel, programs, tiling, numbers, rest)
                tensors = None, None, starts(run, None, query), None, table, *above, None
            else:
                work = Work(query_gradient_kernel, programs, tiling, numbers, [])
                tensors = *(None,) * 5, table, None, *above
            prepared.launch(run, work, query, key, value, *tensors)
        elif wanted.key:
            delta_of = delta_launch(lse.numel(), typical.value_dim, chains(typical.device))
            run.launch(delta_of, output, grad_output, grad_lse, delta)
        if wanted.key or wanted.value:
            tiling, grouped = _tiling(problem, "key_value"), typical.group_size > 1
            table, programs = prepared.table(tiling)
            numbers = [programs]
            programs *= typical.kv_heads
            sums = lse, grad_output, delta if wanted.key else None, *grads[1:]
            if tiling.of_classes:
                starts = prepared.starts(tiling, "key_value")
                numbers.append(starts.classes)
                rest = [True, grouped, UNLIKE]
                work = Work(key_value_gradient_of_classes_kernel, programs, tiling, numbers, rest)
                tensors = starts(run, None, query), None, None, table, *sums
            else:
                numbers.append(0)
                work = Work(key_value_gradient_kernel, programs, tiling, numbers, [grouped, False])
                tensors = None, None, None, table, None, *sums
            prepared.launch(run, work, query, key, value, *tensors)
    return Inputs(*grads)  # type: ignore[arg-type]


def _tiling(problem: PackedProblem, kernel: Kernel) -> Tiling:
    return _cheapest(problem.typical, kernel, maps_may_have_classes(problem.maps, problem.typical))


@lru_cache(maxsize=256)
def _cheapest(typical: Problem, kernel: Kernel, classes: bool) -> Tiling:
    """Of those for boxes, and of classes where maps may have them: they have no dilation groups in common."""
    few = shortlist(typical, kernel, gpu_of(typical.device))
    sizes = list(dict.fromkeys(size._replace(unfolded=False) for size in few))
    listed = [*candidates(typical, kernel, sizes, SHAPES)]
    if classes and (kernel != "query" or max(typical.head_dim, typical.value_dim) <= 32):  # else not timed on maps
        own, inverse = of_classes_sizes(typical, kernel), kernel == "key_value"
        found = candidates_of_classes(typical, kernel, own, SHAPES)
        listed += [t for t in found if classes_of_maps(typical.neighborhood, t, inverse) is not None]
    return min(listed, key=lambda t: (not fits(typical, kernel, t), estimate(typical, kernel, t).cycles))


@lru_cache(maxsize=1024)
def _may_pass_end(maps: Maps, tiling: Tiling, inverse: bool) -> bool:
    """Whether tiles laid over the box of some map may pass the end of an axis."""
    return any(
        walks(axis, length, inverse).may_pass_end(tile, step)
        for own, n in maps.alike
        for axis, length, tile, step in zip(n.axes, own, tiling.tile, tiling.step)
    )


@lru_cache(maxsize=1024)
def _counts(maps: Maps, tile: tuple[int, ...]) -> tuple[int, ...]:
    """Tiles of every map."""
    return tuple(
        tile_count(n, own, tile, None) if 0 not in own else 0 for own, n in zip(maps.lengths, maps.neighborhoods)
    )


def _rows(maps: Maps, counts: tuple[int, ...]) -> list[int]:
    """The table of `vicinal.backends.gpu.kernels.boxes.map_of`."""
    rows: list[int] = []
    for start, own, n, count in zip(maps.starts, maps.lengths, maps.neighborhoods, counts):
        rules = [number for values in axes_of(n, own)[:5] for number in values] if count else []
        for tile in range(count):
            rows += [start, tile, *rules]
    return rows
