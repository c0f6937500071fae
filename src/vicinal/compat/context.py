"""NATTEN's global settings and questions about the device (`natten.context`), answered for vicinal.

Settings are remembered and read back. Those that choose an implementation are honoured (`use_fused_na`,
`use_gemm_na`); those that tune kernels which vicinal does not have say once that they have no effect.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor

from vicinal.warning import warn


class MemoryUsagePreference(Enum):
    """How much memory a backward pass may use for speed."""

    Default = 0
    Strict = 1
    Unrestricted = 2


class NattenContext:
    """The settings, of all versions."""

    is_deterministic_mode_enabled: bool = False
    is_fused_na_enabled: bool = False
    is_kv_parallelism_enabled: bool = False  # True from 0.20 on, see `reset`
    use_flex_attention: bool = False
    force_flex_attention: bool = False
    training_memory_preference: MemoryUsagePreference = MemoryUsagePreference.Default
    flex_compile_allowed: bool = False
    flex_compile_backprop_allowed: bool = False
    gemm: bool = True
    tiled: bool = True

    @staticmethod
    def reset() -> None:
        """All settings as at import."""
        _restore(NattenContext)


class AutotunerContext:
    """The settings of NATTEN's tuner, which has no counterpart here."""

    enabled_for_forward: bool = False
    enabled_for_backward: bool = False
    thorough_mode_forward: bool = False
    thorough_mode_backward: bool = False
    warmup_steps_forward: int = 5
    warmup_steps_backward: int = 5
    steps_forward: int = 5
    steps_backward: int = 5

    @staticmethod
    def reset() -> None:
        """All settings as at import."""
        _restore(AutotunerContext)


_DEFAULTS: dict[type, dict[str, Any]] = {
    owner: {name: getattr(owner, name) for name in owner.__annotations__} for owner in (NattenContext, AutotunerContext)
}
_said: set[str] = set()


def reset(kv_parallelism: bool = False) -> None:
    """All settings as at the import of NATTEN; warnings are given anew.

    Args:
        kv_parallelism: the default of a setting which differs between versions.
    """
    _DEFAULTS[NattenContext]["is_kv_parallelism_enabled"] = kv_parallelism
    NattenContext.reset()
    AutotunerContext.reset()
    _said.clear()


def unfused_variant(tensor: Tensor) -> str | None:
    """The variant of the unfused operators that the settings ask for; None for the best."""
    return "naive" if tensor.device.type == "cuda" and not NattenContext.gemm else None


def say_once(what: str, message: str) -> None:
    """A warning at the caller's line, the first time for `what`."""
    if what not in _said:
        _said.add(what)
        warn(message)


# --- honoured ------------------------------------------------------------------------------------------------------


def use_fused_na(
    mode: bool = True, kv_parallel: bool = True, use_flex_attention: bool = False, force_flex_attention: bool = False
) -> None:
    """Whether modules run fused attention. Where flex attention is asked for, it is vicinal's own fused attention."""
    mode = bool(mode)
    if mode and (use_flex_attention or force_flex_attention):
        _no_effect("use_flex_attention", "its fused attention takes every problem that FlexAttention takes")
    NattenContext.is_fused_na_enabled = mode
    NattenContext.is_kv_parallelism_enabled = mode and bool(kv_parallel)
    NattenContext.use_flex_attention = mode and bool(use_flex_attention)
    NattenContext.force_flex_attention = mode and bool(force_flex_attention)


def is_fused_na_enabled() -> bool:
    """Whether modules run fused attention."""
    return NattenContext.is_fused_na_enabled


def use_flex_attention() -> None:
    """`use_fused_na` with flex attention."""
    use_fused_na(use_flex_attention=True)


def should_use_flex_attention() -> bool:
    """Whether `use_flex_attention` was called."""
    return NattenContext.use_flex_attention


def force_flex_attention() -> None:
    """`use_fused_na` with flex attention for every problem."""
    use_fused_na(use_flex_attention=True, force_flex_attention=True)


def should_force_flex_attention() -> bool:
    """Whether `force_flex_attention` was called."""
    return NattenContext.force_flex_attention


