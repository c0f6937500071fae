"""`natten.utils` of all versions: checks and small helpers that other packages import."""

from __future__ import annotations

import logging
from math import prod
from typing import Any

import torch
from torch import Tensor

from vicinal import checks
from vicinal.compat.types import KernelSchedule
from vicinal.geometry.neighborhood import Neighborhood, PerAxis, per_axis
from vicinal.problem import Inputs

_SCHEDULES = {
    "non": KernelSchedule.NonPersistent,
    "coop": KernelSchedule.WarpSpecializedCooperative,
    "pp": KernelSchedule.WarpSpecializedPingpong,
}

# --- one value or one per axis, as one tuple -------------------------------------------------------------------------
# All raise TypeError or ValueError for a value of the wrong type, count or range.


def check_input_size_arg(na_dim: int, input_size: PerAxis[int]) -> tuple[int, ...]:
    """Lengths as a tuple."""
    return _integers("input_size", input_size, na_dim)


def check_kernel_size_arg(na_dim: int, kernel_size: PerAxis[int]) -> tuple[int | None, ...]:
    """Window as a tuple."""
    return Neighborhood.of(na_dim, kernel_size).window


def check_stride_arg(na_dim: int, stride: PerAxis[int] | None) -> tuple[int, ...]:
    """Stride as a tuple; None is 1."""
    return Neighborhood.of(na_dim, None, stride).stride


def check_dilation_arg(na_dim: int, dilation: PerAxis[int] | None) -> tuple[int, ...]:
    """Dilation as a tuple; None is 1."""
    return Neighborhood.of(na_dim, None, 1, dilation).dilation


def check_causal_arg(na_dim: int, is_causal: PerAxis[bool] | None) -> tuple[bool, ...]:
    """Causality as a tuple; None is False."""
    return Neighborhood.of(na_dim, None, 1, 1, is_causal).causal


def check_all_args(na_dim: int, **arguments: Any) -> tuple[Any, ...]:
    """Window, stride (from 0.20 on), dilation and causality as tuples."""
    n = Neighborhood.of(na_dim, **arguments)
    return (n.window, n.stride, n.dilation, n.causal) if "stride" in arguments else (n.window, n.dilation, n.causal)


def get_num_na_weights(kernel_size: tuple[int, ...]) -> int:
    """Keys of a window."""
    return prod(kernel_size)


def check_tiling_config(na_dim: int, tiling_config: Any) -> Any:
    """The configuration, if it is a pair of tuples of `na_dim`.

    Raises:
        ValueError: it is not.
    """
    return _tiling(na_dim, tiling_config, 2, tiling_config)


def check_backward_tiling_config(na_dim: int, tiling_config: Any) -> Any:
    """The configuration, if it is three tuples of `na_dim` and a bool.

    Raises:
        ValueError: it is not.
    """
    shapes = tiling_config[:-1] if isinstance(tiling_config, tuple) and isinstance(tiling_config[-1], bool) else ()
    return _tiling(na_dim, tiling_config, 3, shapes)


def check_tile_shape(tile_shape: Any) -> tuple[int, ...]:
    """A tile's shape, of at most three lengths, as a tuple."""
    return _integers("tile_shape", tuple(tile_shape), min(len(tile_shape), 3))


def check_kernel_schedule(kernel_schedule: str | KernelSchedule | None) -> KernelSchedule | None:
    """The schedule of a name.

    Raises:
        ValueError: an unknown name.
    """
    if kernel_schedule is None or isinstance(kernel_schedule, KernelSchedule):
        return kernel_schedule
    if kernel_schedule not in _SCHEDULES:
        raise ValueError(f"kernel_schedule must be one of {', '.join(map(repr, _SCHEDULES))}, got {kernel_schedule!r}")
    return _SCHEDULES[kernel_schedule]


# --- checks of tensors -----------------------------------------------------------------------------------------------


def na_tensor_checks(query: Tensor, key: Tensor, value: Tensor, **rules: Any) -> bool:
    """Whether tensors fit neighborhood attention; `rules` as `must_match_head_dims`.

    Raises:
        TypeError, ValueError: they do not, and `raise_error` is not False.
    """
    return _fits(rules, query, value, lambda: checks.check_inputs(Inputs(query, key, value), query.ndim - 3))


def fmha_tensor_checks(query: Tensor, key: Tensor, value: Tensor, **rules: Any) -> bool:
    """Whether tensors fit plain attention; as `na_tensor_checks`."""
    return _fits(rules, query, value, lambda: checks.check_attention_inputs(query, key, value))


def additional_kv_tensor_checks(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    add_key: Tensor | None = None,
    add_value: Tensor | None = None,
    **rules: Any,
) -> None:
    """That additional keys and values fit; where these are missing (0.20.0), `key` and `value` are the additional ones.

    Raises:
        TypeError, ValueError: they do not.
    """
    if add_key is None and add_value is None:
        key, value, add_key, add_value = query, query, key, value
    assert key is not None
    assert value is not None
    _fits(
        rules, query, value, lambda: checks.check_inputs(Inputs(query, key, value, add_key, add_value), query.ndim - 3)
    )


