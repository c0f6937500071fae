"""The torch operators `vicinal::pn`, `nn`, `inverse` and `bias_sum` behind `vicinal.unfused`, and their derivatives.

PN, NN and IN are closed under differentiation: each is the others' gradient, and each is linear in each of its tensors.
Shapes and arguments: `vicinal.backends.unfused.plain`; neighborhoods travel as integers, variants by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vicinal import torch_internals
from vicinal.backends.unfused import launch
from vicinal.declaring import operator
from vicinal.geometry.neighborhood import decode
from vicinal.geometry.slots import Slots
from vicinal.geometry.work import useful_scores

_GEOMETRY = "int[] neighborhood, float scale"
_pn = operator("pn", f"(Tensor query, Tensor key, Tensor? rpb, {_GEOMETRY}, float fill, str variant) -> Tensor")
_nn = operator("nn", f"(Tensor attn, Tensor value, {_GEOMETRY}, str variant) -> Tensor")
_inverse = operator("inverse", f"(Tensor attn, Tensor query, int kv_heads, {_GEOMETRY}, str variant) -> Tensor")
_bias_sum = operator("bias_sum", "(Tensor grad, int[] neighborhood, str variant) -> Tensor")


@torch.library.impl("vicinal::pn", "default")
def _pn_run(query, key, rpb, code, scale, fill, variant):  # type: ignore[no-untyped-def]
    return launch.pn(query, key, rpb, _decode(code, query), scale, fill, variant)


@torch.library.impl("vicinal::nn", "default")
def _nn_run(attn, value, code, scale, variant):  # type: ignore[no-untyped-def]
    return launch.nn(attn, value, _decode(code, value), scale, variant)


@torch.library.impl("vicinal::inverse", "default")
def _inverse_run(attn, query, kv_heads, code, scale, variant):  # type: ignore[no-untyped-def]
    return launch.inverse(attn, query, kv_heads, _decode(code, query), scale, variant)


@torch.library.impl("vicinal::bias_sum", "default")
def _bias_sum_run(grad, code, variant):  # type: ignore[no-untyped-def]
    return launch.bias_sum(grad, _decode(code, grad), variant)


@torch.library.register_fake("vicinal::pn")
def _pn_fake(query, key, rpb, code, scale, fill, variant):  # type: ignore[no-untyped-def]
    return query.new_empty((*query.shape[:-1], _decode(code, query).count))


@torch.library.register_fake("vicinal::nn")
def _nn_fake(attn, value, code, scale, variant):  # type: ignore[no-untyped-def]
    return value.new_empty((*attn.shape[:-1], value.shape[-1]))


@torch.library.register_fake("vicinal::inverse")
def _inverse_fake(attn, query, kv_heads, code, scale, variant):  # type: ignore[no-untyped-def]
    return query.new_empty((*query.shape[:-2], kv_heads, query.shape[-1]))


@torch.library.register_fake("vicinal::bias_sum")
def _bias_sum_fake(grad, code, variant):  # type: ignore[no-untyped-def]
    return grad.new_empty((grad.shape[-2], *_decode(code, grad).bias_shape))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = tuple(None if isinstance(x, Tensor) else x for x in inputs)


def _pn_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key = ctx.saved_tensors
    code, scale, _fill, variant = ctx.settings[3:]
    need = ctx.needs_input_grad
    d_query = nn(grad, key, code, scale, variant) if need[0] else None
    d_key = inverse(grad, query, key.shape[-2], code, scale, variant) if need[1] else None
    d_rpb = _bias_sum(grad, code, variant) if need[2] else None
    return d_query, d_key, d_rpb, None, None, None, None


def _nn_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    attn, value = ctx.saved_tensors
    code, scale, variant = ctx.settings[2:]
    need = ctx.needs_input_grad
    d_attn = pn(grad, value, None, code, scale, 0.0, variant) if need[0] else None
    d_value = inverse(attn, grad, value.shape[-2], code, scale, variant) if need[1] else None
    return d_attn, d_value, None, None, None


def _inverse_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    attn, query = ctx.saved_tensors
    code, scale, variant = ctx.settings[3:]
    need = ctx.needs_input_grad
    d_attn = pn(query, grad, None, code, scale, 0.0, variant) if need[0] else None
    d_query = nn(attn, grad, code, scale, variant) if need[1] else None
    return d_attn, d_query, None, None, None, None


torch.library.register_autograd("vicinal::pn", _pn_backward, setup_context=_save)
torch.library.register_autograd("vicinal::nn", _nn_backward, setup_context=_save)
torch.library.register_autograd("vicinal::inverse", _inverse_backward, setup_context=_save)


# Under torch.func transforms and in forward mode library operators do not work (a tangent would silently be zero):
# there these functions take their place.


def _transformed() -> bool:
    """Whether forward mode or a `torch.func` transform is at work."""
    if torch.compiler.is_compiling():
        return False
    return torch_internals.in_forward_mode() or torch_internals.in_transform()


def pn(*args: Any) -> Tensor:
    """Query, key, rpb or None, neighborhood's integers, scale, fill, variant -> scores `[B, *X, H, slots]`."""
    return _Pn.apply(*map(_hidden, args)) if _transformed() else _pn(*args)


def nn(*args: Any) -> Tensor:
    """Weights, value, neighborhood's integers, scale, variant -> weighted sums `[B, *X, H, Dv]`."""
    return _Nn.apply(*map(_hidden, args)) if _transformed() else _nn(*args)


