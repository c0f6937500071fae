"""Problems of the Hopper backend's tests on a GPU, the error that SDPA makes on them, and where those tests run."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem
from vicinal.reference import neighborhood_mask

ON_HOPPER = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
    ),
]

BF16, FP16 = torch.bfloat16, torch.float16
# name: (batch, lengths, heads, kv heads, head dim, value dim, dtype, neighborhood's arguments)
CASES = {
    "1d": (2, (300,), 2, 2, 128, 128, BF16, {"kernel_size": 100}),
    "1d-small": (1, (20,), 1, 1, 64, 64, FP16, {"kernel_size": 7}),
    "1d-one": (1, (5,), 2, 1, 32, 32, BF16, {"kernel_size": 1}),
    "1d-causal": (1, (500,), 2, 2, 128, 128, BF16, {"kernel_size": 111, "is_causal": True}),
    "1d-causal-stride": (1, (500,), 2, 2, 64, 64, BF16, {"kernel_size": 111, "stride": 5, "is_causal": True}),
    "1d-clip": (1, (500,), 2, 2, 64, 64, BF16, {"kernel_size": 111, "boundary": "clip"}),
    "1d-whole": (1, (512,), 2, 2, 128, 128, BF16, {"kernel_size": None}),
    "1d-whole-causal": (1, (700,), 2, 2, 128, 128, BF16, {"kernel_size": None, "is_causal": True}),
    "1d-dilated": (2, (300,), 2, 2, 64, 64, BF16, {"kernel_size": 40, "dilation": 3}),
    "1d-dilated-ragged": (2, (301,), 2, 2, 64, 64, BF16, {"kernel_size": 40, "dilation": 3}),
    "2d": (1, (40, 48), 2, 2, 128, 128, BF16, {"kernel_size": 13}),
    "2d-ragged": (2, (37, 45), 3, 3, 64, 64, FP16, {"kernel_size": (11, 9)}),
    "2d-whole": (1, (40, 48), 1, 1, 128, 128, BF16, {"kernel_size": (40, 48)}),
    "2d-stride": (1, (48, 48), 2, 2, 128, 128, BF16, {"kernel_size": 16, "stride": 16}),
    "2d-odd-stride": (1, (37, 41), 2, 2, 128, 128, BF16, {"kernel_size": (13, 12), "stride": (5, 3)}),
    "2d-causal-row": (1, (37, 41), 2, 2, 64, 64, BF16, {"kernel_size": 12, "is_causal": (True, False)}),
    "2d-causal": (1, (37, 41), 2, 2, 64, 64, BF16, {"kernel_size": 12, "is_causal": True}),
    "2d-clip": (1, (37, 41), 2, 2, 64, 64, BF16, {"kernel_size": 12, "boundary": "clip"}),
    "2d-long": (1, (3, 400), 2, 2, 64, 64, BF16, {"kernel_size": (3, 50)}),
    "2d-gqa": (2, (30, 30), 6, 2, 64, 64, BF16, {"kernel_size": 9}),
    "2d-gqa-packed": (2, (37, 45), 8, 2, 128, 128, BF16, {"kernel_size": 7}),
    "2d-gqa-dilated": (2, (37, 41), 4, 2, 64, 64, BF16, {"kernel_size": 5, "dilation": (3, 4)}),
    "3d-gqa-packed": (2, (6, 9, 11), 16, 1, 96, 96, FP16, {"kernel_size": (3, 4, 5), "stride": (1, 2, 2)}),
    "1d-gqa-causal": (2, (300,), 8, 1, 128, 128, BF16, {"kernel_size": 20, "is_causal": True}),
    "2d-mqa": (1, (30, 30), 4, 1, 128, 128, BF16, {"kernel_size": 9}),
    "2d-dilated": (2, (36, 40), 2, 2, 64, 64, BF16, {"kernel_size": 7, "dilation": (3, 4)}),
    "2d-dilated-ragged": (2, (37, 41), 2, 2, 64, 64, BF16, {"kernel_size": 7, "dilation": (3, 4)}),
    "2d-many": (4, (70, 75), 8, 4, 64, 64, BF16, {"kernel_size": (9, 20)}),  # more tiles than multiprocessors
    "3d": (1, (7, 16, 17), 2, 2, 128, 128, BF16, {"kernel_size": (5, 9, 9)}),
    "3d-stride": (1, (8, 16, 16), 2, 2, 64, 64, BF16, {"kernel_size": (4, 8, 8), "stride": (2, 4, 8)}),
    "3d-causal-time": (
        1,
        (9, 12, 12),
        2,
        2,
        64,
        64,
        BF16,
        {"kernel_size": (5, 5, 5), "is_causal": (True, False, False)},
    ),
    "3d-gqa": (2, (6, 9, 11), 4, 2, 64, 64, FP16, {"kernel_size": (3, 4, 5)}),
    "3d-dilated": (1, (6, 12, 15), 2, 2, 64, 64, BF16, {"kernel_size": (3, 3, 4), "dilation": (1, 3, 3)}),
    "3d-dilated-ragged": (1, (7, 13, 16), 2, 2, 64, 64, BF16, {"kernel_size": (2, 3, 4), "dilation": (3, 3, 2)}),
    "dim-32": (1, (40, 48), 2, 2, 32, 32, BF16, {"kernel_size": 13}),
    "dim-96": (1, (40, 48), 2, 2, 96, 96, BF16, {"kernel_size": 13}),
    "dim-192": (1, (40, 48), 2, 2, 192, 192, BF16, {"kernel_size": 13}),
    "dim-192-128": (1, (40, 48), 2, 1, 192, 128, FP16, {"kernel_size": 13}),
    "dim-256": (1, (40, 48), 2, 2, 256, 256, BF16, {"kernel_size": 13}),
}


def random_case(seed: int) -> tuple:
    """A small problem of any kind that the backend takes."""
    draw = random.Random(seed)
    rank = draw.choice((1, 2, 2, 3))
    most = {1: 700, 2: 40, 3: 14}[rank]
    lengths = tuple(draw.randint(1, most) for _ in range(rank))
    dilation = tuple(draw.choice((1, 1, 1, draw.randint(1, max(1, n // 3)))) for n in lengths)
    causal = tuple(draw.random() < 0.25 for _ in range(rank))
    clip = tuple(draw.choice(("shift", "shift", "clip")) for _ in range(rank))
    cut = (c or b == "clip" for c, b in zip(causal, clip))
    window = tuple(draw.randint(1, n + 9 if c else n // d) for n, d, c in zip(lengths, dilation, cut))
    stride = tuple(draw.choice((1, draw.randint(1, k))) for k in window)
    heads, kv_heads = draw.choice(((1, 1), (2, 2), (4, 2), (3, 1)))
    head_dim = draw.choice((32, 64, 64, 128, 128, 96))
    arguments = {"kernel_size": window, "stride": stride, "dilation": dilation, "is_causal": causal, "boundary": clip}
    return draw.choice((1, 2)), lengths, heads, kv_heads, head_dim, head_dim, draw.choice((BF16, FP16)), arguments


RANDOM = {f"random-{seed}": random_case(seed) for seed in range(100)}


def make(case: tuple, seed: int = 0) -> tuple[Problem, list[Neighborhood], Inputs]:
    batch, lengths, heads, kv_heads, head_dim, value_dim, dtype, arguments = case
    torch.manual_seed(seed)

    def tensor(h: int, d: int) -> torch.Tensor:
        return torch.randn(batch, *lengths, h, d, device="cuda", dtype=dtype)

    inputs = Inputs(tensor(heads, head_dim), tensor(kv_heads, head_dim), tensor(kv_heads, value_dim))
    neighborhoods = [Neighborhood.of(len(lengths), **arguments).resolve(lengths)]
    return Problem.of(inputs, neighborhoods, head_dim**-0.5), neighborhoods, inputs


def sdpa(problem: Problem, neighborhoods: list[Neighborhood], q, k, v) -> torch.Tensor:
    """torch's attention on the same masked problem in the same dtype, heads last."""
    each = [neighborhood_mask(n, problem.lengths) for n in neighborhoods]
    mask = torch.stack(each * (problem.heads // len(each))).cuda()
    repeat = problem.group_size
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
    out = scaled_dot_product_attention(
        q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), mask, scale=problem.scale
    )
    return out.transpose(1, 2).reshape(problem.batch, *problem.lengths, problem.heads, problem.value_dim)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))
