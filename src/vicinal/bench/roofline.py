"""What the device allows: measured copy bandwidth and matrix rate, least bytes of a problem, intensity, least time.

A kernel that reads each input once and writes each output once is bound by memory where its arithmetic intensity (FLOPs
per byte) is below the device's own ratio, by matrix products above it (Williams et al., 2009, the roofline model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from vicinal.bench.cases import Pass, useful_flops
from vicinal.bench.measure import Effort, time_calls
from vicinal.problem import Problem, lse_dtype

COPY_BYTES = 1 << 30
COPY_BYTES_CPU = 1 << 28
MATMUL_SIZE = 8192
MATMUL_SIZE_CPU = 1024


@dataclass(frozen=True)
class Limits:
    """What a device was measured to do, per second: `bandwidth`, bytes read plus written by a copy; `flops`."""

    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Point:
    """A measured kernel in the roofline: `flops` and `bytes`, and the `seconds` it took; `group`: its own color."""

    name: str
    flops: int
    bytes: int
    seconds: float
    group: str = ""


def measure_limits(device: torch.device | str, dtype: torch.dtype) -> Limits:
    """Copy bandwidth of a large buffer and matrix product rate in `dtype`, medians of a few samples."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    size = COPY_BYTES if cuda else COPY_BYTES_CPU
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    n = MATMUL_SIZE if cuda else MATMUL_SIZE_CPU
    a, b = (torch.randn(n, n, dtype=torch.float32, device=device).to(dtype) for _ in range(2))
    calls = {"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}
    times = time_calls(calls, device, Effort(samples=7, seconds=2.0, sample_seconds=0.02))
    return Limits(2 * size / times["copy"].median, 2 * n**3 / times["matmul"].median)


def least_bytes(problem: Problem, passed: Pass) -> int:
    """Bytes moved when every input is read once and every output written once.

    Forward reads query, key and value, writes output and log-sum-exp. Backward reads those five and the output's
    gradient, writes three gradients. Both: the sum.
    """
    tokens = problem.batch * prod(problem.lengths)
    size = problem.dtype.itemsize
    query = tokens * problem.heads * problem.head_dim * size
    output = tokens * problem.heads * problem.value_dim * size
    key = tokens * problem.kv_heads * problem.head_dim * size
    value = tokens * problem.kv_heads * problem.value_dim * size
    lse = tokens * problem.heads * lse_dtype(problem.dtype).itemsize
    forward = query + key + value + output + lse
    backward = forward + output + query + key + value
    return {"forward": forward, "backward": backward, "forward+backward": forward + backward}[passed]


def intensity(problem: Problem, passed: Pass) -> float:
    """Useful FLOPs per least byte."""
    return useful_flops(problem, passed) / least_bytes(problem, passed)


def least_seconds(problem: Problem, passed: Pass, limits: Limits) -> float:
    """The time that the measured limits allow: of memory or of matrix products, whichever is longer."""
    return max(least_bytes(problem, passed) / limits.bandwidth, useful_flops(problem, passed) / limits.flops)


def plot_roofline(limits: Limits, points: Sequence[Point], path: Path, title: str = "") -> None:
    """Draw achieved FLOP/s over intensity, under the device's roof, into an image file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots()
    knee = limits.flops / limits.bandwidth
    xs = [p.flops / p.bytes for p in points]
    left, right = min([knee, *xs]) / 2, max([knee, *xs]) * 2
    axes.loglog([left, knee, right], [left * limits.bandwidth, limits.flops, limits.flops], color="black")
    names, groups = (list(dict.fromkeys(found)) for found in ([p.name for p in points], [p.group for p in points]))
    colored = groups if len(groups) > 1 else names
    for point, x in zip(points, xs):
        color = colored.index(point.group if len(groups) > 1 else point.name)
        marker = "osD^v<>"[names.index(point.name) % 7] if len(groups) > 1 else "o"
        label = f"{point.group}: {point.name}" if point.group else point.name
        axes.loglog([x], [point.flops / point.seconds], marker, color=f"C{color}", label=label)
    axes.text(left, left * limits.bandwidth, f"  copy {limits.bandwidth / 1e12:.3g} TB/s", va="top")
    axes.text(right, limits.flops, f"matrix product {limits.flops / 1e12:.3g} TFLOP/s", ha="right", va="bottom")
    axes.set_xlabel("useful FLOPs per byte")
    axes.set_ylabel("useful FLOP/s")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=1 + (len(points) > 8))
    figure.savefig(path, dpi=150)
