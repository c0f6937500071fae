"""Which way a call goes: to the kernels directly, through the torch operator, or through the differentiable formulas.

Eager calls on small problems are bound by the host, so what can be known from a call's signature (its shapes, dtypes,
devices and neighborhoods) is checked and prepared once and looked up afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vicinal import differentiable
from vicinal.checks import check_call
from vicinal.dispatch import Plan
from vicinal.geometry.neighborhood import Neighborhood, encode
from vicinal.operators import attend, plan_of, run
from vicinal.problem import Inputs

MAX_PREPARED = 4096  # all are dropped when there are more


def route(
    inputs: Inputs, neighborhoods: tuple[Neighborhood, ...], scale: float | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a call of `neighborhood_attention`, whose arguments are checked here.

    Raises:
        TypeError, ValueError: see `vicinal.checks.check_call`; ValueError also where the backend cannot run it.
    """
    if torch.compiler.is_compiling():
        prepared = Prepared.of(inputs, neighborhoods, scale, backend)
        return attend(*inputs, prepared.code, prepared.scale, backend)
    prepared = _prepare(inputs, neighborhoods, scale, backend)
    if _transformed(inputs):
        return differentiable.attend(inputs, prepared.resolve(inputs), prepared.scale)
    if _plain(inputs):
        return run(inputs, prepared.plan(inputs, backend))
    return attend(*inputs, prepared.code, prepared.scale, backend)


@dataclass
class Prepared:
    """What a call's signature determines."""

    neighborhoods: tuple[Neighborhood, ...]
    code: list[int]
    scale: float
    _plans: dict[bool, Plan] = field(default_factory=dict)

    @classmethod
    def of(
        cls, inputs: Inputs, neighborhoods: tuple[Neighborhood, ...], scale: float | None, backend: str | None
    ) -> Prepared:
        """Checks the call and prepares it."""
        check_call(inputs, neighborhoods, backend)
        if len(neighborhoods) > 1 and all(n == neighborhoods[0] for n in neighborhoods):
            neighborhoods = neighborhoods[:1]
        factor = inputs.query.shape[-1] ** -0.5 if scale is None else float(scale)
        return cls(neighborhoods, encode(neighborhoods), factor)

    def plan(self, inputs: Inputs, backend: str | None) -> Plan:
        """The plan for inputs of this signature."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        found = self._plans.get(deterministic)
        if found is None:
            found = self._plans[deterministic] = plan_of(inputs, self.code, self.scale, backend)
        return found

    def resolve(self, inputs: Inputs) -> list[Neighborhood]:
        """The neighborhoods for the lengths of these inputs."""
        return [n.resolve(inputs.query.shape[1:-2]) for n in self.neighborhoods]


_prepared: dict[Any, Prepared] = {}


def _prepare(
    inputs: Inputs, neighborhoods: tuple[Neighborhood, ...], scale: float | None, backend: str | None
) -> Prepared:
    """The call's `Prepared`, made once for calls of one signature."""
    try:
        tensors = [None if t is None else (t.shape, t.dtype, t.device) for t in inputs]
        signature = (*tensors, neighborhoods, scale, backend)
        found = _prepared.get(signature)
    except (AttributeError, TypeError):  # no tensor, no neighborhood, or traced sizes, which cannot be hashed
        return Prepared.of(inputs, neighborhoods, scale, backend)
    if found is None:
        found = Prepared.of(inputs, neighborhoods, scale, backend)
        if len(_prepared) >= MAX_PREPARED:
            _prepared.clear()
        _prepared[signature] = found
    return found


def _plain(inputs: Inputs) -> bool:
    """Whether nothing watches this call: no autograd, no mode, no transform, no tensor subclass.

    Then the operator's dispatch, about half of the host time of a small call, has nothing to add.
    """
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    grad = torch.is_grad_enabled()
    return not any(t is not None and (type(t) not in _TENSORS or (grad and t.requires_grad)) for t in inputs)


_TENSORS = (Tensor, torch.nn.Parameter)


def _transformed(inputs: Inputs) -> bool:
    """Whether derivatives are taken that the operators cannot give: forward mode, or `torch.func.grad` around us.

    Torch's library operators know no forward mode, and cannot be differentiated below another `torch.func` transform;
    the formulas can. Plain autograd and plain vmap use the operators.
    """
    if forward_ad._current_level >= 0:
        return True
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return False
    for t in inputs:
        while t is not None and functorch.is_functorch_wrapped_tensor(t):
            if functorch.is_gradtrackingtensor(t):
                return True
            t = functorch.get_unwrapped(t)
    return False
