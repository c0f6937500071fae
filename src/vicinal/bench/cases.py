"""Benchmark problems: single cases, and the suites `cpu` and `gpu`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch

from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem

Pass = Literal["forward", "backward", "forward+backward"]
PASSES: tuple[Pass, ...] = ("forward", "backward", "forward+backward")


@dataclass(frozen=True)
class Case:
    """One problem to time, on any device.

    Attributes:
        name: what reports call it.
        lengths: tokens along each spatial axis.
        neighborhood: of all heads; resolved (no window is None).
        heads, head_dim, batch: sizes; `kv_heads` and `value_dim` of None are those of the query.
        dtype: of all tensors.
        passes: which passes are timed.
    """

    name: str
    lengths: tuple[int, ...]
    neighborhood: Neighborhood
    heads: int
    head_dim: int
    batch: int = 1
    kv_heads: int | None = None
    value_dim: int | None = None
    dtype: torch.dtype = torch.float32
    passes: tuple[Pass, ...] = PASSES

    @property
    def tokens(self) -> int:
        return prod(self.lengths)

    def problem(self, device: torch.device | str) -> Problem:
        """The problem that the backends see on `device`."""
        return Problem(
            batch=self.batch,
            lengths=self.lengths,
            heads=self.heads,
            kv_heads=self.heads if self.kv_heads is None else self.kv_heads,
            head_dim=self.head_dim,
            value_dim=self.head_dim if self.value_dim is None else self.value_dim,
            dtype=self.dtype,
            device=_concrete(torch.device(device)),
            neighborhoods=(self.neighborhood,),
            scale=self.head_dim**-0.5,
        )

    def self_attention(self) -> Case:
        """The same tensors with every key in every window: what self attention peers compute."""
        return replace(self, neighborhood=Neighborhood.of(len(self.lengths), None).resolve(self.lengths))


def random_inputs(problem: Problem, seed: int = 0) -> Inputs:
    """All tensors of unit variance, shaped as in `vicinal.problem`, the same for the same seed."""
    generator = torch.Generator(problem.device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device=problem.device).to(problem.dtype)

    queries, keys = (problem.batch, *problem.lengths), (problem.batch, *problem.key_lengths)
    kv_heads, dims = problem.kv_heads, (problem.head_dim, problem.value_dim)
    inputs = Inputs(normal(*queries, problem.heads, dims[0]), *(normal(*keys, kv_heads, dim) for dim in dims))
    if problem.additional:
        more, values = (normal(problem.batch, problem.additional, kv_heads, dim) for dim in dims)
        inputs = inputs._replace(additional_keys=more, additional_values=values)
    if problem.has_rpb:
        window = [k for k in problem.neighborhoods[0].window if k is not None]
        inputs = inputs._replace(rpb=normal(problem.heads, *(2 * k - 1 for k in window)))
    return inputs


def useful_flops(problem: Problem, passed: Pass) -> int:
    """FLOPs of the scores inside windows, none wasted."""
    if passed == "forward":
        return problem.forward_flops
    if passed == "backward":
        return problem.backward_flops
    return problem.forward_flops + problem.backward_flops


@dataclass(frozen=True)
class Suite:
    """Cases that are reported together.

    Attributes:
        name: as given to `vicinal bench --suite`.
        device: device type it is meant for.
        cases: in the order they are run.
        threads: CPU threads while it runs; None leaves torch's setting.
    """

    name: str
    device: str
    cases: tuple[Case, ...]
    threads: int | None = None


def _case(name: str, lengths: tuple[int, ...], heads: int, dim: int, window, batch: int = 1, **options) -> Case:  # type: ignore[no-untyped-def]
    dtype = options.pop("dtype", torch.float32)
    neighborhood = Neighborhood.of(len(lengths), window, **options).resolve(lengths)
    return Case(name, lengths, neighborhood, heads, dim, batch, dtype=dtype)


def _nat_stages(batch: int, dtype: torch.dtype) -> tuple[Case, ...]:
    """NAT's four stages (arXiv 2204.07143, table 2): window 7, dilation 1 and (DiNAT) the largest that fits."""
    stages = [(56, 2, (1, 8)), (28, 4, (1, 4)), (14, 8, (1, 2)), (7, 16, (1,))]
    return tuple(
        _case(
            f"NAT stage {i} {n}x{n} B{batch} H{heads} D32 window 7" + (f" dilation {d}" if d > 1 else ""),
            (n, n),
            heads,
            32,
            7,
            batch,
            dilation=d,
            dtype=dtype,
        )
        for i, (n, heads, dilations) in enumerate(stages, 1)
        for d in dilations
    )


