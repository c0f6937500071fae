"""What NATTEN's functions compute, by vicinal's functions. Arguments are those of all versions, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vicinal import functional
from vicinal.checks import check_inputs, check_rank, check_tensor
from vicinal.compat import context
from vicinal.dispatch import BACKENDS, plan
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Neighborhood, PerAxis
from vicinal.problem import Inputs, Problem
from vicinal.unfused import neighborhood_av, neighborhood_qk

_NA = {1: functional.na1d, 2: functional.na2d, 3: functional.na3d}
_FOREIGN = {
    *(f"{kind}-{what}" for kind in ("cutlass", "hopper", "blackwell", "flash", "flex") for what in ("fna", "fmha")),
    "reference",
}


# --- until 0.17: heads first `[B, H, *X, D]` -------------------------------------------------------------------------


def scores(
    rank: int,
    query: Tensor,
    key: Tensor,
    kernel_size: PerAxis[int] | None = None,
    dilation: PerAxis[int] | None = 1,
    additional_keys: Tensor | None = None,
    is_causal: PerAxis[bool] | None = False,
    rpb: Tensor | None = None,
    **depth: int,
) -> Tensor:
    """Scores `[B, H, *X, slots + M]` of `[B, H, *X, D]` tensors, not scaled; additional keys are `[B, H, M, D]`.

    Raises:
        NotImplementedError: nested tensors.
        TypeError, ValueError: as `vicinal.unfused.neighborhood_qk`.
    """
    _check_heads_first(rank, query=query, key=key)
    if kernel_size is None:  # until 0.14.4 it followed from the bias
        if not isinstance(rpb, Tensor):
            raise TypeError(f"rpb must be a torch.Tensor: the window's size follows from it, got {type(rpb).__name__}")
        kernel_size = (rpb.shape[-1] + 1) // 2
    kernel_size, dilation = _with_depth(kernel_size, dilation, **depth)
    return neighborhood_qk(
        _heads_last(query),
        _heads_last(key),
        kernel_size,
        dilation,
        _swapped(additional_keys),
        is_causal,
        rpb,
        variant=context.unfused_variant(query),
    ).movedim(-2, 1)


def weighted_sums(
    rank: int,
    attn: Tensor,
    value: Tensor,
    kernel_size: PerAxis[int] | None = None,
    dilation: PerAxis[int] | None = 1,
    additional_values: Tensor | None = None,
    is_causal: PerAxis[bool] | None = False,
    **depth: int,
) -> Tensor:
    """Output `[B, H, *X, D]` from weights `[B, H, *X, slots + M]`; additional values are `[B, H, M, D]`.

    Raises:
        NotImplementedError: nested tensors.
        TypeError, ValueError: as `vicinal.unfused.neighborhood_av`.
    """
    _check_heads_first(rank, attn=attn, value=value)
    if kernel_size is None:  # until 0.14.5 it followed from the weights
        kernel_size = round(attn.shape[-1] ** (1 / rank))
    kernel_size, dilation = _with_depth(kernel_size, dilation, **depth)
    return neighborhood_av(
        _heads_last(attn),
        _heads_last(value),
        kernel_size,
        dilation,
        _swapped(additional_values),
        is_causal,
        variant=context.unfused_variant(value),
    ).movedim(-2, 1)


def fused(
    rank: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis[int],
    dilation: PerAxis[int] | None = 1,
    is_causal: PerAxis[bool] | None = False,
    rpb: Tensor | None = None,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    **ignored: Any,
) -> Tensor:
    """Fused attention of `[B, *X, H, D]` tensors; scaled by `D ** -0.5` unless given.

    Raises:
        NotImplementedError: nested tensors.
        TypeError, ValueError: as `vicinal.neighborhood_attention`.
    """
    _refuse_nested(query, key, value)
    _say_ignored(**ignored)
    output = neighborhood_attention(
        query,
        key,
        value,
        Neighborhood.of(rank, kernel_size, 1, dilation, is_causal),
        scale=default_scale(scale),
        additional_keys=additional_keys,
        additional_values=additional_values,
        rpb=rpb,
    )
    assert isinstance(output, Tensor)
    return output


# --- from 0.20 on: heads last ----------------------------------------------------------------------------------------


def na(query: Tensor, rank: int | None = None, **arguments: Any) -> Tensor | tuple[Tensor, Tensor]:
    """Neighborhood attention, as `vicinal.na1d`; of any rank where none is given, by the query's dimensions."""
    if rank is None:
        check_tensor("query", query)
        rank = check_rank("query", query)
    _say_ignored(try_fuse_additional_kv=arguments.pop("try_fuse_additional_kv", False))
    return _NA[rank](query, **_translated(arguments))


