"""`na1d`, `na2d`, `na3d` and `neighborhood_attention` of a map that several ranks hold, each its shard of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vicinal.autocast import autocast
from vicinal.calls import neighborhood as neighborhood_of
from vicinal.checks import check_scale, check_switch
from vicinal.distributed.context_parallel import attend
from vicinal.distributed.layout import Layout
from vicinal.geometry.neighborhood import Boundary, Neighborhood, PerAxis
from vicinal.problem import Inputs


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    neighborhood: Neighborhood | Sequence[Neighborhood],
    *,
    layout: Layout,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    rpb: Tensor | None = None,
    key_mask: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
    overlap: bool | None = None,
) -> Any:
    """`vicinal.neighborhood_attention` of a map that the ranks of a layout hold together; all of them call it.

    Each rank sends what others need of its keys and values, and attends with its own queries: what it returns is its
    shard of what one process would return for the whole map.

    Args:
        query: this rank's shard `[B, *X, H, D]`, X the lengths of `layout.shard`.
        key: its shard `[B, *X, Hkv, D]`.
        value: its shard `[B, *X, Hkv, Dv]`.
        neighborhood: one `Neighborhood` for all heads, or one per query head; windows are those of the whole map.
        layout: who holds what.
        key_mask: `[B, *X]` of booleans, this rank's shard: False for tokens that are not there.
        scale, additional_keys, additional_values, rpb, return_lse, backend: as of `vicinal.neighborhood_attention`.
            What all ranks have (additional keys and values, the bias) gets on each rank its share of the gradient, to
            be summed over ranks as the gradients of parameters are.
        overlap: whether queries that need no halo, if they are enough, get a launch of their own while it travels.
            None: where that has been seen to be faster (`Layout.least_inside`).

    Returns:
        output `[B, *X, H, Dv]`, this rank's shard; with `return_lse` also the log-sum-exp `[B, *X, H]`. Both carry
        gradients, once.

    Raises:
        TypeError, ValueError: as `vicinal.neighborhood_attention`; ValueError also where tensors are not the shard,
            and, on every rank, where ranks do not agree in what they call.
    """
    neighborhoods = (neighborhood,) if isinstance(neighborhood, Neighborhood) else tuple(neighborhood)
    for n in neighborhoods:
        if not isinstance(n, Neighborhood):
            raise TypeError(f"neighborhood must be a Neighborhood or a sequence of them, got {type(n).__name__}")
    if not isinstance(layout, Layout):
        raise TypeError(f"layout must be a Layout, got {layout!r} of type {type(layout).__name__}")
    check_switch("return_lse", return_lse)
    if overlap is not None:
        check_switch("overlap", overlap)
    if scale is not None:
        scale = check_scale("scale", scale)
    inputs = Inputs(*autocast(Inputs(query, key, value, additional_keys, additional_values, rpb, key_mask)))
    output, lse = attend(inputs, neighborhoods, scale, layout, backend, overlap)
    return (output, lse) if return_lse else output


def na1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis[int | None],
    stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1,
    is_causal: PerAxis[bool] | None = False,
    *,
    layout: Layout,
    boundary: PerAxis[Boundary] = "shift",
    **rest: Any,
) -> Any:
    """`vicinal.na1d` of a sequence that the ranks of a layout hold together; see `neighborhood_attention` here."""
    window = neighborhood_of(1, kernel_size, stride, dilation, is_causal, boundary)
    return neighborhood_attention(query, key, value, window, layout=layout, **rest)


def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis[int | None],
    stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1,
    is_causal: PerAxis[bool] | None = False,
    *,
    layout: Layout,
    boundary: PerAxis[Boundary] = "shift",
    **rest: Any,
) -> Any:
    """`vicinal.na2d` of a map that the ranks of a layout hold together; see `neighborhood_attention` here."""
    window = neighborhood_of(2, kernel_size, stride, dilation, is_causal, boundary)
    return neighborhood_attention(query, key, value, window, layout=layout, **rest)


def na3d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: PerAxis[int | None],
    stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1,
    is_causal: PerAxis[bool] | None = False,
    *,
    layout: Layout,
    boundary: PerAxis[Boundary] = "shift",
    **rest: Any,
) -> Any:
    """`vicinal.na3d` of a volume that the ranks of a layout hold together; see `neighborhood_attention` here."""
    window = neighborhood_of(3, kernel_size, stride, dilation, is_causal, boundary)
    return neighborhood_attention(query, key, value, window, layout=layout, **rest)
