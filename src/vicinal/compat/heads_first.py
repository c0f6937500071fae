"""The unfused operators on heads-first tensors `[B, H, *X, D]`, as NATTEN had them until 0.17. Views, no copies."""

from __future__ import annotations

from torch import Tensor

from vicinal.compat import context
from vicinal.geometry.neighborhood import PerAxis
from vicinal.unfused import neighborhood_av, neighborhood_qk


def qk(
    rank: int,
    query: Tensor,
    key: Tensor,
    kernel_size: PerAxis[int],
    dilation: PerAxis[int] = 1,
    additional_keys: Tensor | None = None,
    is_causal: PerAxis[bool] | None = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Scores `[B, H, *X, slots + M]` of `[B, H, *X, D]` tensors; additional keys are `[B, H, M, D]`. Not scaled.

    Raises:
        NotImplementedError: nested tensors.
        TypeError, ValueError: as `vicinal.unfused.neighborhood_qk`.
    """
    _check(rank, query, key)
    scores = neighborhood_qk(
        _to_last(query),
        _to_last(key),
        kernel_size,
        dilation,
        None if additional_keys is None else additional_keys.transpose(1, 2),
        is_causal,
        rpb,
        variant=context.unfused_variant(query),
    )
    return scores.movedim(-2, 1)


def av(
    rank: int,
    attn: Tensor,
    value: Tensor,
    kernel_size: PerAxis[int],
    dilation: PerAxis[int] = 1,
    additional_values: Tensor | None = None,
    is_causal: PerAxis[bool] | None = False,
) -> Tensor:
    """Output `[B, H, *X, D]` from weights `[B, H, *X, slots + M]`; additional values are `[B, H, M, D]`.

    Raises:
        NotImplementedError: nested tensors.
        TypeError, ValueError: as `vicinal.unfused.neighborhood_av`.
    """
    _check(rank, attn, value)
    output = neighborhood_av(
        _to_last(attn),
        _to_last(value),
        kernel_size,
        dilation,
        None if additional_values is None else additional_values.transpose(1, 2),
        is_causal,
        variant=context.unfused_variant(value),
    )
    return output.movedim(-2, 1)


def _to_last(t: Tensor) -> Tensor:
    return t.movedim(1, -2)


def _check(rank: int, *tensors: Tensor) -> None:
    for t in tensors:
        if t.is_nested:
            raise NotImplementedError("vicinal's unfused operators take no nested tensors")
        if t.ndim != rank + 3:
            raise ValueError(f"tensors must be [batch, heads, {rank} lengths, dim], got {list(t.shape)}")
