"""The torch operators `vicinal::attend` and `vicinal::attend_backward`: once, for every backend.

Registered through `torch.library`, so that compile, export, FLOP counting, checkpointing and vmap see two opaque
operators with known shapes. First derivatives run a backend's kernels; second derivatives are those of the
differentiable formulas of `vicinal.backends.torch`.

Neighborhoods travel as integers (`geometry.neighborhood.encode`): operators take no Python objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vicinal.backends.torch import formulas
from vicinal.caching import Cache
from vicinal.declaring import operator
from vicinal.dispatch import Plan, plan
from vicinal.geometry.neighborhood import decode
from vicinal.geometry.work import backward_flops, call_scores, forward_flops
from vicinal.problem import Inputs, Problem, Upstream, Wanted, lse_dtype
from vicinal.tuning.cache import kept_plans

_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? additional_keys, Tensor? additional_values, Tensor? rpb, "
    "Tensor? key_mask, Tensor? window_sizes, int[] neighborhoods, float scale, str? backend"
)
_COUNT, _NUMBERS = len(Inputs._fields), len(Wanted._fields)  # tensors, and those of them that have gradients

attend = operator("attend", f"({_INPUTS}) -> (Tensor, Tensor)")
attend_backward = operator(
    "attend_backward",
    f"(Tensor grad_output, Tensor? grad_lse, Tensor output, Tensor lse, {_INPUTS}, bool[] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


# The kernels ----------------------------------------------------------------------------------------------------


@torch.library.impl("vicinal::attend", "default")
def _attend(*args: Any) -> tuple[Tensor, Tensor]:
    inputs = Inputs(*args[:_COUNT])
    return run(inputs, plan_of(inputs, *args[_COUNT:]))


def run(inputs: Inputs, chosen: Plan) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, by a plan for such inputs; without gradients."""
    if _is_void(inputs):
        return _attend_fake(*inputs)
    return chosen.backend.forward(chosen.problem, chosen.forward, inputs)


