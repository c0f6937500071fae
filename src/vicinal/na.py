"""`na1d`, `na2d` and `na3d`: the arguments of NATTEN 0.21 in its order; what is new here is given by name.

To type checkers, what follows `additional_values` is given by name too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, overload

from torch import Tensor

from vicinal.calls import Knobs, attend, neighborhood, windows
from vicinal.geometry.neighborhood import Boundary, PerAxis
from vicinal.problem import Inputs

if TYPE_CHECKING:
    from typing_extensions import Unpack

KNOBS = Knobs(
    {
        "attention_kwargs": None,
        "q_tile_shape": None,
        "kv_tile_shape": None,
        "backward_q_tile_shape": None,
        "backward_kv_tile_shape": None,
        "backward_kv_splits": None,
        "backward_use_pt_reduction": False,
        "run_persistent_kernel": True,
        "kernel_schedule": None,
        "torch_compile": False,
    }
)


Window: TypeAlias = PerAxis[int | None] | Tensor


class Rest(TypedDict, total=False):
    """What may follow `additional_values`, but for `return_lse`."""

    attention_kwargs: dict[str, Any] | None
    backend: str | None
    q_tile_shape: tuple[int, ...] | None
    kv_tile_shape: tuple[int, ...] | None
    backward_q_tile_shape: tuple[int, ...] | None
    backward_kv_tile_shape: tuple[int, ...] | None
    backward_kv_splits: tuple[int, ...] | None
    backward_use_pt_reduction: bool
    run_persistent_kernel: bool
    kernel_schedule: str | None
    torch_compile: bool
    rpb: Tensor | None
    boundary: PerAxis[Boundary]
    clamp: bool
    key_mask: Tensor | None
    max_kernel_size: PerAxis[int] | None


@overload
def na1d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: Window, stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1, is_causal: PerAxis[bool] | None = False, scale: float | None = None,
    additional_keys: Tensor | None = None, additional_values: Tensor | None = None,
    *, return_lse: Literal[False] = False, **rest: Unpack[Rest],
) -> Tensor: ...  # fmt: skip


@overload
def na1d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: Window, stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1, is_causal: PerAxis[bool] | None = False, scale: float | None = None,
    additional_keys: Tensor | None = None, additional_values: Tensor | None = None,
    *, return_lse: Literal[True], **rest: Unpack[Rest],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def na1d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: Window, stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1, is_causal: PerAxis[bool] | None = False, scale: float | None = None,
    additional_keys: Tensor | None = None, additional_values: Tensor | None = None,
    *, return_lse: bool, **rest: Unpack[Rest],
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def na1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Window,
    stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1,
    is_causal: PerAxis[bool] | None = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    attention_kwargs: dict[str, Any] | None = None,
    backend: str | None = None,
    q_tile_shape: tuple[int, ...] | None = None,
    kv_tile_shape: tuple[int, ...] | None = None,
    backward_q_tile_shape: tuple[int, ...] | None = None,
    backward_kv_tile_shape: tuple[int, ...] | None = None,
    backward_kv_splits: tuple[int, ...] | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: str | None = None,
    torch_compile: bool = False,
    return_lse: bool = False,
    *,
    rpb: Tensor | None = None,
    boundary: PerAxis[Boundary] = "shift",
    clamp: bool = False,
    key_mask: Tensor | None = None,
    max_kernel_size: PerAxis[int] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """1-D neighborhood attention: each query attends to the window of keys nearest to it.

    Args:
        query: `[B, X0, H, D]`, float32, float64, bfloat16 or float16.
        key: `[B, X0, Hkv, D]`; `H` is a multiple of `Hkv` (grouped-query attention).
            Lengths other than query's are those of another grid over the same extent.
        value: `[B, X0, Hkv, Dv]`.
        kernel_size: window, keys per query; None means the whole axis. This and the next three: one value, or one per
            axis. Or a tensor of odd integers, one per token or per token and head: see `max_kernel_size`.
        stride: queries that share a window, from 1 to `kernel_size` (generalized neighborhood attention).
        dilation: distance between neighboring keys; `kernel_size * dilation` must not exceed the axis, unless a border
            cuts the window (causal or clipped).
        is_causal: whether queries see only keys at or before their own position.
        scale: factor of the scores, a real number; None means `D ** -0.5`.
        additional_keys: `[B, M, Hkv, D]`, attended by every query in the same softmax.
        additional_values: `[B, M, Hkv, Dv]`.
        backend: one of vicinal's backends, or None for the first that can run the problem.
        attention_kwargs, q_tile_shape, ..., torch_compile: settings of NATTEN's kernels; ignored, with one warning.
        return_lse: also return the log-sum-exp of the scores.
        rpb: relative positional bias `[H, 2*K0-1]`.
        boundary: "shift" (at a border the window moves inward), "clip" (it is cut) or "wrap" (there is none: the axis
            is a circle), per axis.
        clamp: take the largest window that fits where an axis is too short, `min(kernel_size, length // dilation)`, and
            of `rpb` the middle.
        key_mask: `[B, X0]` or `[X0]` of booleans, False for tokens that are not there.
            No query attends to them, and what their key and value hold, NaN too, is never read as a number. A query
            left without keys gets output 0 and log-sum-exp minus infinity; so does the query of a masked token where
            it is not finite.
        max_kernel_size: the largest window along each axis where `kernel_size` is a tensor, `[B, *X]` or `[B, *X, H]`:
            each query has its own window, along every axis of `min(size, max_kernel_size)` keys; `stride` must be 1.

    Returns:
        output `[B, X0, H, Dv]` in the inputs' dtype; with `return_lse` also the log-sum-exp `[B, X0, H]` in
        float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or windows do not fit, or the backend cannot run the problem.

    Source: arXiv 2204.07143 (window), 2209.15001 (dilation), 2504.16922 (stride); see docs/concepts.md.
    """
    KNOBS.ignore(
        attention_kwargs, q_tile_shape, kv_tile_shape, backward_q_tile_shape, backward_kv_tile_shape,
        backward_kv_splits, backward_use_pt_reduction, run_persistent_kernel, kernel_schedule, torch_compile,
    )  # fmt: skip
    most, sizes = windows(kernel_size, max_kernel_size)
    window = neighborhood(1, most, stride, dilation, is_causal, boundary)
    inputs = Inputs(query, key, value, additional_keys, additional_values, rpb, key_mask, sizes)
    return attend(inputs, (window,), scale, return_lse, backend, clamp)


@overload
def na2d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: Window, stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1, is_causal: PerAxis[bool] | None = False, scale: float | None = None,
    additional_keys: Tensor | None = None, additional_values: Tensor | None = None,
    *, return_lse: Literal[False] = False, **rest: Unpack[Rest],
) -> Tensor: ...  # fmt: skip


@overload
def na2d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: Window, stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1, is_causal: PerAxis[bool] | None = False, scale: float | None = None,
    additional_keys: Tensor | None = None, additional_values: Tensor | None = None,
    *, return_lse: Literal[True], **rest: Unpack[Rest],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def na2d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: Window, stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1, is_causal: PerAxis[bool] | None = False, scale: float | None = None,
    additional_keys: Tensor | None = None, additional_values: Tensor | None = None,
    *, return_lse: bool, **rest: Unpack[Rest],
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Window,
    stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1,
    is_causal: PerAxis[bool] | None = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    attention_kwargs: dict[str, Any] | None = None,
    backend: str | None = None,
    q_tile_shape: tuple[int, ...] | None = None,
    kv_tile_shape: tuple[int, ...] | None = None,
    backward_q_tile_shape: tuple[int, ...] | None = None,
    backward_kv_tile_shape: tuple[int, ...] | None = None,
    backward_kv_splits: tuple[int, ...] | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: str | None = None,
    torch_compile: bool = False,
    return_lse: bool = False,
    *,
    rpb: Tensor | None = None,
    boundary: PerAxis[Boundary] = "shift",
    clamp: bool = False,
    key_mask: Tensor | None = None,
    max_kernel_size: PerAxis[int] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """2-D neighborhood attention: each query attends to the window of keys nearest to it.

    Args:
        query: `[B, X0, X1, H, D]`, float32, float64, bfloat16 or float16.
        key: `[B, X0, X1, Hkv, D]`; `H` is a multiple of `Hkv` (grouped-query attention).
            Lengths other than query's are those of another grid over the same extent.
        value: `[B, X0, X1, Hkv, Dv]`.
        kernel_size: window, keys per query; None means the whole axis. This and the next three: one value, or one per
            axis. Or a tensor of odd integers, one per token or per token and head: see `max_kernel_size`.
        stride: queries that share a window, from 1 to `kernel_size` (generalized neighborhood attention).
        dilation: distance between neighboring keys; `kernel_size * dilation` must not exceed the axis, unless a border
            cuts the window (causal or clipped).
        is_causal: whether queries see only keys at or before their own position.
        scale: factor of the scores, a real number; None means `D ** -0.5`.
        additional_keys: `[B, M, Hkv, D]`, attended by every query in the same softmax.
        additional_values: `[B, M, Hkv, Dv]`.
        backend: one of vicinal's backends, or None for the first that can run the problem.
        attention_kwargs, q_tile_shape, ..., torch_compile: settings of NATTEN's kernels; ignored, with one warning.
        return_lse: also return the log-sum-exp of the scores.
        rpb: relative positional bias `[H, 2*K0-1, 2*K1-1]`.
        boundary: "shift" (at a border the window moves inward), "clip" (it is cut) or "wrap" (there is none: the axis
            is a circle), per axis.
        clamp: take the largest window that fits where an axis is too short, `min(kernel_size, length // dilation)`, and
            of `rpb` the middle.
        key_mask: `[B, X0, X1]` or `[X0, X1]` of booleans, False for tokens that are not there.
            No query attends to them, and what their key and value hold, NaN too, is never read as a number. A query
            left without keys gets output 0 and log-sum-exp minus infinity; so does the query of a masked token where
            it is not finite.
        max_kernel_size: the largest window along each axis where `kernel_size` is a tensor, `[B, *X]` or `[B, *X, H]`:
            each query has its own window, along every axis of `min(size, max_kernel_size)` keys; `stride` must be 1.

    Returns:
        output `[B, X0, X1, H, Dv]` in the inputs' dtype; with `return_lse` also the log-sum-exp `[B, X0, X1, H]` in
        float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or windows do not fit, or the backend cannot run the problem.

    Source: arXiv 2204.07143 (window), 2209.15001 (dilation), 2504.16922 (stride); see docs/concepts.md.
    """
    KNOBS.ignore(
        attention_kwargs, q_tile_shape, kv_tile_shape, backward_q_tile_shape, backward_kv_tile_shape,
        backward_kv_splits, backward_use_pt_reduction, run_persistent_kernel, kernel_schedule, torch_compile,
    )  # fmt: skip
    most, sizes = windows(kernel_size, max_kernel_size)
    window = neighborhood(2, most, stride, dilation, is_causal, boundary)
    inputs = Inputs(query, key, value, additional_keys, additional_values, rpb, key_mask, sizes)
    return attend(inputs, (window,), scale, return_lse, backend, clamp)


@overload
def na3d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: Window, stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1, is_causal: PerAxis[bool] | None = False, scale: float | None = None,
    additional_keys: Tensor | None = None, additional_values: Tensor | None = None,
    *, return_lse: Literal[False] = False, **rest: Unpack[Rest],
) -> Tensor: ...  # fmt: skip


@overload
def na3d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: Window, stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1, is_causal: PerAxis[bool] | None = False, scale: float | None = None,
    additional_keys: Tensor | None = None, additional_values: Tensor | None = None,
    *, return_lse: Literal[True], **rest: Unpack[Rest],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def na3d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: Window, stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1, is_causal: PerAxis[bool] | None = False, scale: float | None = None,
    additional_keys: Tensor | None = None, additional_values: Tensor | None = None,
    *, return_lse: bool, **rest: Unpack[Rest],
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def na3d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Window,
    stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1,
    is_causal: PerAxis[bool] | None = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    attention_kwargs: dict[str, Any] | None = None,
    backend: str | None = None,
    q_tile_shape: tuple[int, ...] | None = None,
    kv_tile_shape: tuple[int, ...] | None = None,
    backward_q_tile_shape: tuple[int, ...] | None = None,
    backward_kv_tile_shape: tuple[int, ...] | None = None,
    backward_kv_splits: tuple[int, ...] | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: str | None = None,
    torch_compile: bool = False,
    return_lse: bool = False,
    *,
    rpb: Tensor | None = None,
    boundary: PerAxis[Boundary] = "shift",
    clamp: bool = False,
    key_mask: Tensor | None = None,
    max_kernel_size: PerAxis[int] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """3-D neighborhood attention: each query attends to the window of keys nearest to it.

    Args:
        query: `[B, X0, X1, X2, H, D]`, float32, float64, bfloat16 or float16.
        key: `[B, X0, X1, X2, Hkv, D]`; `H` is a multiple of `Hkv` (grouped-query attention).
            Lengths other than query's are those of another grid over the same extent.
        value: `[B, X0, X1, X2, Hkv, Dv]`.
        kernel_size: window, keys per query; None means the whole axis. This and the next three: one value, or one per
            axis. Or a tensor of odd integers, one per token or per token and head: see `max_kernel_size`.
        stride: queries that share a window, from 1 to `kernel_size` (generalized neighborhood attention).
        dilation: distance between neighboring keys; `kernel_size * dilation` must not exceed the axis, unless a border
            cuts the window (causal or clipped).
        is_causal: whether queries see only keys at or before their own position.
        scale: factor of the scores, a real number; None means `D ** -0.5`.
        additional_keys: `[B, M, Hkv, D]`, attended by every query in the same softmax.
        additional_values: `[B, M, Hkv, Dv]`.
        backend: one of vicinal's backends, or None for the first that can run the problem.
        attention_kwargs, q_tile_shape, ..., torch_compile: settings of NATTEN's kernels; ignored, with one warning.
        return_lse: also return the log-sum-exp of the scores.
        rpb: relative positional bias `[H, 2*K0-1, 2*K1-1, 2*K2-1]`.
        boundary: "shift" (at a border the window moves inward), "clip" (it is cut) or "wrap" (there is none: the axis
            is a circle), per axis.
        clamp: take the largest window that fits where an axis is too short, `min(kernel_size, length // dilation)`, and
            of `rpb` the middle.
        key_mask: `[B, X0, X1, X2]` or `[X0, X1, X2]` of booleans, False for tokens that are not there.
            No query attends to them, and what their key and value hold, NaN too, is never read as a number. A query
            left without keys gets output 0 and log-sum-exp minus infinity; so does the query of a masked token where
            it is not finite.
        max_kernel_size: the largest window along each axis where `kernel_size` is a tensor, `[B, *X]` or `[B, *X, H]`:
            each query has its own window, along every axis of `min(size, max_kernel_size)` keys; `stride` must be 1.

    Returns:
        output `[B, X0, X1, X2, H, Dv]` in the inputs' dtype; with `return_lse` also the log-sum-exp
        `[B, X0, X1, X2, H]` in float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or windows do not fit, or the backend cannot run the problem.

    Source: arXiv 2204.07143 (window), 2209.15001 (dilation), 2504.16922 (stride); see docs/concepts.md.
    """
    KNOBS.ignore(
        attention_kwargs, q_tile_shape, kv_tile_shape, backward_q_tile_shape, backward_kv_tile_shape,
        backward_kv_splits, backward_use_pt_reduction, run_persistent_kernel, kernel_schedule, torch_compile,
    )  # fmt: skip
    most, sizes = windows(kernel_size, max_kernel_size)
    window = neighborhood(3, most, stride, dilation, is_causal, boundary)
    inputs = Inputs(query, key, value, additional_keys, additional_values, rpb, key_mask, sizes)
    return attend(inputs, (window,), scale, return_lse, backend, clamp)
