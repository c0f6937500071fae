"""The backward pass of `vicinal.backends.triton`: its launches, in order, and their scratch."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from vicinal.backends.gpu.answered import Answered
from vicinal.backends.gpu.arguments import precision_of
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.strides import aligned, contiguous_like
from vicinal.backends.gpu.tables import in_use
from vicinal.backends.triton.bias_gradient import BiasGradient, SumOfClasses, entries_at_once
from vicinal.backends.triton.classes import Kept, Starts
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.estimate import padded
from vicinal.backends.triton.kernels.additional import additional_gradient_kernel
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
from vicinal.backends.triton.launch import Prepared, like, tiles_of
from vicinal.backends.triton.steps import Steps
from vicinal.compiling import Job
from vicinal.problem import Inputs, Problem, Upstream, Wanted, lse_dtype

ENOUGH_PROGRAMS = 1024  # fill a GPU, where work is split to no other end
ROWS = 32  # per program, where delta is computed alone


class Backward:
    """The backward pass of one problem, tiling, set of strides, and set of gradients that are wanted.

    Delta, which all gradients but those of values need, is computed with the query's, or else by a launch of its own.
    """

    def __init__(self, prepared: Prepared, config: GradientTilings, wanted: Wanted) -> None:
        problem = prepared.problem
        # Heads with neighborhoods of their own have tiles of their own: no program can sum over a group of them.
        self._per_query_head = problem.per_head and problem.group_size > 1
        self._problem = problem
        self._table = prepared.table
        self._wanted = wanted
        wants_keys = wanted.key or wanted.value
        self._both = self._delta = self._key_value = self._additional = self._bias = None
        self._query: list[Launch] = []  # of some batch entries each
        self._sums: list[SumOfClasses] = []  # likewise
        self._query_starts = self._key_starts = self._query_kept = self._key_kept = None
        self._query_steps = self._key_steps = None
        if wanted.query and not config.query.of_classes:
            self._query_steps = Steps.of(prepared, config.query)
        if wants_keys and not config.key_value.of_classes:
            self._key_steps = Steps.of(prepared, config.key_value, inverse=True)
        if config.together and wanted.query and wants_keys:
            steps = self._query_steps, self._key_steps
            self._both = _gradients_launch(prepared, config, self._per_query_head, steps)
        elif config.query.of_classes and (wanted.query or wanted.rpb):
            starts = self._query_starts = Starts.of(prepared, config.query, "query")
            self._query_kept = Kept.of(prepared, config.query, starts.classes)
            most = problem.batch
            if wanted.rpb:  # from the scores' gradients, which the query's kernel writes
                most = entries_at_once(problem, config.query, starts.classes)
            for first in range(0, problem.batch, most):
                batch = min(most, problem.batch - first)
                self._query.append(_query_of_classes(prepared, config.query, starts, first, batch))
                if wanted.rpb:
                    self._sums.append(SumOfClasses(prepared, config.query, starts.classes, batch))
        elif wanted.query:
            self._query.append(_query_launch(prepared, config.query, self._query_steps))
        elif wanted.key or wanted.additional_keys or wanted.rpb:
            self._delta = _delta_launch(prepared)
        if wants_keys and self._both is None:
            own = config.key_value
            if own.of_classes:
                self._key_starts = Starts.of(prepared, own, "key_value")
                self._key_kept = Kept.of(prepared, own, self._key_starts.classes, inverse=True)
            self._key_value = _key_value_launch(prepared, own, self._per_query_head, self._key_starts, self._key_steps)
        self._answered = Answered.of(problem) if self._key_steps or self._key_kept else None
        if wanted.rpb and not self._sums:
            self._bias = BiasGradient(prepared)
        if wanted.additional_keys or wanted.additional_values:
            self._additional = _additional_launch(prepared)

    def __call__(self, inputs: Inputs, upstream: Upstream) -> Inputs:
        """All tensors of `upstream` contiguous."""
        assert all(t is None or t.is_contiguous() for t in upstream)
        ok = aligned((*inputs, *upstream))
        if self._table is not None:
            in_use(self._table)
        query, key, value, _, _, rpb, key_mask, sizes = inputs
        output, lse, grad_output, grad_lse = upstream
        grad_query = contiguous_like(query) if self._wanted.query or self._sums else None
        grad_key, grad_value = self._key_and_value(inputs)
        delta = None
        if self._wants_delta:
            delta = contiguous_like(lse)
        steps = key_steps = None
        if self._query_steps is not None and key_mask is not None:
            steps = self._query_steps(key_mask, self._table, ok)
        key_kept = None
        if self._answered is not None:
            states = self._answered(lse, ok)
            key_steps = None if self._key_steps is None else self._key_steps(states, self._table, ok)
            key_kept = None if self._key_kept is None else self._key_kept(states, ok)
        read = (output, lse, grad_output, grad_lse, delta, grad_query)
        grad_rpb, masks = None, (key_mask, sizes, self._table)
        if self._both is not None:
            self._both((*inputs[:6], *masks, steps, key_steps, *read, grad_key, grad_value), ok)
        elif self._query_starts is not None:
            kept = None if self._query_kept is None or key_mask is None else self._query_kept(key_mask, ok)
            given = (*inputs[:5], self._query_starts(rpb, query, ok), kept, None, *read)
            if self._sums:
                assert rpb is not None
                grad_rpb = self._query_and_bias(given, rpb, ok)
            else:
                self._query[0]((*given, None), ok)
        elif self._query:
            self._query[0]((*inputs[:6], *masks, steps, *read), ok)
        if self._delta is not None:
            self._delta((output, grad_output, grad_lse, delta), ok)
        if self._key_value is not None:
            rest = (lse, grad_output, delta, grad_key, grad_value)
            if self._key_starts is None:
                self._key_value((query, key, value, rpb, *masks, key_steps, *rest), ok)
            else:
                starts = self._key_starts(rpb, query, ok)
                self._key_value((query, key, value, starts, key_mask, key_kept, None, *rest), ok)
        if self._bias is not None:
            grad_rpb = self._bias(inputs, (lse, grad_output, delta), self._table, ok)
        if self._per_query_head:
            grad_key = None if grad_key is None else self._summed(grad_key, key)
            grad_value = None if grad_value is None else self._summed(grad_value, value)
        own = grad_query if self._wanted.query else None
        grads = Inputs(own, grad_key, grad_value, rpb=grad_rpb)  # type: ignore[arg-type]
        if self._additional is not None:
            extra_keys, extra_values = self._additional_gradients(self._additional, inputs, upstream, delta, ok)
            grads = grads._replace(additional_keys=extra_keys, additional_values=extra_values)
        return grads

    @property
    def _wants_delta(self) -> bool:
        """Whether something computes delta."""
        return self._both is not None or bool(self._query) or self._delta is not None

    def _query_and_bias(self, given: tuple[Tensor | None, ...], rpb: Tensor, ok: bool) -> Tensor:
        """Compute the gradient of queries, some batch entries after the other; that of the bias on the way."""
        query = given[0]
        assert query is not None
        grad_scores = query.new_empty(self._sums[0].count)
        partial = rpb.new_empty((sum(s.programs for s in self._sums), *rpb.shape), dtype=torch.float32)
        first = 0
        for launch, sums in zip(self._query, self._sums):
            launch((*given, grad_scores), ok)
            sums(grad_scores, partial[first : first + sums.programs], ok)
            first += sums.programs
        return partial.sum(0).to(rpb.dtype)

    def kernels(self, inputs: Inputs) -> list[Job]:
        """What compiles the kernels that a call launches; see `vicinal.backends.protocol.Backend.backward_kernels`."""
        query, key, value, extra_keys, extra_values, rpb, key_mask, sizes = map(like, inputs)
        sums = like(query, lse_dtype(self._problem.dtype))
        table, wanted = like(self._table), self._wanted
        own = torch.float32 if self._per_query_head else None
        dq, dk, dv = (like(t, d) if w else None for t, w, d in zip((query, key, value), wanted, (None, own, own)))
        dek, dev = (like(t, torch.float32) if w else None for t, w in zip((extra_keys, extra_values), wanted[3:5]))
        delta = sums if self._wants_delta else None
        given = query, key, value, extra_keys, extra_values
        both, lists = (self._query_steps, self._key_steps), (self._query_kept, self._key_kept)
        kept = [None if one is None else like(query, torch.int32) for one in lists]
        steps, key_steps = (None if listed is None else like(query, torch.int32) for listed in both)
        read = (query, sums, query, None, delta, like(query) if self._sums else dq)
        masks = rpb, key_mask, sizes, table
        own_query: tuple[Tensor | None, ...] = (*given, *masks, steps, *read)
        own_keys: tuple[Tensor | None, ...] = (*given[:3], *masks, key_steps)
        if self._query_starts is not None:
            starts = like(query, self._query_starts.dtype)
            own_query = (*given, starts, kept[0], None, *read, like(query) if self._sums else None)
        if self._key_starts is not None:
            own_keys = (*given[:3], like(query, self._key_starts.dtype), key_mask, kept[1], None)
        each = [
            (self._both, (*given, *masks, steps, key_steps, *read, dk, dv)),
            *((launch, own_query) for launch in self._query),
            (self._delta, (query, query, None, delta)),
            (self._key_value, (*own_keys, sums, query, delta, dk, dv)),
            (self._additional, (query, extra_keys, extra_values, sums, query, delta, dek, dev)),
        ]
        jobs: list[Job] = [partial(launch.compile, tensors) for launch, tensors in each if launch is not None]
        jobs += [s.kernel(rpb) for s in (self._query_starts, self._key_starts) if s is not None]
        jobs += [s.compiled() for s in self._sums]
        jobs += [listed.kernel(self._table) for listed in both if listed is not None]
        jobs += [one.kernel() for one in lists if one is not None]
        if self._answered is not None:
            jobs.append(self._answered.kernel())
        if self._bias is not None:
            stand_ins = Inputs(query, key, value, rpb=rpb, key_mask=key_mask, window_sizes=sizes)  # type: ignore[arg-type]
            jobs.append(self._bias.compiled(stand_ins, (sums, query, delta), table))
        return jobs

    def _key_and_value(self, inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
        """Memory for the gradients of key and value: of one entry per query head where no program sums over them."""
        query, key, value = inputs[:3]
        if not self._per_query_head:
            grad_key = contiguous_like(key) if self._wanted.key else None
            return grad_key, contiguous_like(value) if self._wanted.value else None
        rows = (*key.shape[:-2], query.shape[-2])
        grad_key = query.new_empty((*rows, key.shape[-1]), dtype=torch.float32) if self._wanted.key else None
        grad_value = query.new_empty((*rows, value.shape[-1]), dtype=torch.float32) if self._wanted.value else None
        return grad_key, grad_value

    def _summed(self, grad: Tensor, like: Tensor) -> Tensor:
        """Over the query heads of each key head."""
        return grad.unflatten(-2, (like.shape[-2], self._problem.group_size)).sum(-2).to(like.dtype)

    def _additional_gradients(
        self, launch: Launch, inputs: Inputs, upstream: Upstream, delta: Tensor | None, ok: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        query, extra_keys, extra_values = inputs.query, inputs.additional_keys, inputs.additional_values
        assert extra_keys is not None
        assert extra_values is not None
        wanted = (self._wanted.additional_keys, self._wanted.additional_values)
        partial = [
            query.new_empty((launch.grid[1], *t.shape), dtype=torch.float32) if wants else None
            for t, wants in zip((extra_keys, extra_values), wanted)
        ]
        launch((query, extra_keys, extra_values, upstream.lse, upstream.grad_output, delta, *partial), ok)
        grad_keys, grad_values = (None if t is None else t.sum(0).to(query.dtype) for t in partial)
        return grad_keys, grad_values


def _delta_launch(prepared: Prepared) -> Launch:
    problem = prepared.problem
    rows = problem.batch * prod(problem.lengths) * problem.heads
    arguments = (rows, problem.value_dim, ROWS, prepared.chained)
    return Launch(delta_kernel, (-(-rows // ROWS), 1, 1), arguments, options_of(4, 2, prepared.chained))


def _query_launch(prepared: Prepared, config: Tiling, steps: Steps | None) -> Launch:
    problem = prepared.problem
    programs, count = _query_programs(prepared, config)
    numbers = prepared.scale, problem.heads, problem.group_size, problem.additional, programs, _room(steps)
    arguments = (*numbers, *_tiled(prepared, config), prepared.flags(config), precision_of(problem.dtype))
    return Launch(query_gradient_kernel, (count, 1, 1), arguments, prepared.options(config, "query"))


def _query_of_classes(prepared: Prepared, config: Tiling, starts: Starts, first: int, batch: int) -> Launch:
    """Of `batch` entries from `first` on."""
    problem = prepared.problem
    programs, _ = _query_programs(prepared, config)
    numbers = prepared.scale, problem.heads, problem.group_size, problem.additional, programs, first
    rest = starts.masks, problem.group_size > 1, prepared.alike, config.abreast, precision_of(problem.dtype)
    grid = batch // config.abreast * problem.heads * programs, 1, 1
    arguments = (*numbers, starts.classes, *_tiled(prepared, config), prepared.flags(config), *rest)
    return Launch(query_gradient_of_classes_kernel, grid, arguments, prepared.options(config, "query"))


def _key_value_launch(
    prepared: Prepared, config: Tiling, per_query_head: bool, starts: Starts | None, steps: Steps | None
) -> Launch:
    problem = prepared.problem
    programs, count = _key_programs(prepared, config, per_query_head)
    numbers = prepared.scale, problem.heads, problem.group_size, programs
    tiled = *_tiled(prepared, config), prepared.flags(config, inverse=True)
    grouped = problem.group_size > 1 and not per_query_head
    if starts is not None:
        arguments = (*numbers, starts.classes, *tiled, starts.masks, grouped, prepared.alike)
        kernel = key_value_gradient_of_classes_kernel
    else:
        arguments = (*numbers, _room(steps), *tiled, grouped, per_query_head)
        kernel = key_value_gradient_kernel
    arguments = (*arguments, precision_of(problem.dtype))
    return Launch(kernel, (count, 1, 1), arguments, prepared.options(config, "key_value"))


def _tiled(prepared: Prepared, config: Tiling) -> tuple[Any, ...]:
    """What both kernels take between numbers and flags."""
    own = (*prepared.arguments(config.unfolded), config.tile, config.step)
    return (*own, config.warps, prepared.vector) if config.of_classes else (*own, prepared.vector)


def _gradients_launch(
    prepared: Prepared,
    config: GradientTilings,
    per_query_head: bool,
    steps: tuple[Steps | None, Steps | None],
) -> Launch:
    """Both of the above; warps, stages and the axis unfolded are the same for both."""
    problem, query, key_value = prepared.problem, config.query, config.key_value
    programs, count = _query_programs(prepared, query)
    key_programs, key_count = _key_programs(prepared, key_value, per_query_head)
    arguments = (
        prepared.scale,
        problem.heads,
        problem.group_size,
        problem.additional,
        programs,
        _room(steps[0]),
        key_programs,
        _room(steps[1]),
        key_count,
        *prepared.arguments(query.unfolded),
        query.query_tile,
        query.key_tile,
        key_value.query_tile,
        key_value.key_tile,
        prepared.vector,
        prepared.flags(query),
        prepared.flags(key_value, inverse=True),
        problem.group_size > 1 and not per_query_head,
        per_query_head,
        precision_of(problem.dtype),
    )
    return Launch(gradients_kernel, (key_count + count, 1, 1), arguments, prepared.options(query))


def _room(steps: Steps | None) -> int:
    return 0 if steps is None else steps.room


def _query_programs(prepared: Prepared, config: Tiling) -> tuple[int, int]:
    """Programs of one head, and of all."""
    programs = tiles_of(prepared.problem, config)
    return programs, prepared.problem.batch * prepared.problem.heads * programs


def _key_programs(prepared: Prepared, config: Tiling, per_query_head: bool) -> tuple[int, int]:
    """Likewise."""
    problem = prepared.problem
    programs = tiles_of(problem, config, inverse=True)
    return programs, problem.batch * (problem.heads if per_query_head else problem.kv_heads) * programs


def _additional_launch(prepared: Prepared) -> Launch:
    problem = prepared.problem
    tokens = prod(problem.lengths)
    tile, step, stages = _additional_tiling(problem)
    tiles = -(-problem.additional // tile)
    programs = problem.batch * problem.kv_heads * tiles
    steps = -(-tokens // step)
    slices = min(steps, -(-ENOUGH_PROGRAMS // programs), 65535)
    slice_size = -(-steps // slices) * step
    axes, *rest = prepared.arguments()
    arguments = (
        prepared.scale,
        problem.heads,
        problem.group_size,
        problem.additional,
        tiles,
        slice_size,
        axes._replace(lengths=problem.lengths, parts=None),  # the queries', of which every one attends
        *rest,
        tile,
        step,
        prepared.vector,
        problem.has_key_mask,
        precision_of(problem.dtype),
    )
    grid = (programs, -(-tokens // slice_size), 1)
    return Launch(additional_gradient_kernel, grid, arguments, options_of(4, stages))


def _additional_tiling(problem: Problem) -> tuple[int, int, int]:
    """Additional keys of a program, queries of a step, stages: what there are registers and shared memory for.

    Of a key and its value 512 bytes: where they are longer, 32 by 32 spill up to 18 kB a thread, and float32 needs more
    shared memory than an A100 has.
    """
    row = (padded(problem.head_dim) + padded(problem.value_dim)) * problem.dtype.itemsize
    return (32, 32, 2) if row <= 512 else (16, 16, 2 if row <= 1024 else 1)
