import pytest
import torch

from vicinal.bench.cases import Case
from vicinal.bench.roofline import (
    Limits,
    Point,
    intensity,
    least_bytes,
    least_seconds,
    measure_limits,
    plot_roofline,
)
from vicinal.geometry.neighborhood import Neighborhood


@pytest.fixture
def problem():
    neighborhood = Neighborhood.of(1, 2, boundary="shift").resolve((10,))
    case = Case("", (10,), neighborhood, 4, 8, batch=3, kv_heads=2, value_dim=16, dtype=torch.bfloat16)
    return case.problem("cpu")


def test_forward_reads_inputs_and_writes_output_once(problem):
    query, key, value, output, lse = 4 * 8 * 2, 2 * 8 * 2, 2 * 16 * 2, 4 * 16 * 2, 4 * 4
    assert least_bytes(problem, "forward") == 30 * (query + key + value + output + lse)
    assert least_bytes(problem, "backward") == 30 * (2 * (query + key + value) + 2 * output + lse)


def test_both_passes_are_the_sum(problem):
    parts = [least_bytes(problem, "forward"), least_bytes(problem, "backward")]
    assert least_bytes(problem, "forward+backward") == sum(parts)


def test_intensity_is_flops_per_byte(problem):
    assert intensity(problem, "forward") == problem.forward_flops / least_bytes(problem, "forward")


@pytest.mark.parametrize(("limits", "bound"), [(Limits(1.0, 1e30), "memory"), (Limits(1e30, 1.0), "matrix")])
def test_least_time_is_the_longer_of_the_two(problem, limits, bound):
    expected = least_bytes(problem, "forward") if bound == "memory" else problem.forward_flops
    assert least_seconds(problem, "forward", limits) == pytest.approx(expected)


def test_limits_are_measured(monkeypatch):
    monkeypatch.setattr("vicinal.bench.roofline.COPY_BYTES_CPU", 1 << 22)
    monkeypatch.setattr("vicinal.bench.roofline.MATMUL_SIZE_CPU", 128)
    limits = measure_limits("cpu", torch.float32)
    assert 1e7 < limits.bandwidth < 1e13
    assert 1e7 < limits.flops < 1e14


def test_plot_is_an_image(tmp_path):
    path = tmp_path / "roofline.png"
    plot_roofline(Limits(1e12, 1e14), [Point("a", 10**9, 10**7, 1e-3)], path, "title")
    assert path.read_bytes().startswith(b"\x89PNG")
