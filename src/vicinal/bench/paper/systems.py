"""The systems that the paper's sweep compares, and those its reviewers asked for.

naive and GEMM: QK, softmax and AV as separate launches (`vicinal.unfused`). Fused: what `vicinal.na*d` runs by default.
Self attention on the same tensors: SDPA's memory-efficient backend (xFormers' FMHA), flash (FlashAttention 2), cuDNN.
Compiled, slow to prepare: FlexAttention, and plain masked attention under torch.compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from vicinal import dispatch
from vicinal.backends.protocol import Described
from vicinal.backends.unfused import launch as unfused_launch
from vicinal.bench.cases import Pass
from vicinal.bench.masks import dense_mask
from vicinal.bench.peers import MASK_BYTES_LIMIT, Attend, System, compiled_for, peers
from vicinal.functional import neighborhood_attention
from vicinal.problem import Problem
from vicinal.unfused import neighborhood_av, neighborhood_qk

NAIVE, GEMM, FUSED, PLAIN, COMPILED = "naive", "gemm", "fused", "plain torch", "compiled plain"
COMPILING = ("FlexAttention", COMPILED)  # in their first run
STORING_WEIGHTS = (NAIVE, GEMM, PLAIN, COMPILED)  # in the inputs' dtype; fused systems keep them in registers


def systems(device: torch.device, compiled: bool = False) -> list[System]:
    """Every system for a device; with `compiled` also those that compile for seconds for each shape of tensors."""
    every = peers(device)
    self_attention = [s for s in every if s.computes == "self attention"]
    variants = {NAIVE: "naive", GEMM: "gemm"} if device.type == "cuda" else {PLAIN: "torch"}
    found = [unfused_system(name, variant) for name, variant in variants.items()]
    found.append(System(FUSED, "neighborhood", "heads-last", _no_plan, _fused))
    found += self_attention
    if compiled:
        found += [s for s in every if s.name == "FlexAttention"]
        found.append(System(COMPILED, "neighborhood", "heads-first", _mask_too_large, _compiled_plain))
    return found


def unfused_system(name: str, variant: str) -> System:
    """The composition of the unfused operators of one variant."""

    def unsupported(problem: Problem) -> str | None:
        return unfused_launch.unsupported(variant, problem.dtype, problem.device)

    return System(name, "neighborhood", "heads-last", unsupported, partial(_unfused, variant))


def fused_plan(problem: Problem, passes: Sequence[Pass]) -> dict[str, Any]:
    """What "fused" is on a problem, for the file of results (see `bench.paper.sweep`): fused, tilings, waste."""
    plan = dispatch.plan(problem)
    chosen: dict[Pass, tuple[str, Described]] = {
        "forward": (plan.backend.name, plan.backend.described(problem, "forward", plan.forward))
    }
    if tuple(passes) != ("forward",):
        how = plan.gradients.described(problem, "backward", plan.backward)
        chosen["forward+backward"] = (plan.gradients.name, how)
    return {
        "fused": ", ".join(dict.fromkeys(name for name, _ in chosen.values())),
        "tilings": {p: f"{name} {how.words}" for p, (name, how) in chosen.items()},
        "waste": {p: float(f"{how.waste:.4g}") for p, (_, how) in chosen.items()},
    }


def _unfused(variant: str, problem: Problem) -> Attend:
    n = problem.neighborhood
    window = [k for k in n.window if k is not None]
    boundary = tuple(a.boundary for a in n.axes)
    qk = partial(neighborhood_qk, stride=n.stride, boundary=boundary, variant=variant, scale=problem.scale)
    av = partial(neighborhood_av, stride=n.stride, boundary=boundary, variant=variant)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = qk(query, key, window, n.dilation, None, n.causal)
        return av(scores.softmax(-1), value, window, n.dilation, None, n.causal)

    return attend


def _no_plan(problem: Problem) -> str | None:
    try:
        dispatch.plan(problem)
    except ValueError as error:
        return str(error)
    return None


def _fused(problem: Problem) -> Attend:
    return partial(neighborhood_attention, neighborhood=problem.neighborhood, scale=problem.scale)


def _mask_too_large(problem: Problem) -> str | None:
    scores = problem.batch * problem.heads * prod(problem.lengths) ** 2 * problem.dtype.itemsize
    if scores > MASK_BYTES_LIMIT:
        return f"its dense scores would take {scores / 2**30:.0f} GiB (limit {MASK_BYTES_LIMIT >> 30})"
    return None


def _compiled_plain(problem: Problem) -> Attend:
    mask = dense_mask(problem)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (problem.scale * (query @ key.transpose(-1, -2))).masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ value

    return compiled_for(problem, attend)
