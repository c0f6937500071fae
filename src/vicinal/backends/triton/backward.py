"""The backward pass of `vicinal.backends.triton`: which of its parts a problem needs, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from vicinal.backends.gpu.devices import current
from vicinal.backends.gpu.run import Ahead, Run, run_of
from vicinal.backends.gpu.strides import contiguous_like, empty
from vicinal.backends.triton.additional import AdditionalGradients
from vicinal.backends.triton.bias_gradient import BiasGradient
from vicinal.backends.triton.config import GradientTilings
from vicinal.backends.triton.gradients import (
    Delta,
    Gradients,
    KeyValueGradients,
    QueryGradient,
    QueryGradientOfClasses,
)
from vicinal.backends.triton.launch import Prepared
from vicinal.backends.triton.parts import Call, Part
from vicinal.compiling import Job
from vicinal.problem import Inputs, Upstream, Wanted, lse_dtype


class Backward:
    """The backward pass of one problem, tiling, set of strides, and set of gradients that are wanted."""

    def __init__(self, prepared: Prepared, config: GradientTilings, wanted: Wanted) -> None:
        self._problem = prepared.problem
        self._table = prepared.table
        self._parts = tuple(_parts(prepared, config, wanted))
        # All gradients but those of values need delta: it is computed with the query's, or else by a launch of its own.
        self._has_delta = wanted.query or wanted.key or wanted.additional_keys or wanted.rpb

    def __call__(self, inputs: Inputs, upstream: Upstream) -> Inputs:
        """The gradients, of `readable` inputs and contiguous tensors of `upstream`."""
        assert all(t is None or t.is_contiguous() for t in upstream)
        with current(self._problem.device):
            return self._gradients(run_of((*inputs, *upstream)), inputs, upstream)

    def kernels(self, inputs: Inputs) -> list[Job]:
        """What compiles the kernels that a call launches, of `readable` inputs without memory.

        See `vicinal.backends.protocol.Backend.backward_kernels`.
        """
        run, problem = Ahead(), self._problem
        output = empty(inputs.query, (*inputs.query.shape[:-1], problem.value_dim))
        lse = empty(output, output.shape[:-1], lse_dtype(problem.dtype))
        self._gradients(run, inputs, Upstream(output, lse, output))
        return run.jobs

    def _gradients(self, run: Run, inputs: Inputs, upstream: Upstream) -> Inputs:
        if self._table is not None:
            run.in_use(self._table)
        call = Call(inputs, upstream, contiguous_like(upstream.lse) if self._has_delta else None)
        found: dict[str, Tensor | None] = {}
        for part in self._parts:
            found.update(part(run, call))
        return Inputs(*map(found.get, Inputs._fields))  # type: ignore[arg-type]


def _parts(prepared: Prepared, config: GradientTilings, wanted: Wanted) -> Iterator[Part]:
    """What makes the gradients that are wanted, in order: what computes delta comes first."""
    of_keys = wanted.key or wanted.value
    of_scores = wanted.rpb and config.query.of_classes  # the query's kernel writes the scores' gradients for it
    if config.together and wanted.query and of_keys:
        yield Gradients(prepared, config, wanted)
    else:
        if config.query.of_classes and (wanted.query or wanted.rpb):
            yield QueryGradientOfClasses(prepared, config.query, wanted)
        elif wanted.query:
            yield QueryGradient(prepared, config.query)
        elif wanted.key or wanted.additional_keys or wanted.rpb:
            yield Delta(prepared)
        if of_keys:
            yield KeyValueGradients(prepared, config.key_value, wanted)
    if wanted.rpb and not of_scores:
        yield BiasGradient(prepared)
    if wanted.additional_keys or wanted.additional_values:
        yield AdditionalGradients(prepared, wanted)
