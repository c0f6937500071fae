"""NATTEN's global settings and questions about the device (`natten.context`), answered for vicinal.

Settings that choose an implementation are honoured (`use_fused_na`, `use_gemm_na`); settings that tune kernels which
vicinal does not have are remembered, and say once that they have no effect.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor


class MemoryUsagePreference(Enum):
    """How much memory a backward pass may use for speed."""

    Default = 0
    Strict = 1
    Unrestricted = 2


@dataclass
class _Settings:
    fused: bool = False
    gemm: bool = True
    deterministic: bool = False
    kv_parallel: bool = False
    memory: MemoryUsagePreference = MemoryUsagePreference.Default


_settings = _Settings()
_said: set[str] = set()
_PREFERENCES = {
    "default": MemoryUsagePreference.Default,
    "strict": MemoryUsagePreference.Strict,
    "unrestricted": MemoryUsagePreference.Unrestricted,
}


def reset() -> None:
    """All settings as at import; warnings are given anew."""
    global _settings
    _settings = _Settings()
    _said.clear()


def unfused_variant(tensor: Tensor) -> str | None:
    """The variant of the unfused operators that the settings ask for; None for the best."""
    return "naive" if tensor.device.type == "cuda" and not _settings.gemm else None


# --- honoured ------------------------------------------------------------------------------------------------------


def use_fused_na(
    mode: bool = True, kv_parallel: bool = True, use_flex_attention: bool = False, force_flex_attention: bool = False
) -> None:
    """Whether modules run fused attention. Flex attention is never used: vicinal has kernels of its own."""
    if use_flex_attention or force_flex_attention:
        _no_effect("use_flex_attention", 'pass backend="flex" to vicinal.na*d for FlexAttention')
    _settings.fused = bool(mode)


def is_fused_na_enabled() -> bool:
    """Whether modules run fused attention."""
    return _settings.fused


def use_gemm_na(mode: bool = True) -> None:
    """Whether the unfused operators use the GEMM kernels (else the naive ones), on CUDA."""
    _settings.gemm = bool(mode)


def is_gemm_na_enabled() -> bool:
    """Whether the unfused operators use the GEMM kernels."""
    return _settings.gemm


def enable_gemm_na() -> bool:
    """`use_gemm_na(True)`; the setting."""
    use_gemm_na(True)
    return True


def disable_gemm_na() -> bool:
    """`use_gemm_na(False)`; the setting."""
    use_gemm_na(False)
    return False


use_fna = use_fused_na
is_fna_enabled = is_fused_na_enabled


# --- remembered, without effect ------------------------------------------------------------------------------------


def use_autotuner(
    forward_pass: bool | None = None,
    backward_pass: bool | None = None,
    thorough_mode_forward: bool | None = None,
    thorough_mode_backward: bool | None = None,
    warmup_steps_forward: int | None = None,
    warmup_steps_backward: int | None = None,
    steps_forward: int | None = None,
    steps_backward: int | None = None,
) -> None:
    """There is no such tuner here: says so where it is switched on."""
    if forward_pass or backward_pass:
        _no_effect("use_autotuner", "vicinal chooses tiles by itself (see `vicinal explain` and `vicinal tune`)")


def disable_autotuner() -> None:
    """Nothing to switch off."""


def is_autotuner_enabled() -> bool:
    """False: there is no such tuner here."""
    return False


is_autotuner_enabled_for_forward = is_autotuner_enabled
is_autotuner_enabled_for_backward = is_autotuner_enabled
is_autotuner_thorough_for_forward = is_autotuner_enabled
is_autotuner_thorough_for_backward = is_autotuner_enabled


def use_deterministic_algorithms(mode: bool = True) -> None:
    """Remembered; vicinal follows `torch.use_deterministic_algorithms`."""
    if mode and not torch.are_deterministic_algorithms_enabled():
        _no_effect("use_deterministic_algorithms", "call torch.use_deterministic_algorithms, which vicinal follows")
    _settings.deterministic = bool(mode)


def are_deterministic_algorithms_enabled() -> bool:
    """What `use_deterministic_algorithms` was given."""
    return _settings.deterministic


def use_kv_parallelism_in_fused_na(mode: bool = True) -> None:
    """Remembered; vicinal's backward pass has no such mode."""
    if mode:
        _no_effect("use_kv_parallelism_in_fused_na", "vicinal's backward pass has no such mode")
    _settings.kv_parallel = bool(mode)


def is_kv_parallelism_in_fused_na_enabled() -> bool:
    """What `use_kv_parallelism_in_fused_na` was given."""
    return _settings.kv_parallel


def set_memory_usage_preference(pref: str = "default") -> None:
    """Remembered; vicinal's backward pass takes no memory for speed.

    Raises:
        ValueError: not one of "default", "strict", "unrestricted".
    """
    if pref not in _PREFERENCES:
        raise ValueError(f"pref must be one of {', '.join(map(repr, _PREFERENCES))}, got {pref!r}")
    if pref != "default":
        _no_effect("set_memory_usage_preference", "vicinal's backward pass takes no memory for speed")
    _settings.memory = _PREFERENCES[pref]


def get_memory_usage_preference() -> MemoryUsagePreference:
    """What `set_memory_usage_preference` was given."""
    return _settings.memory


def is_memory_usage_default() -> bool:
    """Whether the preference is "default"."""
    return _settings.memory == MemoryUsagePreference.Default


