"""`natten.flops`: multiply-adds of a model, by torch's own counter, and handles for fvcore's.

fvcore counts one multiply-add as one; so do both functions here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import vicinal.unfused  # noqa: F401 - registers the operators that are counted
from vicinal.geometry.neighborhood import decode
from vicinal.geometry.work import call_scores


def get_flops(model: torch.nn.Module, input: Any, disable_warnings: bool = False) -> int:
    """Multiply-adds of `model(input)` in matrix products, convolutions and attention.

    NATTEN used fvcore here, which counts element-wise layers such as norms too; torch's counter, used here, does not.

    Args:
        model: called once, without gradients.
        input: a tensor, or a tuple of arguments.
        disable_warnings: accepted; there are none.
    """
    arguments = input if isinstance(input, tuple) else (input,)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*arguments)
    return counter.get_total_flops() // 2


def add_natten_handle(flop_ctr: Any) -> Any:
    """Teach an fvcore `FlopCountAnalysis` to count neighborhood attention; returns it."""
    handles: dict[str, Callable[..., int]] = {
        "vicinal::attend": _attend,
        "vicinal::pn": _pn,
        "vicinal::nn": _nn,
    }
    return flop_ctr.set_op_handle(**handles)


def _attend(inputs: list[Any], outputs: list[Any]) -> int:
    query, value = _shape(inputs[0]), _shape(inputs[2])
    additional = 0 if inputs[3].type().kind() == "NoneType" else _shape(inputs[3])[1]
    return _pairs(query, _integers(inputs[6]), additional) * (query[-1] + value[-1])


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