def attention(**arguments: Any) -> Tensor | tuple[Tensor, Tensor]:
    """Plain attention, as `vicinal.attention`."""
    return functional.attention(**_translated(arguments))


def merge_attentions(**arguments: Any) -> tuple[Tensor, Tensor]:
    """The attention over the keys of all parts and its log-sum-exp, as `vicinal.merge_attentions`."""
    return functional.merge_attentions(**arguments)


def merged_output(**arguments: Any) -> Tensor:
    """The attention over the keys of all parts, as the first result of `vicinal.merge_attentions`."""
    return functional.merge_attentions(**arguments)[0]


# --- backends --------------------------------------------------------------------------------------------------------


def no_configs(**arguments: Any) -> list[Any]:
    """None: vicinal chooses its tiles by itself and takes no such configurations."""
    return []


def compatible_backends(query: Tensor | None = None, input_tensor: Tensor | None = None, **arguments: Any) -> list[str]:
    """Names of vicinal's backends that can run tensors of these shapes, dtypes and devices, the preferred first."""
    if query is None:
        query = input_tensor
    assert query is not None
    inputs = Inputs(query, arguments.get("key", query), arguments.get("value", query))
    check_tensor("query", query)
    rank = check_rank("query", query)
    check_inputs(inputs, rank)
    problem = Problem.of(inputs, (Neighborhood.of(rank, None),), query.shape[-1] ** -0.5)
    return [backend.name for backend in plan(problem).able]


def choose_backend(**arguments: Any) -> str:
    """The first of `compatible_backends`."""
    return compatible_backends(**arguments)[0]


# --- shared ----------------------------------------------------------------------------------------------------------


def default_scale(scale: float | None) -> float | None:
    """A scale of 0 means the default, as None does: NATTEN has `scale or ...`."""
    return None if type(scale) in (int, float) and scale == 0 else scale


def _translated(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of one of vicinal's functions: NATTEN's backends stand for the best that runs here."""
    backend = arguments.get("backend")
    if backend in _FOREIGN and backend not in BACKENDS:
        context.say_once(f"backend {backend}", f"vicinal has no backend {backend!r}: the best of its own runs")
        arguments["backend"] = None
    arguments["scale"] = default_scale(arguments.get("scale"))
    return arguments


def _say_ignored(**knobs: Any) -> None:
    for name, value in knobs.items():
        if value:
            context.say_once(name, f"vicinal ignores {name}: it chooses tiles and kernels by itself")


def _with_depth(
    kernel_size: PerAxis[int],
    dilation: PerAxis[int] | None,
    kernel_size_d: int | None = None,
    dilation_d: int | None = None,
) -> tuple[PerAxis[int], PerAxis[int]]:
    """Window and dilation, of which 0.15 gave the depth's apart from the plane's."""
    dilation = 1 if dilation is None else dilation
    if kernel_size_d is None:
        return kernel_size, dilation
    assert isinstance(kernel_size, int)
    assert isinstance(dilation, int)
    return (kernel_size_d, kernel_size, kernel_size), (dilation_d or 1, dilation, dilation)


def _heads_last(t: Tensor) -> Tensor:
    return t.movedim(1, -2)


def _swapped(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.transpose(1, 2)


def _check_heads_first(rank: int, **tensors: Tensor) -> None:
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
        _refuse_nested(t)
        if t.ndim != rank + 3:
            raise ValueError(f"{name} must be [batch, heads, {rank} lengths, dim], got {list(t.shape)}")


def _refuse_nested(*tensors: Tensor) -> None:
    if any(isinstance(t, torch.Tensor) and t.is_nested for t in tensors):
        raise NotImplementedError("vicinal takes no nested tensors: call it once for each part")