def use_gemm_na(mode: bool = True) -> None:
    """Whether the unfused operators use the GEMM kernels (else the naive ones), on CUDA."""
    NattenContext.gemm = bool(mode)


def is_gemm_na_enabled() -> bool:
    """Whether the unfused operators use the GEMM kernels."""
    return NattenContext.gemm


def enable_gemm_na() -> bool:
    """`use_gemm_na(True)`; the setting."""
    use_gemm_na(True)
    return is_gemm_na_enabled()


def disable_gemm_na() -> bool:
    """`use_gemm_na(False)`; the setting."""
    use_gemm_na(False)
    return is_gemm_na_enabled()


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
    """Remembered (what is None stays as it is); there is no such tuner here."""
    if forward_pass or backward_pass:
        _no_effect("use_autotuner", "it chooses tiles by itself (see `vicinal explain` and `vicinal tune`)")
    given = {
        "enabled_for_forward": forward_pass,
        "enabled_for_backward": backward_pass,
        "thorough_mode_forward": thorough_mode_forward,
        "thorough_mode_backward": thorough_mode_backward,
        "warmup_steps_forward": warmup_steps_forward,
        "warmup_steps_backward": warmup_steps_backward,
        "steps_forward": steps_forward,
        "steps_backward": steps_backward,
    }
    for name, value in given.items():
        if value is not None:
            setattr(AutotunerContext, name, value)


def disable_autotuner() -> None:
    """`use_autotuner` with False for every mode."""
    use_autotuner(False, False, False, False)


def is_autotuner_enabled() -> bool:
    """What `use_autotuner` was given, for either pass."""
    return AutotunerContext.enabled_for_forward or AutotunerContext.enabled_for_backward


def is_autotuner_enabled_for_forward() -> bool:
    """What `use_autotuner` was given."""
    return AutotunerContext.enabled_for_forward


def is_autotuner_enabled_for_backward() -> bool:
    """What `use_autotuner` was given."""
    return AutotunerContext.enabled_for_backward


def is_autotuner_thorough_for_forward() -> bool:
    """What `use_autotuner` was given."""
    return AutotunerContext.thorough_mode_forward


def is_autotuner_thorough_for_backward() -> bool:
    """What `use_autotuner` was given."""
    return AutotunerContext.thorough_mode_backward


def use_deterministic_algorithms(mode: bool = True) -> None:
    """Remembered; vicinal follows `torch.use_deterministic_algorithms`."""
    if mode and not torch.are_deterministic_algorithms_enabled():
        _no_effect("use_deterministic_algorithms", "call torch.use_deterministic_algorithms, which it follows")
    NattenContext.is_deterministic_mode_enabled = bool(mode)


def are_deterministic_algorithms_enabled() -> bool:
    """What `use_deterministic_algorithms` was given."""
    return NattenContext.is_deterministic_mode_enabled


def use_kv_parallelism_in_fused_na(mode: bool = True) -> None:
    """Remembered; vicinal's backward pass has no such mode."""
    if mode:
        _no_effect("use_kv_parallelism_in_fused_na", "its backward pass has no such mode")
    NattenContext.is_kv_parallelism_enabled = bool(mode)


def is_kv_parallelism_in_fused_na_enabled() -> bool:
    """What `use_kv_parallelism_in_fused_na` or `use_fused_na` was given."""
    return NattenContext.is_kv_parallelism_enabled


def set_memory_usage_preference(pref: str = "default") -> None:
    """Remembered; vicinal's backward pass takes no memory for speed.

    Raises:
        ValueError: not one of "default", "strict", "unrestricted".
    """
    preferences = {preference.name.lower(): preference for preference in MemoryUsagePreference}
    if pref not in preferences:
        raise ValueError(f"pref must be one of {', '.join(map(repr, preferences))}, got {pref!r}")
    if pref != "default":
        _no_effect("set_memory_usage_preference", "its backward pass takes no memory for speed")
    NattenContext.training_memory_preference = preferences[pref]