def inverse(*args: Any) -> Tensor:
    """Weights, query, heads of keys, neighborhood's integers, scale, variant -> sums by key `[B, *X, Hkv, D]`."""
    return _Inverse.apply(*map(_hidden, args)) if _transformed() else _inverse(*args)


@dataclass(frozen=True)
class _Hidden:
    """A list of integers that `torch.func` does not take apart, as it does with lists."""

    items: tuple[int, ...]


def _hidden(x: Any) -> Any:
    return _Hidden(tuple(x)) if isinstance(x, list) else x


def _shown(x: Any) -> Any:
    return list(x.items) if isinstance(x, _Hidden) else x


class _Operator(torch.autograd.Function):
    """What the three have in common; a subclass says how to run, `_operator`, and its gradient, `_gradient`."""

    generate_vmap_rule = True
    _operator: Callable[..., Tensor]
    _gradient: Callable[..., tuple[Tensor | None, ...]]

    @classmethod
    def forward(cls, *args: Any) -> Tensor:
        return cls._operator(*map(_shown, args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(*inputs[:2])
        _save(ctx, tuple(map(_shown, inputs)), output)


class _Pn(_Operator):
    _operator = staticmethod(_pn)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _pn_backward(ctx, grad)

    @staticmethod
    def jvp(ctx: Any, d_query: Tensor | None, d_key: Tensor | None, d_rpb: Tensor | None, *_: None) -> Tensor:
        query, key = ctx.saved_tensors
        code, scale, _fill, variant = ctx.settings[3:]
        parts = []
        if d_query is not None:
            parts.append(pn(d_query, key, None, code, scale, 0.0, variant))
        if d_key is not None:
            parts.append(pn(query, d_key, None, code, scale, 0.0, variant))
        if d_rpb is not None:
            parts.append(pn(torch.zeros_like(query), key, d_rpb, code, scale, 0.0, variant))
        return sum(parts[1:], parts[0])


class _Nn(_Operator):
    _operator = staticmethod(_nn)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _nn_backward(ctx, grad)

    @staticmethod
    def jvp(ctx: Any, d_attn: Tensor | None, d_value: Tensor | None, *_: None) -> Tensor:
        attn, value = ctx.saved_tensors
        settings = ctx.settings[2:]
        parts = [] if d_attn is None else [nn(d_attn, value, *settings)]
        parts += [] if d_value is None else [nn(attn, d_value, *settings)]
        return sum(parts[1:], parts[0])


class _Inverse(_Operator):
    _operator = staticmethod(_inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _inverse_backward(ctx, grad)

    @staticmethod
    def jvp(ctx: Any, d_attn: Tensor | None, d_query: Tensor | None, *_: None) -> Tensor:
        attn, query = ctx.saved_tensors
        settings = ctx.settings[2:]
        parts = [] if d_attn is None else [inverse(d_attn, query, *settings)]
        parts += [] if d_query is None else [inverse(attn, d_query, *settings)]
        return sum(parts[1:], parts[0])


def _vmap(operator: Callable[..., Tensor], tensors: int) -> Callable[..., Any]:
    """The batching rule: the new dimension joins the batch; where a tensor without a batch has it, a loop."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        mapped = [isinstance(x, Tensor) and dim is not None for x, dim in zip(args, in_dims)]
        front = [x.movedim(dim, 0) if is_mapped else x for x, dim, is_mapped in zip(args, in_dims, mapped)]
        if any(mapped[tensors:]) or tensors == 1:
            rows = [[x[i] if is_mapped else x for x, is_mapped in zip(front, mapped)] for i in range(size)]
            return torch.stack([operator(*row) for row in rows]), 0
        for i in range(tensors):
            x = front[i] if mapped[i] else front[i].expand(size, *front[i].shape)
            front[i] = x.flatten(0, 1)
        return operator(*front).unflatten(0, (size, -1)), 0

    return rule


torch.library.register_vmap("vicinal::pn", _vmap(_pn, 2))
torch.library.register_vmap("vicinal::nn", _vmap(_nn, 2))
torch.library.register_vmap("vicinal::inverse", _vmap(_inverse, 2))
torch.library.register_vmap("vicinal::bias_sum", _vmap(_bias_sum, 1))


@register_flop_formula(torch.ops.vicinal.pn)
def _pn_flops(query: Any, key: Any, rpb: Any, code: list[int], *_: Any, **__: Any) -> int:
    return _flops(query[:-1], query[-1], code)


@register_flop_formula(torch.ops.vicinal.nn)
def _nn_flops(attn: Any, value: Any, code: list[int], *_: Any, **__: Any) -> int:
    return _flops(attn[:-1], value[-1], code)


@register_flop_formula(torch.ops.vicinal.inverse)
def _inverse_flops(attn: Any, query: Any, kv_heads: int, code: list[int], *_: Any, **__: Any) -> int:
    return _flops(query[:-1], query[-1], code)


def _flops(shape: Any, dim: int, code: list[int]) -> int:
    batch, *lengths, heads = shape
    (neighborhood,) = decode(code, len(lengths))
    return 2 * batch * heads * dim * useful_scores(neighborhood, tuple(lengths))


def _decode(code: list[int], tensor: Tensor) -> Slots:
    lengths = tuple(tensor.shape[1:-2])
    (neighborhood,) = decode(code, len(lengths))
    return Slots(neighborhood, lengths)
