"""The short lists: valid sizes, nearly as good as all, and few."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from vicinal.backends.gpu.hardware import ARCHITECTURES, Gpu, gpu_of
from vicinal.backends.triton.compiler import STAGES, WARPS
from vicinal.backends.triton.estimate import Kernel, estimate, most_registers
from vicinal.backends.triton.shortlist import SHORTLISTS, STEPS, every_size, of_classes_sizes, shortlist
from vicinal.backends.triton.tilings import candidates, ranked, tilings
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Problem

of = Neighborhood.of
KERNELS = get_args(Kernel)


def problem(lengths, neighborhood, head_dim=64, dtype=torch.bfloat16, batch=4, heads=4):
    resolved = (neighborhood.resolve(lengths),)
    return Problem(batch, lengths, heads, heads, head_dim, head_dim, dtype, torch.device("cpu"), resolved, 0.1)


@pytest.mark.parametrize("family", SHORTLISTS, ids=str)
def test_sizes_are_such_that_are_compiled_well(family):
    for size in SHORTLISTS[family]:
        assert size.warps in WARPS[size.rows]
        assert size.columns in STEPS
        assert size.stages in STAGES[3]
    assert len(set(SHORTLISTS[family])) == len(SHORTLISTS[family]) <= 3


@pytest.mark.parametrize(
    ("architecture", "head_dim", "dtype"),
    [("sm_80", 64, torch.float16), ("gfx942", 64, torch.float16)],
)
def test_what_was_not_chosen_for_ranks_all_sizes(architecture, head_dim, dtype):
    gpu = Gpu(ARCHITECTURES[architecture], 100)
    own = problem((64, 64), of(2, 9), head_dim, dtype)
    assert shortlist(own, "forward", gpu) == every_size(own, "forward", gpu)


@pytest.mark.parametrize(("batch", "lengths", "abreast"), [(128, 56, 4), (128, 14, 2), (127, 56, 1), (4, 14, 1)])
def test_as_many_batch_entries_abreast_as_leave_enough_programs(batch, lengths, abreast):
    own = replace(problem((lengths, lengths), of(2, 7), 32, torch.float16, batch, 8), has_rpb=True)
    assert {size.abreast for size in of_classes_sizes(own, "query")} == {abreast}
    assert ranked(own, "query", 1, False)[0][1].abreast == abreast


PROBLEMS = [
    pytest.param(problem((16384,), of(1, 2048)), id="1d"),
    pytest.param(problem((64, 64), of(2, 13), 48), id="2d-48"),
    pytest.param(problem((56, 56), of(2, 7, dilation=8), 32, batch=64), id="2d-dilated"),
    pytest.param(problem((96, 128), of(2, 33, stride=8), 128), id="2d-strided"),
    pytest.param(problem((16, 56, 56), of(3, (5, 7, 7), is_causal=(True, False, False))), id="3d-causal"),
    pytest.param(problem((64, 64), of(2, 13), 64, torch.float32), id="float32"),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("given", PROBLEMS)
def test_nearly_as_good_as_all_sizes(given, kernel):
    gpu = gpu_of(given.device)
    every = (estimate(given, kernel, t) for t in candidates(given, kernel, every_size(given, kernel, gpu), 4))
    fitting = [e for e in every if e.program.registers <= most_registers(gpu)]
    best = min(e.cycles for e in fitting if e.program.shared <= gpu.architecture.shared)
    assert ranked(given, kernel, 1, False)[0][0].cycles <= 1.2 * best


@pytest.mark.parametrize("window", [7, 127])
def test_a_million_tokens_are_planned_like_a_thousand(window):
    """The same choice where there are enough programs."""
    short, long = (problem((n,), of(1, window), batch=1024) for n in (1 << 12, 1 << 20))
    assert tilings(short, "forward")[0] == tilings(long, "forward")[0]
