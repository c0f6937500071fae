"""The public API of NATTEN's versions: for each name what makes it, and its argument lists by version.

A key is `module.name`, without `natten.`; `{123}` stands for one name per rank. An argument list holds from its version
on until the next; `GONE` takes the name away. `{sizes}` is "kernel_size, dilation", and with three dimensions also the
depth's, apart. The module `""` is `natten` itself.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias

from vicinal.compat import context, flex, flops, modules, operations, types, utils
from vicinal.compat.adapters import Maker, as_it_is, autograd_function, function, module_class

GONE = None
Lists: TypeAlias = dict[str, str | None]
HAS_LIBNATTEN = True  # "are there compiled kernels": code that asks falls back to something slower when told no


class Row(NamedTuple):
    """A name (see the module's text), what makes it, its argument lists, and other modules that have it too."""

    key: str
    make: Maker
    lists: Lists
    also: tuple[str, ...] = ()


def _listed(source: object, module: str, names: str, since: str, until: str | None = None, *also: str) -> list[Row]:
    """Names that have one meaning as long as there are any: taken from `source` as they are."""
    lists: Lists = {since: ""} if until is None else {since: "", until: GONE}
    return [Row(f"{module}.{name}", as_it_is(source), lists, also) for name in names.split()]


# --- unfused operators, until 0.17 ---------------------------------------------------------------------------------

_SCORES, _SUMS = function(operations.scores), function(operations.weighted_sums)
_QK = {"0.15.0": "query, key, {sizes}", "0.15.1": "query, key, {sizes}, additional_keys=None"}
_AV = {"0.15.0": "attn, value, {sizes}", "0.15.1": "attn, value, {sizes}, additional_values=None"}
_RPB = "query, key, rpb, {sizes}"
OPERATORS = [
    Row(
        "functional.natten{12}dqkrpb", _SCORES, {"0.14.1": "query, key, rpb, dilation", "0.14.5": _RPB, "0.17.5": GONE}
    ),
    Row("functional.natten{3}dqkrpb", _SCORES, {"0.15.0": _RPB, "0.17.5": GONE}),
    Row(
        "functional.natten{12}dqk",
        _SCORES,
        {"0.14.6": "query, key, {sizes}", **_QK, "0.17.0": "query, key, {sizes}", "0.17.5": GONE},
    ),
    Row("functional.natten{3}dqk", _SCORES, {**_QK, "0.17.0": "query, key, {sizes}", "0.17.5": GONE}),
    Row(
        "functional.natten{12}dav",
        _SUMS,
        {
            "0.14.1": "attn, value, dilation",
            "0.14.6": "attn, value, {sizes}",
            **_AV,
            "0.17.0": "attn, value, {sizes}",
            "0.17.5": GONE,
        },
    ),
    Row("functional.natten{3}dav", _SUMS, {**_AV, "0.17.0": "attn, value, {sizes}", "0.17.5": GONE}),
    Row(
        "functional.na{123}d_qk_with_bias",
        _SCORES,
        {
            "0.15.0": "query, key, bias, {sizes}",
            "0.15.1": "query, key, bias, {sizes}, additional_keys=None",
            "0.17.0": GONE,
        },
    ),
    Row(
        "functional.na{123}d_qk",
        _SCORES,
        {
            **_QK,
            "0.17.0": "query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None",
            "0.20.0": GONE,
        },
    ),
    Row(
        "functional.na{12}d_av",
        _SUMS,
        {
            **_AV,
            "0.17.0": "attn, value, kernel_size, dilation=1, additional_values=None, is_causal=False",
            "0.20.0": GONE,
        },
    ),
    Row(
        "functional.na{3}d_av",
        _SUMS,
        {
            **_AV,
            "0.17.0": "attn, value, kernel_size, dilation, additional_values=None, is_causal=False",
            "0.20.0": GONE,
        },
    ),
]

_SCORES, _SUMS = autograd_function(operations.scores), autograd_function(operations.weighted_sums)
_SIZES_017 = "kernel_size_, dilation_, is_causal_"
OPERATORS += [
    Row(
        "functional.NATTEN{12}DQKRPBFunction",
        _SCORES,
        {"0.14.1": "query, key, rpb, dilation", "0.14.5": _RPB, "0.15.0": GONE},
    ),
    Row(
        "functional.NATTEN{12}DAVFunction",
        _SUMS,
        {"0.14.1": "attn, value, dilation", "0.14.6": "attn, value, {sizes}", "0.15.0": GONE},
    ),
    Row(
        "functional.NeighborhoodAttention{123}DQKAutogradFunction",
        _SCORES,
        {
            "0.15.0": "query, key, bias, {sizes}",
            "0.15.1": "query, key, bias, additional_key, {sizes}",
            "0.17.0": f"query, key, bias, additional_key, {_SIZES_017}",
            "0.20.0": GONE,
        },
    ),
    Row(
        "functional.NeighborhoodAttention{123}DAVAutogradFunction",
        _SUMS,
        {
            "0.15.0": "attn, value, {sizes}",
            "0.15.1": "attn, value, additional_value, {sizes}",
            "0.17.0": f"attn, value, additional_value, {_SIZES_017}",
            "0.20.0": GONE,
        },
    ),
]

# --- fused attention -----------------------------------------------------------------------------------------------

_NA_017 = "query, key, value, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None"
_EXTRA_017 = "additional_keys=None, additional_values=None, xformers_kwargs=None"
FUSED = [
    Row(
        "functional.FusedNeighborhoodAttention{123}D",
        autograd_function(operations.fused),
        {
            "0.17.0": f"query, key, value, bias, {_SIZES_017}, scale, tiling_config_, tiling_config_backward_",
            "0.20.0": GONE,
        },
    ),
    Row(
        "functional.na{123}d",
        function(operations.fused),
        {"0.17.0": _NA_017, "0.17.4": f"{_NA_017}, {_EXTRA_017}", "0.20.0": GONE},
    ),
    Row(
        "experimental.na{123}d",
        function(operations.fused),
        {"0.17.4": f"{_NA_017}, {_EXTRA_017}", "0.20.0": GONE},
    ),
    Row(
        "flex.flex_na{123}d",
        function(operations.fused),
        {"0.17.5": f"query, key, value, kernel_size, dilation=1, is_causal=False, {_EXTRA_017}", "0.20.0": GONE},
    ),
    *_listed(flex, "flex", "can_run_flex_attention get_flex_attention_compiled get_na_flex_mask", "0.17.5", "0.20.0"),
]

_COMMON = (
    "backward_kv_splits=None, backward_use_pt_reduction=False, run_persistent_kernel=True, kernel_schedule=None, "
    "torch_compile=False"
)
_NA = (
    "query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, "
    "additional_values=None, attention_kwargs=None, backend=None, q_tile_shape=None, kv_tile_shape=None, "
    f"backward_q_tile_shape=None, backward_kv_tile_shape=None, {_COMMON}"
)
_KNOBS = (
    "backend=None, q_tile_size=None, kv_tile_size=None, backward_q_tile_size=None, backward_kv_tile_size=None, "
    f"{_COMMON}, return_lse=False"
)
_VARLEN = (
    "seqlens_Q=None, seqlens_KV=None, cumulative_seqlen_Q=None, cumulative_seqlen_KV=None, max_seqlen_Q=None, "
    "max_seqlen_KV=None"
)
_NA_LISTS: Lists = {
    "0.20.0": f"{_NA}, try_fuse_additional_kv=False",
    "0.21.0": _NA,
    "0.21.5": f"{_NA}, return_lse=False",
}
_MERGE = "outputs, lse_tensors, torch_compile=True"
HEADS_LAST = [
    Row("functional.na{123}d", function(operations.na), _NA_LISTS, ("",)),
    Row("functional.neighborhood_attention_generic", function(operations.na), _NA_LISTS),
    Row(
        "functional.attention",
        function(operations.attention),
        {
            "0.20.0": f"query, key, value, scale=None, {_KNOBS}",
            "0.21.5": f"query, key, value, is_causal=False, scale=None, {_VARLEN}, {_KNOBS}",
        },
        ("",),
    ),
    Row("functional.merge_attentions", function(operations.merged_output), {"0.20.0": _MERGE, "0.21.5": GONE}, ("",)),
    Row(
        "functional.merge_attentions",
        function(operations.merge_attentions),
        {"0.21.5": f"{_MERGE}, use_autograd_fix=True"},
        ("",),
    ),
]

# --- modules -------------------------------------------------------------------------------------------------------

_AFTER = "qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0"
_MODULE_014 = f"dim, kernel_size, num_heads, {_AFTER}, dilation=None"
_MODULE_015 = f"dim, num_heads, kernel_size, dilation=1, bias=True, {_AFTER}"
_MODULE_017 = f"dim, num_heads, kernel_size, dilation=1, is_causal=False, rel_pos_bias=False, {_AFTER}"
_MODULE_020 = (
    "num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, qk_scale=None, proj_drop=0.0"
)
_MODULE_LISTS: Lists = {"0.20.0": f"dim, {_MODULE_020}", "0.20.1": f"embed_dim, {_MODULE_020}"}
_PADDED_3D = f"dim, num_heads, kernel_size, kernel_size_d=None, dilation=1, dilation_d=None, bias=True, {_AFTER}"
_padded, _generic = module_class(modules.PaddedAttention), module_class(modules.HeadsLastAttention)
_padded_2d = module_class(modules.PaddedAttention2D)


@lru_cache
def _generic_class(arguments: str) -> type:
    return _generic("NeighborhoodAttentionGeneric", f"na_dim, {arguments}", "natten.modules")


MODULES = [
    Row("nattencuda{12}d.NeighborhoodAttention{12}D", _padded, {"0.14.1": _MODULE_014, "0.14.2": GONE}, ("",)),
    Row("nattencuda.NeighborhoodAttention", _padded_2d, {"0.14.1": _MODULE_014, "0.14.2": GONE}, ("",)),
    Row("natten2d.NeighborhoodAttention", _padded_2d, {"0.14.2": _MODULE_014, "0.14.5": GONE}, ("",)),
    Row(
        "natten{12}d.NeighborhoodAttention{12}D",
        _padded,
        {"0.14.2": _MODULE_014, "0.14.5": _MODULE_015, "0.17.0": GONE},
        ("",),
    ),
    Row("natten3d.NeighborhoodAttention{3}D", _padded, {"0.15.0": _PADDED_3D, "0.17.0": GONE}, ("",)),
    Row(
        "na{123}d.NeighborhoodAttention{123}D",
        module_class(modules.TupleAttention),
        {"0.17.0": _MODULE_017, "0.17.4": f"{_MODULE_017}, use_experimental_ops=False", "0.20.0": GONE},
        ("", "natten{123}d"),
    ),
    Row("modules.NeighborhoodAttentionGeneric", lambda name, arguments, home: _generic_class(arguments), _MODULE_LISTS),
    Row(
        "modules.NeighborhoodAttention{123}D",
        module_class(modules.HeadsLastAttention, over=_generic_class),
        _MODULE_LISTS,
        ("",),
    ),
]

# --- backends --------------------------------------------------------------------------------------------------------

_CONFIGS: Lists = {"0.20.0": "input_tensor", "0.20.1": "query, key, value"}
_FLEX_CONFIGS: Lists = {"0.20.0": "input_tensor", "0.20.1": "query, key, value, torch_compile=False"}
_NEW_CONFIGS: Lists = {"0.21.0": "query, key, value"}
_CHOICE: Lists = {"0.20.0": "input_tensor, torch_compile", "0.20.1": "query, key, value, torch_compile"}
_FMHA_CHOICE: Lists = {**_CHOICE, "0.21.5": "query, key, value, is_causal, is_varlen, torch_compile"}
BACKENDS = [
    Row(f"backends.get_{kind}_for_{backend}_{what}", function(operations.no_configs), lists, ("",))
    for what in ("fna", "fmha")
    for kind, backend, lists in (
        ("configs", "cutlass", _CONFIGS),
        ("configs", "cutlass_hopper", _CONFIGS),
        ("configs", "cutlass_blackwell", _CONFIGS),
        ("configs", "flex", _FLEX_CONFIGS),
        ("bwd_configs", "cutlass", _CONFIGS),
        ("bwd_configs", "cutlass_hopper", _NEW_CONFIGS),
        ("bwd_configs", "cutlass_blackwell", _NEW_CONFIGS),
    )
] + [
    Row("backends.choose_backend", function(operations.choose_backend), _CHOICE),
    Row("backends.choose_fmha_backend", function(operations.choose_backend), _FMHA_CHOICE),
    Row("backends.get_compatible_backends", function(operations.compatible_backends), _CHOICE),
    Row("backends.get_compatible_fmha_backends", function(operations.compatible_backends), _FMHA_CHOICE),
]

# --- settings and questions ------------------------------------------------------------------------------------------

_OLD = (
    "has_half has_bfloat has_gemm has_tf32_gemm has_fp64_gemm has_cuda "
    "enable_tf32 disable_tf32 enable_gemm_na disable_gemm_na enable_tiled_na disable_tiled_na"
)
_FUSED = function(context.use_fused_na)
_FUSED_LISTS: Lists = {
    "0.17.0": "mode=True, kv_parallel=False",
    "0.17.3": "mode=True, kv_parallel=True",
    "0.17.5": "mode=True, kv_parallel=True, use_flex_attention=False, force_flex_attention=False",
    "0.20.0": GONE,
}
_HAS_FP32 = function(context.has_tf32_gemm)
_IS_FNA, _HAS_FNA = function(context.is_fused_na_enabled), function(context.has_fna)
SETTINGS = [
    Row("functional.get_device_cc", as_it_is(context), {"0.15.0": "", "0.17.0": GONE}),
    *_listed(context, "functional", _OLD, "0.15.0", "0.17.0", ""),
    Row("functional.has_fp32_gemm", _HAS_FP32, {"0.15.0": "device_index=None", "0.17.0": GONE}, ("",)),
    *_listed(context, "context", _OLD, "0.17.0", "0.20.0", ""),
    Row("context.has_fp32_gemm", _HAS_FP32, {"0.17.0": "device_index=None", "0.20.0": GONE}, ("",)),
    Row("context.has_fused_na", _HAS_FNA, {"0.17.0": "device_index=None", "0.20.0": GONE}, ("",)),
    Row("context.is_fna_enabled", _IS_FNA, {"0.17.0": "", "0.20.0": GONE}, ("",)),
    Row("context.use_fused_na", _FUSED, _FUSED_LISTS, ("",)),
    Row("context.use_fna", _FUSED, _FUSED_LISTS, ("",)),
    *_listed(
        context,
        "context",
        "has_fna is_fused_na_enabled use_autotuner disable_autotuner is_autotuner_enabled "
        "is_autotuner_enabled_for_forward is_autotuner_enabled_for_backward is_autotuner_thorough_for_forward "
        "is_autotuner_thorough_for_backward use_tf32_in_gemm_na is_tf32_in_gemm_na_enabled use_tiled_na "
        "is_tiled_na_enabled use_gemm_na is_gemm_na_enabled",
        "0.17.0",
        "0.20.0",
        "",
    ),
    *_listed(context, "context", "AutotunerContext", "0.17.0", "0.20.0"),
    *_listed(context, "context", "use_flex_attention force_flex_attention", "0.17.5", "0.20.0", ""),
    *_listed(context, "context", "should_use_flex_attention should_force_flex_attention", "0.17.5", "0.20.0"),
    *_listed(context, "context", "MemoryUsagePreference NattenContext", "0.17.0"),
    *_listed(
        context,
        "context",
        "set_memory_usage_preference get_memory_usage_preference is_memory_usage_default is_memory_usage_strict "
        "is_memory_usage_unrestricted use_deterministic_algorithms are_deterministic_algorithms_enabled "
        "use_kv_parallelism_in_fused_na is_kv_parallelism_in_fused_na_enabled",
        "0.17.0",
        None,
        "",
    ),
    *_listed(
        context,
        "context",
        "allow_flex_compile allow_flex_compile_backprop disable_flex_compile disable_flex_compile_backprop "
        "is_flex_compile_allowed is_flex_compile_backprop_allowed",
        "0.20.0",
        None,
        "",
    ),
    Row(".HAS_LIBNATTEN", lambda name, arguments, home: HAS_LIBNATTEN, {"0.20.0": ""}),
]

# --- counts, types, helpers ------------------------------------------------------------------------------------------

_GRAPH = "inputs, outputs"
COUNTS = [
    *_listed(flops, "flops", "add_natten_handle get_flops", "0.14.1", "0.20.0"),
    Row("flops.qk_rpb_flop", function(flops.qk), {"0.14.1": _GRAPH, "0.15.0": GONE}),
    Row("flops.av_flop", function(flops.av), {"0.14.1": _GRAPH, "0.15.0": GONE}),
    Row("flops.qk_1d_rpb_flop", function(flops.qk), {"0.14.1": _GRAPH, "0.17.4": GONE}),
    Row("flops.av_1d_flop", function(flops.av), {"0.14.1": _GRAPH, "0.17.4": GONE}),
    *(Row(f"flops.qk_{n}d_rpb_flop", function(flops.qk), {"0.15.0": _GRAPH, "0.17.4": GONE}) for n in (2, 3)),
    *(Row(f"flops.av_{n}d_flop", function(flops.av), {"0.15.0": _GRAPH, "0.17.4": GONE}) for n in (2, 3)),
    Row("flops.fna_generic_flops", function(flops.attend), {"0.17.0": _GRAPH, "0.17.4": GONE}),
    *_listed(flops, "flops", "fna_flop_count na_qk_flop_count na_av_flop_count", "0.17.4", "0.20.0"),
]
TYPES = [
    Row("types.Dimension{123}DType", as_it_is(types), {"0.17.0": ""}),
    Row("types.CausalArg{123}DType", as_it_is(types), {"0.17.0": ""}),
    Row("types.Dimension{123}DTypeOrDed", as_it_is(types), {"0.17.1": ""}),
    Row("types.CausalArg{123}DTypeOrDed", as_it_is(types), {"0.17.1": ""}),
    *_listed(types, "types", "NoneType DimensionType CausalArgType", "0.17.0"),
    *_listed(types, "types", "FnaTileShapeType FnaForwardConfigType FnaBackwardConfigType", "0.17.0", "0.20.0"),
    *_listed(types, "types", "create_dim_from_int create_causal_arg_from_bool", "0.17.0", "0.20.0"),
    *_listed(types, "types", "ListOrNestedTensor", "0.17.1", "0.20.0"),
    *_listed(
        types,
        "types",
        "DimensionTypeOrDed CausalArgTypeOrDed QKTileShapeType KernelSchedule FmhaForwardConfigType "
        "CutlassFnaForwardConfigType CutlassFnaBackwardConfigType CutlassBlackwellFnaForwardConfigType "
        "CutlassHopperFnaForwardConfigType FlexFnaForwardConfigType CutlassFmhaForwardConfigType "
        "CutlassFmhaBackwardConfigType FlexFmhaForwardConfigType CutlassBlackwellFmhaForwardConfigType "
        "CutlassHopperFmhaForwardConfigType",
        "0.20.0",
    ),
    *_listed(
        types,
        "types",
        "CutlassBlackwellFnaBackwardConfigType CutlassHopperFnaBackwardConfigType "
        "CutlassBlackwellFmhaBackwardConfigType CutlassHopperFmhaBackwardConfigType",
        "0.21.0",
    ),
]
_CHECKS_020 = "query, key, value, must_match_head_dims=False, raise_error=True, backend_name=None"
_CHECKS_0215 = _CHECKS_020.replace("raise_error", "supports_gqa_mqa=True, raise_error")
_CHECK_LISTS: Lists = {"0.20.0": "query, key, value", "0.20.1": _CHECKS_020, "0.21.5": _CHECKS_0215}
_ADDITIONAL = "query, key, value, add_key=None, add_value=None, must_match_head_dims=False"
UTILS = [
    *_listed(utils, "utils.tensor", "make_attn_tensor_from_input", "0.15.0", "0.20.0", "utils"),
    *_listed(utils, "utils.tensor", "check_additional_keys check_additional_values", "0.15.1", "0.20.0", "utils"),
    *_listed(
        utils, "utils.tensor", "make_attn_tensor_from_input check_additional_keys check_additional_values", "0.20.0"
    ),
    *_listed(types, "utils.typing", "NoneType", "0.15.0", "0.17.0", "utils"),
    *_listed(context, "utils.misc", "get_device_cc", "0.17.0", "0.20.0", "utils"),
    *_listed(
        utils,
        "utils.checks",
        "check_kernel_size_arg check_dilation_arg check_causal_arg check_tiling_config check_backward_tiling_config "
        "get_num_na_weights",
        "0.17.0",
        "0.20.0",
        "utils",
    ),
    *_listed(utils, "utils.checks", "check_input_size_arg", "0.17.5", "0.20.0", "utils"),
    Row(
        "utils.checks.check_all_args",
        function(utils.check_all_args),
        {"0.17.0": "na_dim, kernel_size, dilation, is_causal", "0.20.0": GONE},
        ("utils",),
    ),
    Row(
        "utils.checks.check_all_args",
        function(utils.check_all_args),
        {"0.20.0": "na_dim, kernel_size, stride, dilation, is_causal"},
    ),
    *_listed(
        utils,
        "utils.checks",
        "check_input_size_arg check_kernel_size_arg check_stride_arg check_dilation_arg check_causal_arg "
        "check_args_against_input check_tile_shape check_kernel_schedule log_or_raise_error",
        "0.20.0",
    ),
    *_listed(utils, "utils.checks", "varlen_tensor_checks", "0.21.5"),
    Row("utils.checks.na_tensor_checks", function(utils.na_tensor_checks), _CHECK_LISTS),
    Row("utils.checks.fmha_tensor_checks", function(utils.fmha_tensor_checks), _CHECK_LISTS),
    Row(
        "utils.checks.additional_kv_tensor_checks",
        function(utils.additional_kv_tensor_checks),
        {
            "0.20.0": "query, key=None, value=None",
            "0.20.1": _ADDITIONAL,
            "0.21.5": f"{_ADDITIONAL}, supports_gqa_mqa=True",
        },
    ),
    Row(
        "utils.checks.is_self_attention",
        function(utils.is_self_attention),
        {
            "0.20.0": "input_tensor, kernel_size, is_causal",
            "0.21.5": "input_tensor, kernel_size, is_causal, has_additional_attention",
        },
    ),
    *_listed(utils, "utils.device", "is_cuda is_rocm is_cpu get_device_cc", "0.20.0"),
    *_listed(utils, "utils.dtype", "is_full is_half is_fp8", "0.21.1"),
    *_listed(utils, "utils.tuples", "ceil_div_int ceil_div_tuple", "0.20.0"),
    *_listed(utils, "utils.tuples", "mul_tuple sub_tuple", "0.21.5"),
    *_listed(types, "utils.tuples", "create_dim_from_int create_causal_arg_from_bool", "0.20.0"),
    *_listed(utils, "utils.varlen", "generate_varlen_parameters", "0.21.5"),
]
ROWS = (*OPERATORS, *FUSED, *HEADS_LAST, *MODULES, *BACKENDS, *SETTINGS, *COUNTS, *TYPES, *UTILS)