def get_memory_usage_preference() -> MemoryUsagePreference:
    """What `set_memory_usage_preference` was given."""
    return NattenContext.training_memory_preference


def is_memory_usage_default() -> bool:
    """Whether the preference is "default"."""
    return get_memory_usage_preference() == MemoryUsagePreference.Default


def is_memory_usage_strict() -> bool:
    """Whether the preference is "strict"."""
    return get_memory_usage_preference() == MemoryUsagePreference.Strict


def is_memory_usage_unrestricted() -> bool:
    """Whether the preference is "unrestricted"."""
    return get_memory_usage_preference() == MemoryUsagePreference.Unrestricted


def use_tiled_na(mode: bool = True) -> None:
    """Remembered; there are no tiled naive kernels here."""
    NattenContext.tiled = bool(mode)


def is_tiled_na_enabled() -> bool:
    """What `use_tiled_na` was given."""
    return NattenContext.tiled


def enable_tiled_na() -> bool:
    """`use_tiled_na(True)`; the setting."""
    use_tiled_na(True)
    return is_tiled_na_enabled()


def disable_tiled_na() -> bool:
    """`use_tiled_na(False)`; the setting."""
    use_tiled_na(False)
    return is_tiled_na_enabled()


def use_tf32_in_gemm_na(mode: bool = True) -> None:
    """Says where it differs from torch's setting, which vicinal follows."""
    if bool(mode) != torch.backends.cuda.matmul.allow_tf32:
        _no_effect("use_tf32_in_gemm_na", "set torch.backends.cuda.matmul.allow_tf32, which it follows")


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


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    """Remembered; vicinal has kernels of its own."""
    if mode:
        _no_effect("allow_flex_compile", "it has kernels of its own")
    NattenContext.flex_compile_allowed = bool(mode)
    NattenContext.flex_compile_backprop_allowed = bool(mode and backprop)


def allow_flex_compile_backprop(mode: bool = True) -> None:
    """`allow_flex_compile` for the backward pass, the forward's setting as it is."""
    allow_flex_compile(is_flex_compile_allowed(), mode)


def disable_flex_compile() -> None:
    """`allow_flex_compile(False)`."""
    allow_flex_compile(False)


def disable_flex_compile_backprop() -> None:
    """`allow_flex_compile_backprop(False)`."""
    allow_flex_compile_backprop(False)


def is_flex_compile_allowed() -> bool:
    """What `allow_flex_compile` was given."""
    return NattenContext.flex_compile_allowed


def is_flex_compile_backprop_allowed() -> bool:
    """What `allow_flex_compile` was given for the backward pass."""
    return NattenContext.flex_compile_backprop_allowed


# --- questions about the device ------------------------------------------------------------------------------------


def get_device_cc(device_index: Any = None) -> int:
    """The CUDA device's compute capability, as 90."""
    major, minor = torch.cuda.get_device_capability(device_index)
    return 10 * major + minor


def has_cuda() -> bool:
    """Whether there is a CUDA device."""
    return torch.cuda.is_available()


def has_half(device_index: Any = None) -> bool:
    """Whether float16 runs on the CUDA device."""
    return has_cuda()


def has_gemm(device_index: Any = None) -> bool:
    """Whether the GEMM kernels run on the CUDA device."""
    return has_cuda() and get_device_cc(device_index) >= 80


def has_bfloat(device_index: Any = None) -> bool:
    """Whether bfloat16 runs on the CUDA device."""
    return has_gemm(device_index)


def has_tf32_gemm(device_index: Any = None) -> bool:
    """Whether the GEMM kernels run in float32 on the CUDA device."""
    return has_gemm(device_index)


def has_fp64_gemm(device_index: Any = None) -> bool:
    """False: the GEMM kernels have no float64."""
    return False


def has_fna(device_index: Any = None) -> bool:
    """True: vicinal has fused attention for every device."""
    return True


def _restore(owner: type) -> None:
    for name, value in _DEFAULTS[owner].items():
        setattr(owner, name, value)


def _no_effect(name: str, why: str) -> None:
    say_once(name, f"natten.{name} has no effect in vicinal: {why}")