def _cpu_cases() -> tuple[Case, ...]:
    plane, line, video = (64, 64), (4096,), (8, 32, 32)
    return (
        *_nat_stages(1, torch.float32),
        *(_case(f"2-D 64x64 B4 H4 D64 window {w}", plane, 4, 64, w, 4) for w in (5, 13, 33)),
        _case("1-D 4096 H4 D64 window 255", line, 4, 64, 255),
        _case("1-D 4096 H4 D64 window 255 causal", line, 4, 64, 255, is_causal=True),
        _case("3-D 8x32x32 H4 D64 window 3x7x7", video, 4, 64, (3, 7, 7)),
        _case(
            "3-D 8x32x32 H4 D64 window 3x7x7 causal in time", video, 4, 64, (3, 7, 7), is_causal=(True, False, False)
        ),
        _case("2-D 64x64 H4 D64 window 16 stride 8", plane, 4, 64, 16, stride=8),
    )


def _gpu_cases() -> tuple[Case, ...]:
    image, square, line = (256, 256), (128, 128), (32768,)
    hunyuan, whole, cosmos, decoder = (30, 48, 80), (30, 32, 32), (24, 44, 80), (33, 128, 224)

    def case(name: str, *args, **options) -> Case:  # type: ignore[no-untyped-def]
        return _case(name, *args, dtype=torch.bfloat16, **options)

    return (
        case("2-D 128x128 H24 D128 window 128x128 (dense)", square, 24, 128, 128),
        case("2-D 128x128 H24 D64 window 128x128 (dense)", square, 24, 64, 128),
        case("2-D 256x256 H24 D128 window 80x80", image, 24, 128, 80),
        case("2-D 256x256 H24 D128 window 80x80 stride 16x16", image, 24, 128, 80, stride=16),
        case("3-D 30x48x80 H24 D128 window 18x24x24", hunyuan, 24, 128, (18, 24, 24)),
        case("3-D 30x48x80 H24 D128 window 18x24x24 stride 16x8x8", hunyuan, 24, 128, (18, 24, 24), stride=(16, 8, 8)),
        case("3-D 30x32x32 H24 D128 causal in time", whole, 24, 128, whole, is_causal=(True, False, False)),
        case("Cosmos-Predict2 window 24x12x24 stride 1x4x8", cosmos, 16, 128, (24, 12, 24), stride=(1, 4, 8)),
        case("Cosmos-Predict2 window 24x4x16 dilation 1x11x5", cosmos, 16, 128, (24, 4, 16), dilation=(1, 11, 5)),
        case("1-D 32768 H16 D128 window 2048", line, 16, 128, 2048),
        case("1-D 32768 H16 D128 window 2048 causal", line, 16, 128, 2048, is_causal=True),
        case("1-D 32768 H1 D128 window 2048", line, 1, 128, 2048),
        case("1-D 32768 H1 D64 window 2048", line, 1, 64, 2048),
        case("2-D 128x128 B4 H8 D64 window 33x33", square, 8, 64, 33, batch=4),
        case("2-D 128x128 B4 H8 D64 window 13x13", square, 8, 64, 13, batch=4),
        case("LTX-2 decoder 33x128x224 H2 D64 window 3x7x7", decoder, 2, 64, (3, 7, 7)),
        case("HDiT 128x128 B8 H4 D64 window 7x7", square, 4, 64, 7, batch=8),
        *_nat_stages(128, torch.bfloat16),
    )


def _concrete(device: torch.device) -> torch.device:
    """`cuda` with its index, so that it equals the device of the tensors made on it."""
    return torch.empty(0, dtype=torch.float32, device=device).device if device.type == "cuda" else device


SUITES: dict[str, Suite] = {
    "cpu": Suite("cpu", "cpu", _cpu_cases(), threads=2),
    "gpu": Suite("gpu", "cuda", _gpu_cases()),
}
