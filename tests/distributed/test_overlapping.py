"""When a halo's exchange is worth two launches."""

from dataclasses import replace

import pytest
import torch

from vicinal import Neighborhood
from vicinal.backends.gpu.hardware import ARCHITECTURES, Gpu, standing_for
from vicinal.distributed.halo import halo, shards_of
from vicinal.distributed.overlapping import exchange_seconds, is_faster
from vicinal.problem import Problem

LENGTHS, WINDOW = (512, 512), Neighborhood.of(2, 80)


@pytest.fixture
def problems():
    """One launch of a rank's queries of an image, and its launches apart, on an H200 that is not there."""
    plan = halo((WINDOW,), LENGTHS, shards_of(LENGTHS, (2, 1)))
    found = []
    for part in [*plan.parts(0, overlap=False), *plan.parts(0)]:
        neighborhoods = tuple(n.over(plan.spans(part)) for n in plan.neighborhoods)
        own = tuple(stop - start for start, stop in part.queries)
        found.append(Problem(1, own, 24, 24, 128, 128, torch.bfloat16, torch.device("cpu"), neighborhoods, 0.1))
    assert len(found) == 3
    with standing_for(Gpu(ARCHITECTURES["sm_90"], 132)):
        yield found


def test_an_exchange_that_takes_no_time_is_not_worth_a_launch(problems):
    assert not is_faster(problems[0], problems[1:], 0.0, "hopper")


def test_a_slow_exchange_is_hidden(problems):
    assert is_faster(problems[0], problems[1:], 0.02, "hopper")


def test_borders_that_take_as_long_as_all_are_not_worth_it(problems):
    whole, inside, _ = problems
    assert not is_faster(whole, [inside, whole], 1e-4, "hopper")


def test_what_has_no_estimate_is_one_launch(problems):
    own = [replace(p, dtype=torch.float64) for p in problems]
    assert not is_faster(own[0], own[1:], 1.0, "torch")


@pytest.mark.parametrize(("local", "faster"), [("2", False), ("4", True)])
def test_hosts_are_as_torchrun_numbers_ranks(monkeypatch, local, faster):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    between = exchange_seconds(10**9, torch.device("cuda"), [1, 2])
    near = exchange_seconds(10**9, torch.device("cuda"), [2, 3])
    assert (between == near) is faster