def is_memory_usage_strict() -> bool:
    """Whether the preference is "strict"."""
    return _settings.memory == MemoryUsagePreference.Strict


def is_memory_usage_unrestricted() -> bool:
    """Whether the preference is "unrestricted"."""
    return _settings.memory == MemoryUsagePreference.Unrestricted


def use_tiled_na(mode: bool = True) -> None:
    """There are no tiled naive kernels here: says so where they are asked for."""
    if mode:
        _no_effect("use_tiled_na", "vicinal has no tiled naive kernels")


def is_tiled_na_enabled() -> bool:
    """False: there are no tiled naive kernels here."""
    return False


def use_tf32_in_gemm_na(mode: bool = True) -> None:
    """Says where it differs from torch's setting, which vicinal follows."""
    if bool(mode) != torch.backends.cuda.matmul.allow_tf32:
        _no_effect("use_tf32_in_gemm_na", "set torch.backends.cuda.matmul.allow_tf32, which vicinal follows")


def is_tf32_in_gemm_na_enabled() -> bool:
    """Torch's setting, which vicinal follows."""
    return torch.backends.cuda.matmul.allow_tf32


def enable_tf32() -> bool:
    """`use_tf32_in_gemm_na(True)`; the setting in force."""
    use_tf32_in_gemm_na(True)
    return is_tf32_in_gemm_na_enabled()


def disable_tf32() -> bool:
    """`use_tf32_in_gemm_na(False)`; the setting in force."""
    use_tf32_in_gemm_na(False)
    return is_tf32_in_gemm_na_enabled()


def enable_tiled_na() -> bool:
    """`use_tiled_na(True)`; False, as there are none."""
    use_tiled_na(True)
    return False


def disable_tiled_na() -> bool:
    """`use_tiled_na(False)`; False."""
    return False


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    """Says that it has no effect: vicinal has kernels of its own."""
    if mode:
        _no_effect("allow_flex_compile", "vicinal has kernels of its own")


def allow_flex_compile_backprop(mode: bool = True) -> None:
    """Says that it has no effect: vicinal has kernels of its own."""
    if mode:
        _no_effect("allow_flex_compile_backprop", "vicinal has kernels of its own")


def disable_flex_compile() -> None:
    """Nothing to switch off."""


def disable_flex_compile_backprop() -> None:
    """Nothing to switch off."""


def is_flex_compile_allowed() -> bool:
    """False: FlexAttention is not used."""
    return False


def is_flex_compile_backprop_allowed() -> bool:
    """False: FlexAttention is not used."""
    return False


# --- questions about the device ------------------------------------------------------------------------------------


def has_cuda() -> bool:
    """Whether there is a CUDA device."""
    return torch.cuda.is_available()


def has_half(device_index: Any = None) -> bool:
    """Whether float16 runs on the CUDA device."""
    return has_cuda()


def has_bfloat(device_index: Any = None) -> bool:
    """Whether bfloat16 runs on the CUDA device."""
    return has_cuda() and _capability(device_index) >= 80


def has_gemm(device_index: Any = None) -> bool:
    """Whether the GEMM kernels run on the CUDA device."""
    return has_cuda() and _capability(device_index) >= 80


def has_fused_na(device_index: Any = None) -> bool:
    """True: vicinal has fused attention for every device."""
    return True


def has_fp64_gemm(device_index: Any = None) -> bool:
    """False: the GEMM kernels have no float64."""
    return False


has_fna = has_fused_na
has_tf32_gemm = has_gemm
has_fp32_gemm = has_gemm


# --- which names a generation has ----------------------------------------------------------------------------------

_BOTH = [
    "are_deterministic_algorithms_enabled",
    "get_memory_usage_preference",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "set_memory_usage_preference",
    "use_deterministic_algorithms",
    "use_kv_parallelism_in_fused_na",
]
OLD = [
    *_BOTH,
    "disable_autotuner",
    "disable_gemm_na",
    "disable_tf32",
    "disable_tiled_na",
    "enable_gemm_na",
    "enable_tf32",
    "enable_tiled_na",
    "has_bfloat",
    "has_cuda",
    "has_fna",
    "has_fp32_gemm",
    "has_fp64_gemm",
    "has_fused_na",
    "has_gemm",
    "has_half",
    "has_tf32_gemm",
    "is_autotuner_enabled",
    "is_autotuner_enabled_for_backward",
    "is_autotuner_enabled_for_forward",
    "is_autotuner_thorough_for_backward",
    "is_autotuner_thorough_for_forward",
    "is_fna_enabled",
    "is_fused_na_enabled",
    "is_gemm_na_enabled",
    "is_tf32_in_gemm_na_enabled",
    "is_tiled_na_enabled",
    "use_autotuner",
    "use_fna",
    "use_fused_na",
    "use_gemm_na",
    "use_tf32_in_gemm_na",
    "use_tiled_na",
]
NEW = [
    *_BOTH,
    "allow_flex_compile",
    "allow_flex_compile_backprop",
    "disable_flex_compile",
    "disable_flex_compile_backprop",
    "is_flex_compile_allowed",
    "is_flex_compile_backprop_allowed",
]


def _capability(device_index: Any) -> int:
    major, minor = torch.cuda.get_device_capability(device_index)
    return 10 * major + minor


def _no_effect(name: str, instead: str) -> None:
    if name not in _said:
        _said.add(name)
        warnings.warn(f"natten.{name} has no effect in vicinal: {instead}", stacklevel=3)
