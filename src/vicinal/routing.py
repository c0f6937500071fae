"""Which way a call goes: to the kernels directly, through the torch operator, or through the differentiable formulas.

Eager calls on small problems are bound by the host, so what can be known from a call's signature (its shapes, dtypes,
devices and neighborhoods) is checked and prepared once and looked up afterwards; and an eager call that no mode or
transform watches has its own node in autograd's graph, since the operator's costs several times as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vicinal import circular, sharding, torch_internals
from vicinal.backends.torch import formulas
from vicinal.caching import Cache
from vicinal.checks import check_call
from vicinal.compiling import ahead
from vicinal.dispatch import Plan, compilations, plan
from vicinal.geometry.neighborhood import Neighborhood, encode
from vicinal.geometry.unroll import Seam
from vicinal.operators import attend, attend_backward, run, run_backward
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.tuning.cache import class_of, kept_plans


def route(
    inputs: Inputs, neighborhoods: tuple[Neighborhood, ...], scale: float | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a call of `neighborhood_attention`, whose arguments are checked here.

    Raises:
        TypeError, ValueError: see `vicinal.checks.check_call`; ValueError also where the backend cannot run it.
    """
    if sharding.splits_map(inputs):
        check_call(inputs, neighborhoods, backend)
        return sharding.attend_split(inputs, neighborhoods, scale, backend)
    if any(isinstance(n, Neighborhood) and n.is_circular for n in neighborhoods):
        spanned = None
        if torch.compiler.is_compiling():
            check_call(inputs, neighborhoods, backend)
        else:
            circles = _checked(inputs, neighborhoods, scale, backend)
            watched = torch_internals.watched(inputs) or torch_internals.in_forward_mode()
            spanned = None if watched else circles.spanned(inputs, backend)
            if not watched and not _differentiated(inputs) and (seam := circles.seam(inputs, backend)) is not None:
                output, lse = route(inputs, seam.ends, scale, backend)
                near = route(circular.near_seam(inputs, seam), seam.near, scale, backend)
                circular.put_near_seam(output, near[0], seam)
                circular.put_near_seam(lse, near[1], seam)
                return output, lse
        output, lse = route(*circular.unroll(inputs, neighborhoods, spanned), scale, backend)
        if (gone := circular.silent(inputs)) is not None:
            output, lse = output.masked_fill(gone[..., None], 0.0), lse.masked_fill(gone, float("-inf"))
        return output, lse
    if torch.compiler.is_compiling():
        checked = Checked.of(inputs, neighborhoods, scale, backend)
        sharding.prepare(inputs, len(checked.neighborhoods) > 1)
        return attend(*inputs, checked.code, checked.scale, backend)
    checked = _checked(inputs, neighborhoods, scale, backend)
    if _transformed(inputs):
        return formulas.attend(inputs, checked.resolve(inputs), checked.scale)
    if torch_internals.watched(inputs):
        sharding.prepare(inputs, len(checked.neighborhoods) > 1)
        return attend(*inputs, checked.code, checked.scale, backend)
    chosen = checked.plan(inputs, backend)
    if _differentiated(inputs):
        if not checked.ahead:
            checked.compile_ahead(inputs, chosen)
        return _Attend.apply(chosen, (checked.code, checked.scale, backend), *inputs)
    return run(inputs, chosen)


COMPILED_AHEAD = ("cuda",)  # devices; elsewhere kernels are few, and kept on disk from the first process on