def check_args_against_input(
    input_tensor: Tensor, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any
) -> None:
    """That windows fit the tokens of `[B, *X, H, D]`.

    Raises:
        ValueError: they do not.
    """
    lengths = input_tensor.shape[1:-2]
    Neighborhood.of(len(lengths), kernel_size, stride, dilation, is_causal).resolve(lengths)


def is_self_attention(
    input_tensor: Tensor, kernel_size: Any, is_causal: Any, has_additional_attention: bool = False
) -> bool:
    """Whether every window is the whole of `[B, *X, H, D]`; a causal one counts in one dimension, with nothing else."""
    lengths = input_tensor.shape[1:-2]
    if len(lengths) == 1 and not has_additional_attention:
        is_causal = False
    return Neighborhood.of(len(lengths), kernel_size, 1, 1, is_causal).is_whole(lengths)


def check_additional_keys(input_tensor: Tensor, additional_keys: Tensor | None) -> int:
    """How many additional keys `[B, H, M, D]` there are for `[B, H, *X, D]`.

    Raises:
        ValueError: their shape does not fit.
    """
    if additional_keys is None:
        return 0
    batch, heads, *_, dim = input_tensor.shape
    return _additional("additional_keys", additional_keys, (batch, heads, dim))


def check_additional_values(
    attn_tensor: Tensor, additional_values: Tensor | None, value: Tensor, expected_attn_weights: int
) -> int:
    """How many additional values `[B, H, M, D]` the weights `[B, H, *X, slots + M]` are for.

    Raises:
        ValueError: their shape or the number of weights does not fit.
    """
    extra = 0
    if additional_values is not None:
        extra = _additional("additional_values", additional_values, (*attn_tensor.shape[:2], value.shape[-1]))
    if attn_tensor.shape[-1] != expected_attn_weights + extra:
        raise ValueError(
            f"attn_tensor must have {expected_attn_weights + extra} weights per token, got {attn_tensor.shape[-1]}"
        )
    return extra


def make_attn_tensor_from_input(input_tensor: Tensor, attention_dim: int) -> Tensor:
    """An uninitialised tensor of the input's kind with `attention_dim` for its last dimension."""
    return torch.empty(
        (*input_tensor.shape[:-1], attention_dim),
        device=input_tensor.device,
        dtype=input_tensor.dtype,
        requires_grad=input_tensor.requires_grad,
    )


# --- sequences of varying length -------------------------------------------------------------------------------------


def generate_varlen_parameters(
    query: Tensor, key: Tensor, value: Tensor, seqlens_Q: Tensor | None = None, seqlens_KV: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None, int, int]:
    """Cumulative and largest lengths of sequences packed along the tokens, for `attention`.

    Args:
        query, key, value: `[1, N, H, D]`.
        seqlens_Q, seqlens_KV: int32 `[sequences]` on query's device; both, or none where lengths do not vary.

    Returns:
        cumulative lengths of queries and of keys, int32 `[sequences + 1]` from 0, and their largest lengths.

    Raises:
        TypeError, ValueError: arguments that do not fit.
    """
    if (seqlens_Q is None) != (seqlens_KV is None):
        raise ValueError("seqlens_Q and seqlens_KV must be given together, one is None")
    if seqlens_Q is None or seqlens_KV is None:
        return None, None, 0, 0
    if query.shape[0] != 1 or key.shape[0] != 1 or value.shape[0] != 1:
        raise ValueError(f"query must have batch 1 where lengths vary (sequences are packed), got {query.shape[0]}")
    for name, lengths in (("seqlens_Q", seqlens_Q), ("seqlens_KV", seqlens_KV)):
        if not isinstance(lengths, Tensor) or lengths.dtype != torch.int32:
            raise TypeError(f"{name} must be an int32 tensor, got {getattr(lengths, 'dtype', type(lengths).__name__)}")
        if lengths.ndim != 1 or lengths.shape != seqlens_Q.shape or len(lengths) < 1 or lengths.device != query.device:
            raise ValueError(
                f"{name} must be [sequences], the same for queries and keys, on {query.device}, "
                f"got {list(lengths.shape)} on {lengths.device}"
            )
    queries, keys = (torch.nn.functional.pad(n.cumsum(0, dtype=torch.int32), (1, 0)) for n in (seqlens_Q, seqlens_KV))
    return queries, keys, int(seqlens_Q.max()), int(seqlens_KV.max())


