from dataclasses import replace

import pytest
import torch

from vicinal.bench.cases import SUITES, Case, random_inputs
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Problem

EVERY = [pytest.param(case, id=f"{suite.name}: {case.name}") for suite in SUITES.values() for case in suite.cases]

# "limit" in the table of issue 4: self attention FLOPs over useful FLOPs.
LIMITS = {
    "2-D 256x256 H24 D128 window 80x80": 10.2,
    "3-D 30x48x80 H24 D128 window 18x24x24": 11.1,
    "Cosmos-Predict2 window 24x12x24 stride 1x4x8": 12.2,
    "Cosmos-Predict2 window 24x4x16 dilation 1x11x5": 55,
    "1-D 32768 H16 D128 window 2048": 16,
    "2-D 128x128 H24 D128 window 128x128 (dense)": 1,
    "2-D 128x128 B4 H8 D64 window 33x33": 15,
    "2-D 128x128 B4 H8 D64 window 13x13": 97,
}


@pytest.mark.parametrize("case", EVERY)
def test_problem_has_the_sizes_of_the_case(case):
    problem = case.problem("cpu")
    assert (problem.batch, problem.lengths, problem.heads) == (case.batch, case.lengths, case.heads)
    assert 0 < problem.useful_scores <= case.batch * case.heads * case.tokens**2


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_names_tell_cases_apart(suite):
    names = [case.name for case in suite.cases]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "limit"), LIMITS.items())
def test_sparsity_is_that_of_the_targets(name, limit):
    (case,) = (case for case in SUITES["gpu"].cases if case.name == name)
    found = case.self_attention().problem("cpu").forward_flops / case.problem("cpu").forward_flops
    assert found == pytest.approx(limit, rel=0.01)


def test_inputs_are_heads_last_and_repeatable():
    case = Case("", (4, 6), Neighborhood.of(2, 3), 4, 8, batch=2, kv_heads=2, value_dim=5, dtype=torch.bfloat16)
    first, second = (random_inputs(case.problem("cpu")) for _ in range(2))
    assert first.query.shape == (2, 4, 6, 4, 8)
    assert first.key.shape == (2, 4, 6, 2, 8)
    assert first.value.shape == (2, 4, 6, 2, 5)
    assert first.value.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))


def test_random_inputs_have_every_tensor_of_the_problem(small_case):
    problem = replace(small_case.problem("cpu"), additional=3, has_rpb=True, value_dim=6)
    inputs = random_inputs(problem)
    assert inputs.additional_keys.shape == (1, 3, 2, 8)
    assert inputs.additional_values.shape == (1, 3, 2, 6)
    assert inputs.rpb.shape == (2, 5, 5)
    assert Problem.of(inputs, problem.neighborhoods, problem.scale) == problem
