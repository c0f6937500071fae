"""Maps of different sizes in one launch: the torch operators `vicinal::attend_maps` and `attend_maps_backward`.

They are the backend `triton`'s. Where it cannot run a problem, where derivatives are taken that these operators do not
have (forward mode, `torch.func`) and in compiled code, `vicinal.varlen` makes one call for all maps that are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vicinal import torch_internals
from vicinal.declaring import operator
from vicinal.dispatch import backend as backend_of
from vicinal.dispatch import unsupported
from vicinal.geometry.maps import Maps
from vicinal.problem import Inputs, PackedProblem, Upstream, Wanted, lse_dtype

_INPUTS = "Tensor query, Tensor key, Tensor value, int[] maps, int rank, float scale"

_forward = operator("attend_maps", f"({_INPUTS}) -> (Tensor, Tensor)")
_backward = operator(
    "attend_maps_backward",
    f"(Tensor grad_output, Tensor? grad_lse, Tensor output, Tensor lse, {_INPUTS}, bool[] wanted) "
    "-> (Tensor, Tensor, Tensor)",
)


def can_launch(inputs: Inputs, maps: Maps, backend: str | None) -> bool:
    """Whether one launch computes all maps."""
    if backend not in (None, "triton") or inputs.rpb is not None or maps.total == 0:
        return False
    if torch.compiler.is_compiling() or torch_internals.in_forward_mode() or torch_internals.in_transform():
        return False
    typical = PackedProblem.of(inputs, maps, 1.0).typical
    return not typical.is_part and unsupported("triton", typical) is None  # circles: one by one


def attend_maps(query: Tensor, key: Tensor, value: Tensor, maps: Maps, scale: float) -> tuple[Tensor, Tensor]:
    """Output `[total, H, Dv]` and log-sum-exp `[total, H]`.

    Calls that nothing watches have a node of their own in autograd's graph: the operator takes the maps as integers,
    which takes longer than small maps do.
    """
    if torch_internals.watched((query, key, value)):
        return _forward(query, key, value, maps.encode(), len(maps.lengths[0]), scale)
    problem = PackedProblem.of(Inputs(query, key, value), maps, scale)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return _AttendMaps.apply(problem, query, key, value)
    return _triton().forward_maps(problem, Inputs(query, key, value))


class _AttendMaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: PackedProblem, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        output, lse = _triton().forward_maps(problem, Inputs(*inputs))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output, lse)
        ctx.problem = problem
        return output, lse

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, output, lse = ctx.saved_tensors
        wanted, problem = ctx.needs_input_grad[1:], ctx.problem
        if grad_output is None and grad_lse is None:
            return (None,) * 4
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        above = (grad_output, grad_lse)
        if torch_internals.watched_backward(above):
            settings = problem.maps.encode(), len(problem.maps.lengths[0]), problem.typical.scale
            grads = _backward(*above, output, lse, *inputs, *settings, list(wanted))
            return (None, *(grad if is_wanted else None for is_wanted, grad in zip(wanted, grads)))
        wants = Wanted(wanted[0], wanted[1], wanted[2], False, False, False)
        return (None, *_triton().backward_maps(problem, Inputs(*inputs), Upstream(output, lse, *above), wants)[:3])


def _triton() -> Any:
    return backend_of("triton")


@torch.library.impl("vicinal::attend_maps", "default")
def _attend_maps(
    query: Tensor, key: Tensor, value: Tensor, code: Sequence[int], rank: int, scale: float
) -> tuple[Tensor, Tensor]:
    inputs = Inputs(query, key, value)
    problem = PackedProblem.of(inputs, Maps.decode(code, rank), scale)
    return _triton().forward_maps(problem, inputs)


@torch.library.impl("vicinal::attend_maps_backward", "default")
def _attend_maps_backward(
    grad_output: Tensor,
    grad_lse: Tensor | None,
    output: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    code: Sequence[int],
    rank: int,
    scale: float,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    inputs = Inputs(query, key, value)
    problem = PackedProblem.of(inputs, Maps.decode(code, rank), scale)
    upstream, wants = (
        Upstream(output, lse, grad_output, grad_lse),
        Wanted(wanted[0], wanted[1], wanted[2], False, False, False),
    )
    grads = _triton().backward_maps(problem, inputs, upstream, wants)
    return tuple(query.new_empty(0) if grad is None else grad for grad in grads[:3])


@torch.library.register_fake("vicinal::attend_maps")
def _fake(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    output = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return output, query.new_empty(query.shape[:-1], dtype=lse_dtype(query.dtype))


@torch.library.register_fake("vicinal::attend_maps_backward")
def _backward_fake(
    grad_output: Tensor, grad_lse: Tensor | None, output: Tensor, lse: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    inputs, wanted = args[:3], args[-1]
    return tuple(t.new_empty(t.shape) if wants else t.new_empty(0) for t, wants in zip(inputs, wanted))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.settings = inputs[3:]


def _gradients(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, output, lse = ctx.saved_tensors
    if grad_output is None and grad_lse is None:
        return (None,) * 6
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    wanted = list(ctx.needs_input_grad[:3])
    grads = _backward(grad_output, grad_lse, output, lse, *inputs, *ctx.settings, wanted)
    return (*(grad if wants else None for wants, grad in zip(wanted, grads)), None, None, None)


torch.library.register_autograd("vicinal::attend_maps", _gradients, setup_context=_save)