def varlen_tensor_checks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seqlens_Q: Tensor | None = None,
    seqlens_KV: Tensor | None = None,
    cumulative_seqlen_Q: Tensor | None = None,
    cumulative_seqlen_KV: Tensor | None = None,
    max_seqlen_Q: int | None = None,
    max_seqlen_KV: int | None = None,
) -> tuple[Tensor | None, Tensor | None, int, int]:
    """What `generate_varlen_parameters` gives, or what was given if it is complete.

    Raises:
        TypeError, ValueError: arguments that do not fit.
    """
    cumulative = cumulative_seqlen_Q is not None or cumulative_seqlen_KV is not None or max_seqlen_Q or max_seqlen_KV
    if seqlens_Q is not None or seqlens_KV is not None or not cumulative:
        return generate_varlen_parameters(query, key, value, seqlens_Q, seqlens_KV)
    if cumulative_seqlen_Q is None or cumulative_seqlen_KV is None or max_seqlen_Q is None or max_seqlen_KV is None:
        raise ValueError(
            "cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q, max_seqlen_KV must be given together"
        )
    return cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q, max_seqlen_KV


# --- small helpers ---------------------------------------------------------------------------------------------------


def log_or_raise_error(msg: str, raise_error: bool = False, exception: type[Exception] = RuntimeError) -> None:
    """Raises, or logs for debugging."""
    if raise_error:
        raise exception(msg)
    logging.getLogger("natten").debug(msg)


def get_device_cc(device: torch.device | None = None) -> int:
    """The CUDA device's compute capability, as 90; 0 for other devices."""
    if not torch.cuda.is_available() or (device is not None and not is_cuda(device)):
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def is_cuda(device: torch.device) -> bool:
    """Whether it is an NVIDIA GPU."""
    return torch.device(device).type == "cuda" and torch.version.cuda is not None


def is_rocm(device: torch.device) -> bool:
    """Whether it is an AMD GPU."""
    return torch.device(device).type == "cuda" and torch.version.hip is not None


def is_cpu(device: torch.device) -> bool:
    """Whether it is a CPU."""
    return torch.device(device).type == "cpu"


def is_full(dtype: torch.dtype) -> bool:
    """Whether it is float32."""
    return dtype == torch.float32


def is_half(dtype: torch.dtype) -> bool:
    """Whether it is float16 or bfloat16."""
    return dtype in (torch.float16, torch.bfloat16)


def is_fp8(dtype: torch.dtype) -> bool:
    """Whether it is one of the 8-bit dtypes."""
    return dtype in (torch.float8_e4m3fn, torch.float8_e5m2)


def ceil_div_int(x: int, y: int) -> int:
    """`x / y`, rounded up."""
    return -(-x // y)


def ceil_div_tuple(X: tuple[int, ...], Y: tuple[int, ...]) -> tuple[int, ...]:
    """`X / Y` per element, rounded up."""
    return tuple(ceil_div_int(x, y) for x, y in zip(X, Y, strict=True))


def mul_tuple(X: tuple[int, ...], Y: tuple[int, ...]) -> tuple[int, ...]:
    """`X * Y` per element."""
    return tuple(x * y for x, y in zip(X, Y, strict=True))


def sub_tuple(X: tuple[int, ...], Y: tuple[int, ...]) -> tuple[int, ...]:
    """`X - Y` per element."""
    return tuple(x - y for x, y in zip(X, Y, strict=True))


def _integers(name: str, value: Any, count: int) -> tuple[int, ...]:
    values: tuple[int, ...] = per_axis(name, value, count)
    if not all(type(v) is int and v > 0 for v in values):
        raise ValueError(f"{name} must be a positive integer or {count} of them, got {value!r}")
    return values


def _tiling(na_dim: int, config: Any, count: int, shapes: Any) -> Any:
    fits = isinstance(shapes, tuple) and len(shapes) == count
    if not fits or not all(isinstance(shape, (tuple, list)) and len(shape) == na_dim for shape in shapes):
        raise ValueError(f"tiling_config must have {count} tuples of {na_dim} integers, got {config!r}")
    return config


def _additional(name: str, t: Tensor, like: tuple[int, ...]) -> int:
    if t.ndim != 4 or (t.shape[0], t.shape[1], t.shape[3]) != tuple(like):
        raise ValueError(f"{name} must be [{like[0]}, {like[1]}, M, {like[2]}], got {list(t.shape)}")
    return t.shape[2]


def _fits(rules: dict[str, Any], query: Tensor, value: Tensor, check: Any) -> bool:
    try:
        check()
        if rules.get("must_match_head_dims") and value.shape[-1] != query.shape[-1]:
            raise ValueError(f"value must have query's head_dim {query.shape[-1]}, got {value.shape[-1]}")
        if not rules.get("supports_gqa_mqa", True) and value.shape[-2] != query.shape[-2]:
            raise ValueError(f"value must have query's {query.shape[-2]} heads, got {value.shape[-2]}")
    except (TypeError, ValueError):
        if rules.get("raise_error", True):
            raise
        return False
    return True
