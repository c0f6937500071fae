"""The public functions: what they take and return, and the neighborhood that they speak of.

`na1d`, `na2d` and `na3d` take the arguments of NATTEN 0.21 in its order; what is new here is keyword-only.
`neighborhood_attention` is the same for any rank, from `Neighborhood` objects, also one per head.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vicinal.checks import check_attention_inputs
from vicinal.geometry.neighborhood import Boundary, Neighborhood, PerAxis, per_axis
from vicinal.problem import Inputs, lse_dtype
from vicinal.routing import route

Output = Tensor | tuple[Tensor, Tensor]


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    neighborhood: Neighborhood | Sequence[Neighborhood],
    *,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Output:
    """Neighborhood attention for any rank from 1 to 3, with one neighborhood for all heads or one per head.

    Args:
        query: `[B, *X, H, D]`, float32, float64, bfloat16 or float16; `X` are the spatial lengths.
        key: `[B, *X, Hkv, D]`; `H` is a multiple of `Hkv` (grouped-query attention).
        value: `[B, *X, Hkv, Dv]`.
        neighborhood: one `Neighborhood` of the tokens' rank, or a sequence of `H` of them, one per query head.
        scale: factor of the scores; None means `D ** -0.5`.
        additional_keys: `[B, M, Hkv, D]`, attended by every query next to its window, in the same softmax.
        additional_values: `[B, M, Hkv, Dv]`, given together with `additional_keys`.
        rpb: relative positional bias `[H, 2*K0-1, ...]`, added to the scores at `(key - query) + K - 1` per axis, in
            units of the dilation.
        return_lse: also return the log-sum-exp of the scores.
        backend: a backend's name; None takes the first that can run the problem (see `vicinal explain`).

    Returns:
        output `[B, *X, H, Dv]` in the inputs' dtype; with `return_lse` also the log-sum-exp `[B, *X, H]` in float32
        (float64 for float64 inputs). Both carry gradients.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or windows do not fit, or the backend cannot run the problem.
    """
    neighborhoods = (neighborhood,) if isinstance(neighborhood, Neighborhood) else tuple(neighborhood)
    inputs = _autocast(Inputs(query, key, value, additional_keys, additional_values, rpb))
    output, lse = route(inputs, neighborhoods, scale, backend)
    return (output, lse) if return_lse else output


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    backend: str | None = None,
    q_tile_size: int | None = None,
    kv_tile_size: int | None = None,
    backward_q_tile_size: int | None = None,
    backward_kv_tile_size: int | None = None,
    backward_kv_splits: int | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: str | None = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> Output:
    """Plain attention: every query attends to every key, also of another length.

    Args:
        query: `[B, N, H, D]`.
        key: `[B, M, Hkv, D]`; `H` is a multiple of `Hkv`.
        value: `[B, M, Hkv, Dv]`.
        scale: factor of the scores; None means `D ** -0.5`.
        backend: as in `neighborhood_attention`; only where `N == M`.
        return_lse: also return the log-sum-exp. Where `N != M` this takes O(N * M) memory.
        q_tile_size, kv_tile_size, backward_q_tile_size, backward_kv_tile_size, backward_kv_splits,
            backward_use_pt_reduction, run_persistent_kernel, kernel_schedule, torch_compile: accepted for NATTEN's
            sake and ignored, with one warning.

    Returns:
        output `[B, N, H, Dv]`; with `return_lse` also the log-sum-exp `[B, N, H]` in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: as `neighborhood_attention`.
    """
    _warn_ignored(
        _ATTENTION_KNOBS,
        q_tile_size,
        kv_tile_size,
        backward_q_tile_size,
        backward_kv_tile_size,
        backward_kv_splits,
        backward_use_pt_reduction,
        run_persistent_kernel,
        kernel_schedule,
        torch_compile,
    )
    query, key, value, *_ = _autocast(Inputs(query, key, value))
    check_attention_inputs(query, key, value)
    if query.shape[1] == key.shape[1]:
        whole = Neighborhood.of(1, None)
        return neighborhood_attention(query, key, value, whole, scale=scale, return_lse=return_lse, backend=backend)
    if backend is not None:
        raise ValueError(
            f"backend {backend!r} cannot be chosen where key has another length than query, "
            f"got {query.shape[1]} and {key.shape[1]} tokens"
        )
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if return_lse:
        return _dense(query, key, value, scale)
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


def merge_attentions(
    outputs: Sequence[Tensor],
    lse_tensors: Sequence[Tensor],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[Tensor, Tensor]:
    """Merges attentions of the same queries over different keys into the attention over all of them.

    Args:
        outputs: at least one output, each `[B, *X, H, Dv]`.
        lse_tensors: their log-sum-exps, each `[B, *X, H]`.
        torch_compile, use_autograd_fix: accepted for NATTEN's sake; gradients are exact without them.

    Returns:
        the merged output `[B, *X, H, Dv]` in the outputs' dtype and the merged log-sum-exp `[B, *X, H]`. With
        weights `w = exp(lse - merged lse)`, the output is their weighted sum. Gradients flow through both.

    Raises:
        TypeError, ValueError: counts, shapes, dtypes or devices do not match.
    """
    if len(outputs) < 1 or len(outputs) != len(lse_tensors):
        raise ValueError(
            f"outputs and lse_tensors must have the same length, at least 1, got {len(outputs)} and {len(lse_tensors)}"
        )
    for i, (output, lse) in enumerate(zip(outputs, lse_tensors)):
        if not isinstance(output, Tensor) or not isinstance(lse, Tensor):
            raise TypeError(f"outputs[{i}] and lse_tensors[{i}] must be tensors, got {type(output)}, {type(lse)}")
        if output.shape != outputs[0].shape or output.dtype != outputs[0].dtype:
            raise ValueError(
                f"outputs must agree in shape and dtype, outputs[0] is {list(outputs[0].shape)} {outputs[0].dtype}, "
                f"outputs[{i}] is {list(output.shape)} {output.dtype}"
            )
        if lse.shape != output.shape[:-1]:
            raise ValueError(f"lse_tensors[{i}] must have shape {list(output.shape[:-1])}, got {list(lse.shape)}")
    lses = torch.stack([lse.to(lse_dtype(outputs[0].dtype)) for lse in lse_tensors])
    merged_lse = torch.logsumexp(lses, 0)
    # A part with no keys at all has lse = -inf; where every part is so, weights must be 0, not NaN.
    finite = torch.where(torch.isinf(merged_lse), torch.zeros_like(merged_lse), merged_lse)
    weights = torch.exp(lses - finite).unsqueeze(-1)
    merged = sum(w * output.to(weights.dtype) for w, output in zip(weights, outputs))
    assert isinstance(merged, Tensor)
    return merged.to(outputs[0].dtype), merged_lse


def _na(rank: int) -> Callable[..., Output]:
    """`na{rank}d`: one signature for the three."""

    def na(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: PerAxis[int | None],
        stride: PerAxis[int] = 1,
        dilation: PerAxis[int] = 1,
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
    ) -> Output:
        _warn_ignored(
            _KNOBS,
            attention_kwargs,
            q_tile_shape,
            kv_tile_shape,
            backward_q_tile_shape,
            backward_kv_tile_shape,
            backward_kv_splits,
            backward_use_pt_reduction,
            run_persistent_kernel,
            kernel_schedule,
            torch_compile,
        )
        return neighborhood_attention(
            query,
            key,
            value,
            _neighborhood(rank, kernel_size, stride, dilation, is_causal, boundary),
            scale=scale,
            additional_keys=additional_keys,
            additional_values=additional_values,
            rpb=rpb,
            return_lse=return_lse,
            backend=backend,
        )

    axes = ", ".join(f"X{i}" for i in range(rank))
    na.__name__ = na.__qualname__ = f"na{rank}d"
    na.__doc__ = f"""{rank}-D neighborhood attention: each query attends to the window of keys nearest to it.

    Args:
        query: `[B, {axes}, H, D]`, float32, float64, bfloat16 or float16.
        key: `[B, {axes}, Hkv, D]`; `H` is a multiple of `Hkv` (grouped-query attention).
        value: `[B, {axes}, Hkv, Dv]`.
        kernel_size: window, keys per query; None means the whole axis. This and the next three: one value for all
            axes or a tuple of {rank}.
        stride: queries that share a window, from 1 to `kernel_size` (generalized neighborhood attention).
        dilation: distance between neighboring keys; `kernel_size * dilation` must not exceed the axis, unless a border
            cuts the window (causal or clipped).
        is_causal: whether queries see only keys at or before their own position.
        scale: factor of the scores; None means `D ** -0.5`.
        additional_keys: `[B, M, Hkv, D]`, attended by every query in the same softmax.
        additional_values: `[B, M, Hkv, Dv]`.
        backend: one of vicinal's backends, or None for the first that can run the problem.
        attention_kwargs, q_tile_shape, kv_tile_shape, backward_q_tile_shape, backward_kv_tile_shape,
            backward_kv_splits, backward_use_pt_reduction, run_persistent_kernel, kernel_schedule, torch_compile:
            accepted for NATTEN's sake and ignored, with one warning.
        return_lse: also return the log-sum-exp of the scores.
        rpb: relative positional bias `[H, {", ".join(f"2*K{i}-1" for i in range(rank))}]`.
        boundary: "shift" (at a border the window moves inward) or "clip" (it is cut), per axis.

    Returns:
        output `[B, {axes}, H, Dv]` in the inputs' dtype; with `return_lse` also the log-sum-exp `[B, {axes}, H]` in
        float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or windows do not fit, or the backend cannot run the problem.

    Source: arXiv 2204.07143 (window), 2209.15001 (dilation), 2504.16922 (stride); see docs/concepts.md.
    """
    return na


na1d = _na(1)
na2d = _na(2)
na3d = _na(3)


def _dense(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention with its log-sum-exp by the formula, differentiable."""
    dtype = lse_dtype(query.dtype)
    repeat = query.shape[2] // key.shape[2]
    k, v = (t.to(dtype).repeat_interleave(repeat, 2) for t in (key, value))
    scores = scale * torch.einsum("bnhd,bmhd->bnhm", query.to(dtype), k)
    out = torch.einsum("bnhm,bmhd->bnhd", scores.softmax(-1), v)
    return out.to(query.dtype), scores.logsumexp(-1)