@torch.library.impl("vicinal::attend_backward", "default")
def _attend_backward(
    grad_output: Tensor, grad_lse: Tensor | None, output: Tensor, lse: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    inputs, settings, wanted = Inputs(*args[:_COUNT]), args[_COUNT:-1], Wanted(*args[-1])
    grads = run_backward(inputs, plan_of(inputs, *settings), Upstream(output, lse, grad_output, grad_lse), wanted)
    return tuple(inputs.query.new_empty(0) if grad is None else grad for grad in grads.numbers)


def run_backward(inputs: Inputs, chosen: Plan, upstream: Upstream, wanted: Wanted) -> Inputs:
    """The gradients that are wanted, by a plan for such inputs; they have no gradients themselves."""
    if _is_void(inputs):
        grads = (torch.zeros_like(t) if is_wanted and t is not None else None for t, is_wanted in zip(inputs, wanted))
        return Inputs(*grads)  # type: ignore[arg-type]
    return chosen.gradients.backward(chosen.problem, chosen.backward, inputs, upstream, wanted)


def _is_void(inputs: Inputs) -> bool:
    """Whether there is nothing to compute: no batch element, or tensors without memory."""
    return inputs.query.shape[0] == 0 or inputs.query.is_meta


def plan_of(inputs: Inputs, code: Sequence[int], scale: float, backend: str | None) -> Plan:
    """The plan of a call of the operator: one look-up where the call has been seen before."""
    query, key, value, additional_keys, _, rpb, key_mask, sizes = inputs
    signature = (query.shape, query.dtype, query.device, key.shape[-2], value.shape[-1], rpb is None, *code, scale)
    full = (
        signature,
        None if additional_keys is None else additional_keys.shape[1],
        key_mask is None,
        sizes is None,
        backend,
    )
    return _plans.get(full, lambda: plan(Problem.of(inputs, decode(code, query.ndim - 3), scale), backend))


_plans: Cache[Plan] = Cache(entries=4096)
kept_plans(_plans.clear)


@torch.library.register_fake("vicinal::attend")
def _attend_fake(*args: Any) -> tuple[Tensor, Tensor]:
    query, value = args[0], args[2]
    output = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return output, query.new_empty(query.shape[:-1], dtype=lse_dtype(query.dtype))


@torch.library.register_fake("vicinal::attend_backward")
def _attend_backward_fake(
    grad_output: Tensor, grad_lse: Tensor | None, output: Tensor, lse: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    inputs, wanted = args[:_NUMBERS], args[-1]
    return tuple(
        t.new_empty(t.shape) if is_wanted else grad_output.new_empty(0) for t, is_wanted in zip(inputs, wanted)
    )


# Derivatives ----------------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_COUNT], *output)
    ctx.settings = inputs[_COUNT:]


def _first(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, output, lse = ctx.saved_tensors
    if grad_output is None and grad_lse is None:
        return (None,) * len(ctx.needs_input_grad)
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    wanted = list(ctx.needs_input_grad[:_NUMBERS])
    grads = attend_backward(grad_output, grad_lse, output, lse, *inputs, *ctx.settings, wanted)
    rest = (None,) * (len(ctx.needs_input_grad) - _NUMBERS)
    return (*(grad if is_wanted else None for is_wanted, grad in zip(wanted, grads)), *rest)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: 4 + _COUNT])
    ctx.settings = inputs[4 + _COUNT :]


def _second(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradient of the gradient: the derivative of `formulas.attend_backward`, of what is needed of it.

    Output and log-sum-exp are among its arguments; what is found for them flows on into the first derivative.
    """
    code, scale, _backend, wanted = ctx.settings
    tensors = list(ctx.saved_tensors)
    needed = [i for i, is_needed in enumerate(ctx.needs_input_grad[: len(tensors)]) if is_needed]
    seeds = {i: g for i, g in enumerate(grad_grads) if wanted[i] and g is not None}
    results: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    if not seeds or not needed:
        return tuple(results)
    lengths = tensors[4].shape[1:-2]
    neighborhoods = [n.resolve(lengths) for n in decode(code, len(lengths))]

    def first(*chosen: Tensor) -> tuple[Tensor, ...]:
        every = list(tensors)
        for i, tensor in zip(needed, chosen):
            every[i] = tensor
        grad_output, grad_lse, output, lse, *inputs = every
        upstream = Upstream(output, lse, grad_output, grad_lse)
        asked = Wanted(*(i in seeds for i in range(_NUMBERS)))
        grads = formulas.attend_backward(Inputs(*inputs), neighborhoods, scale, upstream, asked)
        return tuple(grads[i] for i in seeds)  # type: ignore[misc]

    _, pull = torch.func.vjp(first, *(tensors[i] for i in needed))  # type: ignore[misc]
    for i, grad in zip(needed, pull(tuple(seeds.values()))):
        results[i] = grad
    return tuple(results)


torch.library.register_autograd("vicinal::attend", _first, setup_context=_save)
torch.library.register_autograd("vicinal::attend_backward", _second, setup_context=_save_backward)


# vmap -----------------------------------------------------------------------------------------------------------


_RPB = Inputs._fields.index("rpb")


def _vmap(operator: Callable[..., tuple[Tensor, ...]], query: int) -> Callable[..., Any]:
    """The batching rule: the new dimension joins the batch. `query` is its place among the arguments.

    The bias table has no batch: where it is mapped itself, or its gradient is wanted, one element follows the other.
    """
    rpb = query + _RPB

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size = info.batch_size
        is_mapped = in_dims[rpb] is not None
        wants_rpb = operator is attend_backward and args[-1][-1]

        def to_front(x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)

        def apart(i: int, t: Tensor) -> Tensor:
            if t.ndim == 1 or i == _RPB:  # what is not wanted: empty; what nothing adds to: zero
                return t.expand(size, *t.shape)
            return t.unflatten(0, (size, front[query].shape[1]))

        front = [to_front(x, dim) for x, dim in zip(args, in_dims)]
        if size and args[rpb] is not None and (wants_rpb or is_mapped):
            rows = [operator(*(x[i] if isinstance(x, Tensor) else x for x in front)) for i in range(size)]
            results = tuple(torch.stack(parts) for parts in zip(*rows))
        else:
            flat = [x.flatten(0, 1) if isinstance(x, Tensor) else x for x in front]
            flat[rpb] = front[rpb].sum(0) if is_mapped else args[rpb]  # mapped: over nothing
            results = tuple(apart(i, t) for i, t in enumerate(operator(*flat)))
        return results, (0,) * len(results)

    return rule


torch.library.register_vmap("vicinal::attend", _vmap(attend, query=0))
torch.library.register_vmap("vicinal::attend_backward", _vmap(attend_backward, query=4))


# FLOPs ----------------------------------------------------------------------------------------------------------


@register_flop_formula(torch.ops.vicinal.attend)
def _attend_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return forward_flops(_scores(query, *args), query[-1], value[-1])


@register_flop_formula(torch.ops.vicinal.attend_backward)
def _attend_backward_flops(
    grad_output: Any,
    grad_lse: Any,
    output: Any,
    lse: Any,
    query: Any,
    key: Any,
    value: Any,
    *args: Any,
    **kwargs: Any,
) -> int:
    return backward_flops(_scores(query, *args), query[-1], value[-1])


def _scores(
    query: Any, extra_keys: Any, extra_values: Any, rpb: Any, mask: Any, sizes: Any, code: list[int], *_: Any
) -> int:
    """Useful scores from shapes (the flop counter passes shapes for tensors)."""
    batch, *lengths, heads, _head_dim = query
    neighborhoods = [n.resolve(lengths) for n in decode(code, len(lengths))]
    additional = 0 if extra_keys is None else extra_keys[1]
    return batch * call_scores(neighborhoods, tuple(lengths), heads, additional)
