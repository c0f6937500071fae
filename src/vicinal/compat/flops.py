"""`natten.flops`: multiply-adds of a model, by torch's own counter, handles for fvcore's, and counts from shapes.

fvcore counts one multiply-add as one; so does all here but what says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

import vicinal.unfused  # noqa: F401 - registers the operators that are counted
from vicinal.geometry.neighborhood import PerAxis, decode, per_axis
from vicinal.geometry.work import call_scores
from vicinal.problem import Inputs


def get_flops(model: torch.nn.Module, input: Any, disable_warnings: bool = False) -> int:
    """Multiply-adds of `model(input)` in matrix products, convolutions and attention.

    NATTEN used fvcore here, which counts element-wise layers such as norms too; torch's counter, used here, does not.

    Args:
        model: called once, without gradients.
        input: a tensor, or a tuple of arguments.
        disable_warnings: accepted; there are none.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    arguments = input if isinstance(input, tuple) else (input,)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*arguments)
    return counter.get_total_flops() // 2


def add_natten_handle(flop_ctr: Any) -> Any:
    """Teach an fvcore `FlopCountAnalysis` to count neighborhood attention; returns it."""
    handles: dict[str, Callable[..., int]] = {
        "vicinal::attend": attend,
        "vicinal::pn": _pn,
        "vicinal::nn": _nn,
    }
    return flop_ctr.set_op_handle(**handles)


def qk(inputs: list[Any], outputs: list[Any]) -> int:
    """Of scores `[B, H, *X, slots]` from queries `[B, H, *X, D]`, as a graph's values; adding a bias counts as one."""
    return prod(_shape(outputs[0])) * (_shape(inputs[0])[-1] + 1)


def av(inputs: list[Any], outputs: list[Any]) -> int:
    """Of output `[B, H, *X, D]` from weights `[B, H, *X, slots]`, as a graph's values."""
    return prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def fna_flop_count(
    q_shape: Sequence[int],
    k_shape: Sequence[int],
    v_shape: Sequence[int],
    kernel_size: PerAxis[int],
    dilation: PerAxis[int],
    is_causal: PerAxis[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Of fused attention, from shapes; twice as many (multiplications and additions) unless `return_macs`.

    As NATTEN counts: causal windows as whole ones, softmax and bias not at all.
    """
    window = (kernel_size, dilation, is_causal, is_heads_last, return_macs)
    return na_qk_flop_count(q_shape, k_shape, *window) + na_av_flop_count(q_shape, v_shape, *window)


def na_qk_flop_count(
    q_shape: Sequence[int],
    k_shape: Sequence[int],
    kernel_size: PerAxis[int],
    dilation: PerAxis[int],
    is_causal: PerAxis[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Of scores, from shapes; as `fna_flop_count`.

    Raises:
        ValueError: shapes differ.
    """
    if tuple(q_shape) != tuple(k_shape):
        raise ValueError(f"q_shape and k_shape must be the same, got {list(q_shape)} and {list(k_shape)}")
    return prod(q_shape) * prod(per_axis("kernel_size", kernel_size, len(q_shape) - 3)) * (1 if return_macs else 2)


def na_av_flop_count(
    a_shape: Sequence[int],
    v_shape: Sequence[int],
    kernel_size: PerAxis[int],
    dilation: PerAxis[int],
    is_causal: PerAxis[bool],
    is_heads_last: bool,
    return_macs: bool = False,
) -> int:
    """Of weighted sums, from shapes; as `fna_flop_count`."""
    return prod(v_shape) * prod(per_axis("kernel_size", kernel_size, len(v_shape) - 3)) * (1 if return_macs else 2)


def attend(inputs: list[Any], outputs: list[Any]) -> int:
    """Of `vicinal::attend`, from a graph's values."""
    query, value = _shape(inputs[0]), _shape(inputs[2])
    additional = 0 if inputs[3].type().kind() == "NoneType" else _shape(inputs[3])[1]
    return _pairs(query, _integers(inputs[len(Inputs._fields)]), additional) * (query[-1] + value[-1])


def _pn(inputs: list[Any], outputs: list[Any]) -> int:
    query = _shape(inputs[0])
    return _pairs(query, _integers(inputs[3])) * query[-1]


def _nn(inputs: list[Any], outputs: list[Any]) -> int:
    return _pairs(_shape(inputs[0]), _integers(inputs[2])) * _shape(inputs[1])[-1]


def _pairs(shape: list[int], code: list[int], additional: int = 0) -> int:
    """Query-key pairs of all heads and batch elements, from a shape `[B, *X, H, _]` and encoded neighborhoods."""
    batch, *lengths, heads, _dim = shape
    neighborhoods = [n.resolve(lengths) for n in decode(code, len(lengths))]
    return batch * call_scores(neighborhoods, tuple(lengths), heads, additional)


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _integers(value: Any) -> list[int]:
    """A list of integers in a traced graph: a constant, or built from constants."""
    constant = value.toIValue()
    return [item.toIValue() for item in value.node().inputs()] if constant is None else constant