def _neighborhood(rank: int, *values: Any) -> Neighborhood:
    """`Neighborhood.of(rank, *values)`, made once for the same values in eager calls."""
    if torch.compiler.is_compiling():
        return Neighborhood.of(rank, *values)
    try:
        for value in values:
            if type(value) not in _SCALARS:
                return _known_neighborhood(rank, *(x for value in values for x in per_axis("", value, rank)))
        return _known_neighborhood(rank, *values)
    except (TypeError, ValueError):
        return Neighborhood.of(rank, *values)  # raises again, by the argument's name


_SCALARS = (int, bool, str, type(None))


@lru_cache(maxsize=4096, typed=True)  # typed: 3.0 and True are not taken for 3 and 1
def _known_neighborhood(rank: int, *values: Any) -> Neighborhood:
    """From one value of each kind, or from one for every axis of each, flattened: lists cannot be looked up."""
    if len(values) > _KINDS:
        values = tuple(values[i : i + rank] for i in range(0, len(values), rank))
    return Neighborhood.of(rank, *values)


_KINDS = 5  # window, stride, dilation, causal, boundary


def _autocast(inputs: Inputs) -> Inputs:
    """The inputs in autocast's dtype where it is on, as torch's own attention does; float64 is left alone."""
    if not isinstance(inputs.query, Tensor):
        return inputs
    device = inputs.query.device.type
    if not torch.is_autocast_enabled(device):
        return inputs
    dtype = torch.get_autocast_dtype(device)
    cast = [t.to(dtype) if isinstance(t, Tensor) and t.dtype in _AUTOCAST else t for t in inputs]
    return Inputs(*cast)  # type: ignore[arg-type]


_AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)
_warned: set[str] = set()


def _warn_ignored(defaults: Mapping[str, object], *given: object) -> None:
    """One warning, per set of knobs, that performance knobs of NATTEN have no meaning here."""
    if given == tuple(defaults.values()):
        return
    names = ", ".join(name for (name, default), value in zip(defaults.items(), given) if value != default)
    if names not in _warned:
        _warned.add(names)
        warnings.warn(f"vicinal ignores {names}: it chooses tiles by itself (see `vicinal explain`)", stacklevel=3)


_SHARED_KNOBS = {
    "backward_kv_splits": None,
    "backward_use_pt_reduction": False,
    "run_persistent_kernel": True,
    "kernel_schedule": None,
    "torch_compile": False,
}
_TILES = ("q_tile", "kv_tile", "backward_q_tile", "backward_kv_tile")
_KNOBS = {"attention_kwargs": None, **{f"{tile}_shape": None for tile in _TILES}, **_SHARED_KNOBS}
_ATTENTION_KNOBS = {**{f"{tile}_size": None for tile in _TILES}, **_SHARED_KNOBS}
