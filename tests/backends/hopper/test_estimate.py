"""Estimates that choose between the Hopper and the portable kernels, against times measured on H200s."""

from dataclasses import replace

import pytest

from vicinal import dispatch
from vicinal.backends.hopper import estimate as hopper_estimate
from vicinal.backends.hopper.tilings import backward_configs, forward_configs, one_pass_configs
from vicinal.bench.cases import SUITES
from vicinal.geometry.neighborhood import Neighborhood

MEASURED = {  # microseconds: hopper forward, backward; triton forward, backward
    "2-D 256x256 H24 D128 window 80x80": (9880, 30700, 13900, 48600),
    "3-D 30x48x80 H24 D128 window 18x24x24": (38400, 127500, 52000, 172000),
    "Cosmos-Predict2 window 24x4x16 dilation 1x11x5": (1650, 6360, 2480, 8790),
    "1-D 32768 H1 D128 window 2048": (64, 243, 86, 302),
    "1-D 32768 H1 D64 window 2048": (48, 147, 51, 166),
    "2-D 128x128 B4 H8 D64 window 33x33": (610, 1735, 682, 1829),
    "2-D 128x128 B4 H8 D64 window 13x13": (226, 799, 256, 710),
    "LTX-2 decoder 33x128x224 H2 D64 window 3x7x7": (1037, 3968, 1276, 3386),
}
CASES = {case.name: case for case in SUITES["gpu"].cases}


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", MEASURED)
def test_estimates_are_near_the_measured(name, direction):
    problem = CASES[name].problem("cpu")
    place = ("forward", "backward").index(direction)
    config = (forward_configs, backward_configs)[place](problem)[0]
    assert 1e6 * hopper_estimate.seconds(problem, direction, config) == pytest.approx(MEASURED[name][place], rel=0.25)
    portable = dispatch.backend("triton")
    config = portable.configs(problem, direction)[0]
    assert 1e6 * portable.seconds(problem, direction, config) == pytest.approx(
        MEASURED[name][2 + place], rel=0.3
    )  # of more sizes


IN_ONE_PASS = {  # milliseconds of the whole backward in one pass, on an H200
    "2-D 256x256 H24 D128 window 80x80": 26.74,
    "2-D 256x256 H24 D128 window 80x80 stride 16x16": 21.87,
    "3-D 30x48x80 H24 D128 window 18x24x24": 105.3,
    "Cosmos-Predict2 window 24x12x24 stride 1x4x8": 23.33,
    "Cosmos-Predict2 window 24x4x16 dilation 1x11x5": 5.26,
    "1-D 32768 H16 D128 window 2048": 2.796,
    "1-D 32768 H16 D128 window 2048 causal": 2.757,
    "1-D 32768 H1 D128 window 2048": 0.177,
    "2-D 128x128 B4 H8 D64 window 33x33": 1.396,
    "2-D 128x128 B4 H8 D64 window 13x13": 0.664,
    "LTX-2 decoder 33x128x224 H2 D64 window 3x7x7": 3.080,
    "HDiT 128x128 B8 H4 D64 window 7x7": 0.438,
}


@pytest.mark.parametrize("name", IN_ONE_PASS)
def test_estimates_of_one_pass_are_near_the_measured(name):
    problem = CASES[name].problem("cpu")
    config = one_pass_configs(problem)[0]
    estimate = 1e3 * hopper_estimate.seconds(problem, "backward", config)
    assert estimate == pytest.approx(IN_ONE_PASS[name], rel=0.16)


def test_additional_keys_of_grouped_heads_in_one_pass():
    problem = replace(CASES["2-D 256x256 H24 D128 window 80x80"].problem("cpu"), heads=8, kv_heads=2, additional=256)
    problem = replace(problem, lengths=(128, 128), neighborhoods=(Neighborhood.of(2, 33),))
    estimate = 1e3 * hopper_estimate.seconds(problem, "backward", one_pass_configs(problem)[0])
    assert estimate == pytest.approx(1.038, rel=0.15)


WIDE = {160: (0.333, 1.064), 192: (0.323, 1.123), 256: (0.370, 1.538)}  # head dim: milliseconds, in two passes


@pytest.mark.parametrize("head_dim", WIDE)
def test_estimates_of_wide_heads_are_near_the_measured(head_dim):
    problem = replace(CASES["2-D 256x256 H24 D128 window 80x80"].problem("cpu"), head_dim=head_dim, value_dim=head_dim)
    problem = replace(problem, lengths=(128, 128), heads=8, kv_heads=8, neighborhoods=(Neighborhood.of(2, 33),))
    for direction, configs, measured in zip(
        ("forward", "backward"), (forward_configs, backward_configs), WIDE[head_dim]
    ):
        estimate = 1e3 * hopper_estimate.seconds(problem, direction, configs(problem)[0])
        assert estimate == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2-D 256x256 H24 D128 window 80x80", ("hopper", "hopper")),
        ("LTX-2 decoder 33x128x224 H2 D64 window 3x7x7", ("triton", "triton")),
        ("NAT stage 1 56x56 B128 H2 D32 window 7", ("triton", "triton")),
    ],
)
def test_a_pass_is_left_to_the_portable_kernels_where_they_are_faster(name, expected):
    pytest.importorskip("triton.experimental.gluon")
    assert _chosen(CASES[name].problem("cpu")) == expected


@pytest.mark.parametrize("window", [13, 33])
def test_under_a_key_mask_the_forward_is_left_to_the_portable_kernels(window):
    pytest.importorskip("triton.experimental.gluon")
    problem = CASES[f"2-D 128x128 B4 H8 D64 window {window}x{window}"].problem("cpu")
    assert _chosen(replace(problem, has_key_mask=True)) == ("triton", "hopper")


@pytest.mark.parametrize("head_dim", [96, 256])
def test_wide_heads_are_kept_both_ways(head_dim):
    pytest.importorskip("triton.experimental.gluon")
    problem = CASES["2-D 256x256 H24 D128 window 80x80"].problem("cpu")
    problem = replace(problem, head_dim=head_dim, value_dim=head_dim)
    assert _chosen(problem) == ("hopper", "hopper")


def _chosen(problem):
    plan = dispatch.Plan(problem, (dispatch.backend("hopper"), dispatch.backend("triton")))
    return plan.backend.name, plan.gradients.name