@dataclass
class Checked:
    """A call whose arguments are right: what its signature determines.

    `ahead`: whether a call that needs gradients has had its backward's kernels compiled ahead.
    """

    neighborhoods: tuple[Neighborhood, ...]
    code: list[int]
    scale: float
    ahead: bool = False
    _plan: Plan | None = None
    _spanned: tuple[Neighborhood, ...] | None = None
    _seam: Seam | None = None

    @classmethod
    def of(
        cls, inputs: Inputs, neighborhoods: tuple[Neighborhood, ...], scale: float | None, backend: str | None
    ) -> Checked:
        """Checks the call."""
        check_call(inputs, neighborhoods, backend)
        if len(neighborhoods) > 1 and all(n == neighborhoods[0] for n in neighborhoods):
            neighborhoods = neighborhoods[:1]
        factor = torch_internals.shape_of(inputs.query)[-1] ** -0.5 if scale is None else float(scale)
        return cls(neighborhoods, encode(neighborhoods), factor)

    def plan(self, inputs: Inputs, backend: str | None) -> Plan:
        """The plan for inputs of this signature."""
        if self._plan is None:
            self._plan = plan(Problem.of(inputs, self.neighborhoods, self.scale), backend)
        return self._plan

    def spanned(self, inputs: Inputs, backend: str | None) -> tuple[Neighborhood, ...]:
        """Of circular neighborhoods see `vicinal.circular.spanned`."""
        if self._spanned is None:
            problem, own = Problem.of(inputs, self.neighborhoods, self.scale), tuple(self.resolve(inputs))
            self._spanned = circular.spanned(problem, own, backend)
            if self._spanned == problem.neighborhoods:  # keys would be copied
                self._seam = circular.seam_of(problem, own, backend)
        return self._spanned

    def seam(self, inputs: Inputs, backend: str | None) -> Seam | None:
        """Likewise see `vicinal.circular.seam_of`."""
        self.spanned(inputs, backend)
        return self._seam

    def compile_ahead(self, inputs: Inputs, chosen: Plan) -> None:
        """On a GPU, begin to compile what the backward of this call will need, while the forward compiles and runs.

        Once for kernels that are most likely the same: preparing them again takes as long as preparing the call.
        """
        self.ahead = True
        if inputs.query.device.type in COMPILED_AHEAD and inputs.query.shape[0] > 0:
            wanted = Wanted(*(t is not None and t.requires_grad for t in inputs.numbers))
            kin = class_of(chosen.problem).kin
            key = (chosen.gradients.name, chosen.backward, wanted, chosen.problem.device, *kin)
            if _begun.find(key) is not None:
                return
            _begun.get(key, object)
            without_memory = Inputs(*(None if t is None else _without_memory(t) for t in inputs))  # type: ignore[arg-type]
            ahead(lambda: compilations(chosen, without_memory, wanted))

    def resolve(self, inputs: Inputs) -> list[Neighborhood]:
        """The neighborhoods for the lengths of these inputs."""
        return [n.resolve(torch_internals.shape_of(inputs.query)[1:-2]) for n in self.neighborhoods]


def _without_memory(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class _Attend(torch.autograd.Function):
    """`vicinal::attend` for eager calls: the same kernels, and the operator itself where second derivatives follow."""

    @staticmethod
    def forward(ctx: Any, chosen: Plan, settings: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, Tensor]:
        output, lse = run(Inputs(*inputs), chosen)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output, lse)
        ctx.chosen, ctx.settings = chosen, settings
        return output, lse

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        *saved, output, lse = ctx.saved_tensors
        inputs, wanted = Inputs(*saved), Wanted(*ctx.needs_input_grad[2 : 2 + len(Wanted._fields)])
        if grad_output is None and grad_lse is None:
            return (None,) * len(ctx.needs_input_grad)
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        above = (grad_output, grad_lse)
        grads: Sequence[Tensor | None]
        if torch_internals.watched_backward(above):
            grads = attend_backward(grad_output, grad_lse, output, lse, *inputs, *ctx.settings, list(wanted))
            grads = [grad if is_wanted else None for is_wanted, grad in zip(wanted, grads)]
        else:
            upstream = Upstream(output, lse, grad_output, grad_lse)
            grads = run_backward(inputs, ctx.chosen, upstream, wanted).numbers
        return (None, None, *grads, *(None,) * (len(inputs) - len(wanted)))


_begun: Cache[object] = Cache(entries=4096)  # what is compiled ahead
_calls: Cache[Checked] = Cache(entries=4096)
kept_plans(_calls.clear)


def _checked(
    inputs: Inputs, neighborhoods: tuple[Neighborhood, ...], scale: float | None, backend: str | None
) -> Checked:
    """The same, made once for calls of one signature."""
    try:
        tensors = [None if t is None else (t.shape, t.dtype, t.device, t.layout) for t in inputs]
        signature = (*tensors, neighborhoods, scale, backend)
        known = _calls.find(signature)
    except (AttributeError, RuntimeError, TypeError):  # no (dense) tensor, or traced sizes, which cannot be hashed
        return Checked.of(inputs, neighborhoods, scale, backend)
    if known is not None:
        return known
    return _calls.get(signature, lambda: Checked.of(inputs, neighborhoods, scale, backend))


def _differentiated(inputs: Inputs) -> bool:
    """Whether autograd will ask for gradients."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


def _transformed(inputs: Inputs) -> bool:
    """Whether derivatives are taken that the operators cannot give: forward mode, or `torch.func.grad` around us.

    Torch's library operators know no forward mode, and cannot be differentiated below another `torch.func` transform;
    the formulas can. Plain autograd and plain vmap use the operators.
    """
    if torch_internals.in_forward_mode():
        return True
    return torch_internals.in_transform() and any(map(torch_internals.is_differentiated_by_a_transform, inputs))
