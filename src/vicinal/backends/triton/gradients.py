"""The gradients of queries, keys and values: parts of `vicinal.backends.triton.backward`, with launches and scratch."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vicinal.backends.gpu.answered import Answered
from vicinal.backends.gpu.arguments import precision_of
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.run import Run
from vicinal.backends.gpu.strides import contiguous_like, empty
from vicinal.backends.triton.bias_gradient import SumOfClasses, entries_at_once
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.kernels.backward import (
    delta_kernel,
    gradients_kernel,
    key_value_gradient_kernel,
    query_gradient_kernel,
)
from vicinal.backends.triton.kernels.classes import (
    key_value_gradient_of_classes_kernel,
    query_gradient_of_classes_kernel,
)
from vicinal.backends.triton.launch import Prepared, tiles_of
from vicinal.backends.triton.parts import Call
from vicinal.backends.triton.walking import OfClasses, boxes_of, classes_of, walk_of
from vicinal.problem import Inputs, Problem, Wanted

ROWS = 32  # per program, where delta is computed alone


class Delta:
    """Delta by a launch of its own, where the gradient of queries is not wanted."""

    def __init__(self, prepared: Prepared) -> None:
        problem = prepared.problem
        rows = problem.batch * prod(problem.lengths) * problem.heads
        self._launch = delta_launch(rows, problem.value_dim, prepared.chained)

    def __call__(self, run: Run, call: Call) -> dict[str, Tensor | None]:
        output, _, grad_output, grad_lse = call.upstream
        run.launch(self._launch, output, grad_output, grad_lse, call.delta)
        return {}


def delta_launch(rows: int, value_dim: int, chained: bool) -> Launch:
    """Of so many queries of all heads and batch entries."""
    grid, arguments = (-(-rows // ROWS), 1, 1), (rows, value_dim, ROWS, chained)
    return Launch(delta_kernel, grid, arguments, options_of(4, 2, chained))


class QueryGradient:
    """The gradient of queries, and delta."""

    def __init__(self, prepared: Prepared, config: Tiling) -> None:
        problem = prepared.problem
        self._walk = boxes_of(prepared, config)
        programs, count = _query_programs(prepared, config)
        numbers = prepared.scale, problem.heads, problem.group_size, problem.additional, programs, self._walk.room
        arguments = (*numbers, *_tiled(prepared, config), prepared.flags(config), precision_of(problem.dtype))
        self._launch = Launch(query_gradient_kernel, (count, 1, 1), arguments, prepared.options(config, "query"))

    def __call__(self, run: Run, call: Call) -> dict[str, Tensor | None]:
        inputs, (output, lse, grad_output, grad_lse), delta = call
        grad_query = contiguous_like(inputs.query)
        walked = self._walk(run, inputs, inputs.key_mask)
        read = *inputs[:5], *walked, output, lse, grad_output, grad_lse
        run.launch(self._launch, *read, delta, grad_query)
        return {"query": grad_query}


class QueryGradientOfClasses:
    """The gradient of queries, and delta, where tiles are of classes; on the way the gradient of the bias table.

    That is summed up from the scores' gradients, which are written for some batch entries at a time.
    """

    def __init__(self, prepared: Prepared, config: Tiling, wanted: Wanted) -> None:
        problem = prepared.problem
        self._wants_query = wanted.query
        self._walk = classes_of(prepared, config, "query")
        classes = self._walk.starts.classes
        most = entries_at_once(problem, config, classes) if wanted.rpb else problem.batch
        each = [(first, min(most, problem.batch - first)) for first in range(0, problem.batch, most)]
        self._launches = [_query_of_classes(prepared, config, self._walk, *entries) for entries in each]
        self._sums = [SumOfClasses(prepared, config, classes, batch) for _, batch in each if wanted.rpb]

    def __call__(self, run: Run, call: Call) -> dict[str, Tensor | None]:
        inputs, (output, lse, grad_output, grad_lse), delta = call
        query, rpb = inputs.query, inputs.rpb
        grad_query = contiguous_like(query)
        starts, kept = self._walk(run, inputs, inputs.key_mask)
        tensors = *inputs[:5], starts, kept, None, output, lse, grad_output, grad_lse, delta, grad_query
        if not self._sums:
            run.launch(self._launches[0], *tensors, None)
            return {"query": grad_query}
        assert rpb is not None
        grad_scores = empty(query, (self._sums[0].count,))
        programs = [sums.programs for sums in self._sums]
        partial = empty(rpb, (sum(programs), *rpb.shape), torch.float32)
        for launch, sums, own in zip(self._launches, self._sums, partial.split(programs)):
            run.launch(launch, *tensors, grad_scores)
            sums(run, grad_scores, own)
        return {"query": grad_query if self._wants_query else None, "rpb": partial.sum(0).to(rpb.dtype)}


def _query_of_classes(prepared: Prepared, config: Tiling, walk: OfClasses, first: int, batch: int) -> Launch:
    """Of `batch` entries from `first` on."""
    problem, (starts, _) = prepared.problem, walk
    programs, _ = _query_programs(prepared, config)
    numbers = prepared.scale, problem.heads, problem.group_size, problem.additional, programs, first
    rest = starts.masks, problem.group_size > 1, prepared.alike, config.abreast, precision_of(problem.dtype)
    grid = batch // config.abreast * problem.heads * programs, 1, 1
    arguments = (*numbers, starts.classes, *_tiled(prepared, config), prepared.flags(config), *rest)
    return Launch(query_gradient_of_classes_kernel, grid, arguments, prepared.options(config, "query"))


class _Memory(NamedTuple):
    """For the gradients of keys and values, where they are wanted.

    Attributes:
        heads: 0: of key heads; else, of so many query heads in float32, where no program sums over those that share a
            key head: they have neighborhoods, and so tiles, of their own.
    """

    heads: int
    wants_key: bool
    wants_value: bool

    @classmethod
    def of(cls, problem: Problem, wanted: Wanted) -> _Memory:
        heads = problem.heads if problem.per_head and problem.group_size > 1 else 0
        return cls(heads, wanted.key, wanted.value)

    @property
    def per_query_head(self) -> bool:
        return self.heads > 0

    def new(self, inputs: Inputs) -> list[Tensor | None]:
        """For the gradients of key and of value."""
        given = inputs.key if self.wants_key else None, inputs.value if self.wants_value else None
        return [None if t is None else self._beside(t) if self.heads else contiguous_like(t) for t in given]

    def _beside(self, tensor: Tensor) -> Tensor:
        return empty(tensor, (*tensor.shape[:-2], self.heads, tensor.shape[-1]), torch.float32)

    def gradients(self, inputs: Inputs, written: list[Tensor | None]) -> dict[str, Tensor | None]:
        """Of what kernels have written there."""
        if self.heads:
            written = [_summed(t, like) for t, like in zip(written, (inputs.key, inputs.value))]
        return {"key": written[0], "value": written[1]}


def _summed(grad: Tensor | None, like: Tensor) -> Tensor | None:
    """Over the query heads of each key head."""
    return None if grad is None else grad.unflatten(-2, (like.shape[-2], -1)).sum(-2).to(like.dtype)


class KeyValueGradients:
    """The gradients of keys and of values: those that are wanted."""

    def __init__(self, prepared: Prepared, config: Tiling, wanted: Wanted) -> None:
        problem = prepared.problem
        self._memory = memory = _Memory.of(problem, wanted)
        self._walk = walk = walk_of(prepared, config, "key_value")
        self._answered = _answered(problem)
        programs, count = _key_programs(prepared, config, memory.per_query_head)
        numbers = prepared.scale, problem.heads, problem.group_size, programs
        tiled = *_tiled(prepared, config), prepared.flags(config, inverse=True)
        grouped, precision = problem.group_size > 1 and not memory.per_query_head, precision_of(problem.dtype)
        if isinstance(walk, OfClasses):
            starts, kernel = walk.starts, key_value_gradient_of_classes_kernel
            arguments = (*numbers, starts.classes, *tiled, starts.masks, grouped, prepared.alike, precision)
        else:
            kernel = key_value_gradient_kernel
            arguments = (*numbers, walk.room, *tiled, grouped, memory.per_query_head, precision)
        self._launch = Launch(kernel, (count, 1, 1), arguments, prepared.options(config, "key_value"))

    def __call__(self, run: Run, call: Call) -> dict[str, Tensor | None]:
        inputs, (_, lse, grad_output, _), delta = call
        grads = self._memory.new(inputs)
        states = None if self._answered is None else self._answered(run, lse)
        walk: tuple[Tensor | None, ...]
        if isinstance(self._walk, OfClasses):
            starts, kept = self._walk(run, inputs, states)
            walk = starts, inputs.key_mask, kept, None
        else:
            walk = self._walk(run, inputs, states)
        run.launch(self._launch, *inputs[:3], *walk, lse, grad_output, delta, *grads)
        return self._memory.gradients(inputs, grads)


class Gradients:
    """The gradients of queries, keys and values in one launch, and delta; tiles are boxes.

    Warps, stages and the axis unfolded are the same for both.
    """

    def __init__(self, prepared: Prepared, config: GradientTilings, wanted: Wanted) -> None:
        problem, query, key_value = prepared.problem, config.query, config.key_value
        self._memory = memory = _Memory.of(problem, wanted)
        self._walk, self._key_walk = boxes_of(prepared, query), boxes_of(prepared, key_value, inverse=True)
        self._answered = _answered(problem)
        programs, count = _query_programs(prepared, query)
        key_programs, key_count = _key_programs(prepared, key_value, memory.per_query_head)
        arguments = (
            prepared.scale,
            problem.heads,
            problem.group_size,
            problem.additional,
            programs,
            self._walk.room,
            key_programs,
            self._key_walk.room,
            key_count,
            *prepared.arguments(query.unfolded),
            query.query_tile,
            query.key_tile,
            key_value.query_tile,
            key_value.key_tile,
            prepared.vector,
            prepared.flags(query),
            prepared.flags(key_value, inverse=True),
            problem.group_size > 1 and not memory.per_query_head,
            memory.per_query_head,
            precision_of(problem.dtype),
        )
        self._launch = Launch(gradients_kernel, (key_count + count, 1, 1), arguments, prepared.options(query))

    def __call__(self, run: Run, call: Call) -> dict[str, Tensor | None]:
        inputs, (output, lse, grad_output, grad_lse), delta = call
        grad_query, grads = contiguous_like(inputs.query), self._memory.new(inputs)
        walk = self._walk(run, inputs, inputs.key_mask)
        *_, key_steps = self._key_walk(run, inputs, None if self._answered is None else self._answered(run, lse))
        above = output, lse, grad_output, grad_lse, delta
        run.launch(self._launch, *inputs[:5], *walk, key_steps, *above, grad_query, *grads)
        return {"query": grad_query, **self._memory.gradients(inputs, grads)}


def _answered(problem: Problem) -> Answered | None:
    """What says which queries count, to those that walk queries under a key mask."""
    return Answered.of(problem) if problem.has_key_mask else None


def _tiled(prepared: Prepared, config: Tiling) -> tuple[Any, ...]:
    """What both kernels take between numbers and flags."""
    own = (*prepared.arguments(config.unfolded), config.tile, config.step)
    return (*own, config.warps, prepared.vector) if config.of_classes else (*own, prepared.vector)


def _query_programs(prepared: Prepared, config: Tiling) -> tuple[int, int]:
    """Programs of one head, and of all."""
    programs = tiles_of(prepared.problem, config)
    return programs, prepared.problem.batch * prepared.problem.heads * programs


def _key_programs(prepared: Prepared, config: Tiling, per_query_head: bool) -> tuple[int, int]:
    """Likewise."""
    problem = prepared.problem
    programs = tiles_of(problem, config, inverse=True)
    return programs, problem.batch * (problem.heads if per_query_head else problem.kv_heads) * programs
