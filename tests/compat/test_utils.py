"""`natten.utils`: what other packages call."""

import pytest
import torch

from vicinal.compat import utils
from vicinal.compat.history import modules_of
from vicinal.compat.types import KernelSchedule
from vicinal.compat.versions import parse

CHECKS = modules_of(parse("0.21"))["natten.utils.checks"]
X = torch.randn(2, 5, 6, 4, 8)  # [batch, 5 x 6 tokens, heads, head_dim]
X1 = X.flatten(1, 2)
KV = X[..., :2, :]
LENGTHS = torch.tensor([12, 18], dtype=torch.int32)


@pytest.mark.parametrize(
    ("version", "arguments", "expected"),
    [
        ("0.17", (2, 7, (1, 2), None), ((7, 7), (1, 2), (False, False))),
        ("0.20", (1, 7, None, None, True), ((7,), (1,), (1,), (True,))),
    ],
)
def test_all_arguments_as_tuples(version, arguments, expected):
    assert modules_of(parse(version))["natten.utils.checks"].check_all_args(*arguments) == expected


@pytest.mark.parametrize(
    ("check", "arguments", "expected"),
    [
        (utils.check_input_size_arg, (2, 5), (5, 5)),
        (utils.check_kernel_size_arg, (2, [3, 5]), (3, 5)),
        (utils.check_stride_arg, (3, None), (1, 1, 1)),
        (utils.check_dilation_arg, (1, 4), (4,)),
        (utils.check_causal_arg, (2, None), (False, False)),
        (utils.get_num_na_weights, ((3, 5),), 15),
        (utils.check_tile_shape, ([8, 16],), (8, 16)),
        (utils.check_tiling_config, (2, ((8, 8), (8, 8))), ((8, 8), (8, 8))),
        (utils.check_backward_tiling_config, (1, ((8,), (8,), (1,), True)), ((8,), (8,), (1,), True)),
        (utils.check_kernel_schedule, ("pp",), KernelSchedule.WarpSpecializedPingpong),
        (utils.check_kernel_schedule, (None,), None),
        (utils.check_additional_keys, (torch.randn(2, 4, 5, 8), torch.randn(2, 4, 3, 8)), 3),
        (utils.check_additional_keys, (torch.randn(2, 4, 5, 8), None), 0),
        (
            utils.check_additional_values,
            (torch.randn(2, 4, 5, 6), torch.randn(2, 4, 3, 8), torch.randn(2, 4, 5, 8), 3),
            3,
        ),
        (utils.is_self_attention, (X, (5, 6), (False, False)), True),
        (utils.is_self_attention, (X, (5, 5), (False, False)), False),
        (utils.is_self_attention, (X, (5, 6), (False, True)), False),
        (utils.is_self_attention, (X1, (30,), (True,)), True),
        (utils.is_self_attention, (X1, (30,), (True,), True), False),
        (utils.na_tensor_checks, (X, KV, KV), True),
        (utils.fmha_tensor_checks, (X1, X1, X1), True),
        (utils.additional_kv_tensor_checks, (X, KV, KV, KV[:, 0], KV[:, 0]), None),
        (utils.check_args_against_input, (X, (5, 3), (1, 1), (1, 2), False), None),
        (utils.varlen_tensor_checks, (X1, X1, X1, None, None, None, None, 0, None), (None, None, 0, 0)),
        (utils.varlen_tensor_checks, (X1, X1, X1, None, None, LENGTHS, LENGTHS, 9, 8), (LENGTHS, LENGTHS, 9, 8)),
        (utils.ceil_div_tuple, ((5, 6), (2, 3)), (3, 2)),
        (utils.mul_tuple, ((5, 6), (2, 3)), (10, 18)),
        (utils.sub_tuple, ((5, 6), (2, 3)), (3, 3)),
        (utils.is_cpu, (X.device,), True),
        (utils.is_cuda, (X.device,), False),
        (utils.is_rocm, (X.device,), False),
        (utils.get_device_cc, (X.device,), 0),
        (utils.is_half, (torch.bfloat16,), True),
        (utils.is_full, (torch.bfloat16,), False),
        (utils.is_fp8, (torch.float8_e5m2,), True),
    ],
)
def test_value(check, arguments, expected):
    assert check(*arguments) == expected


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (utils.check_input_size_arg, (2, (5, 0)), "input_size must be"),
        (utils.check_kernel_size_arg, (2, (3, 3, 3)), "kernel_size must be one value or 2"),
        (utils.check_tile_shape, ((1, 2, 3, 4),), "tile_shape must be"),
        (utils.check_tiling_config, (2, ((8, 8),)), "tiling_config must have 2"),
        (utils.check_backward_tiling_config, (1, ((8,), (8,), (1,))), "tiling_config must have 3"),
        (utils.check_kernel_schedule, ("fast",), "kernel_schedule must be one of 'non', 'coop', 'pp', got 'fast'"),
        (utils.check_additional_keys, (torch.randn(2, 4, 5, 8), torch.randn(2, 3, 3, 8)), "additional_keys must be"),
        (utils.check_additional_values, (X, None, X, 9), "attn_tensor must have 9 weights per token, got 8"),
        (utils.check_args_against_input, (X, (5, 3), (1, 1), (1, 3), False), "axis 1 has length 6"),
        (utils.varlen_tensor_checks, (X1, X1, X1, None, None, LENGTHS), "must be given together"),
        (utils.generate_varlen_parameters, (X1, X1, X1, LENGTHS), "seqlens_Q and seqlens_KV must be given together"),
        (utils.generate_varlen_parameters, (X1, X1, X1, LENGTHS, LENGTHS), "query must have batch 1"),
        (utils.generate_varlen_parameters, (*[X1[:1]] * 3, LENGTHS, LENGTHS[:1]), "seqlens_KV must be"),
    ],
)
def test_refusal(check, arguments, message):
    with pytest.raises(ValueError, match=message):
        check(*arguments)


def test_tensor_checks_raise_or_tell():
    assert not CHECKS.na_tensor_checks(X, X[:1], X, raise_error=False)
    assert not CHECKS.na_tensor_checks(X, KV, KV, supports_gqa_mqa=False, raise_error=False)
    assert not CHECKS.na_tensor_checks(X, X, X[..., :4], must_match_head_dims=True, raise_error=False)
    with pytest.raises(ValueError, match="key must have"):
        CHECKS.na_tensor_checks(X, X[:1], X)


def test_logged_or_raised(caplog):
    utils.log_or_raise_error("no")
    with pytest.raises(KeyError, match="no"):
        utils.log_or_raise_error("no", True, KeyError)


def test_weights_like_the_input():
    weights = utils.make_attn_tensor_from_input(X.double().requires_grad_(), 9)
    assert (weights.shape, weights.dtype, weights.requires_grad) == ((2, 5, 6, 4, 9), torch.float64, True)
