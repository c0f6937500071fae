"""The record of how long planning takes; figures themselves are a machine's own."""

from __future__ import annotations

import json
import random

import pytest
from typer.testing import CliRunner

from vicinal.backends.gpu import hardware
from vicinal.backends.gpu.hardware import standing_for
from vicinal.bench import planning
from vicinal.bench.new_sizes import FAMILIES
from vicinal.bench.planning import CARD, PLANNERS, of_family, percentiles, plan, random_problem
from vicinal.cli import app


@pytest.mark.parametrize("name", PLANNERS)
def test_random_problems_are_planned_and_prepared(name):
    planner, rng = PLANNERS[name], random.Random(5)
    with standing_for(None if name == "numba" else CARD):
        found = [plan(random_problem(rng, planner.dtypes), planner) for _ in range(4)]
    assert any(each is not None for each in found)
    assert all(each is None or (each.choosing > 0 and each.preparing > 0) for each in found)


def test_the_card_that_is_planned_for_is_forgotten():
    with standing_for(CARD):
        assert hardware.named is CARD
    assert hardware.named is None


def test_percentiles_are_values_that_were_met():
    assert percentiles([3.0, 1.0, 2.0]) == {"50": 2.0, "90": 3.0, "99": 3.0, "100": 3.0}


def test_the_command_writes_its_record(tmp_path):
    path = tmp_path / "planning.json"
    done = CliRunner().invoke(app, ["bench", "planning", "--planner", "triton", "--problems", "3", "--json", str(path)])
    assert done.exit_code == 0, done.output
    record = json.loads(path.read_text())
    assert record["kind"] == "vicinal bench planning"
    assert [each["name"] for each in record["planners"]] == ["triton"]
    assert record["planners"][0]["both"]["100"] > 0
    assert record["families"] == []


def test_sizes_of_a_family_are_planned(monkeypatch):
    monkeypatch.setattr(planning, "SIZES", 3)
    monkeypatch.setattr(planning, "WARM_UP", 1)
    for family in FAMILIES:
        found = of_family(family, 0)
        assert len(found) == 3
        assert {each.rank for each in found} == {len(family.spans)}


def test_an_unknown_planner_is_named():
    done = CliRunner().invoke(app, ["bench", "planning", "--planner", "cuda"])
    assert done.exit_code == 2
    assert "--planner: must be one of numba, triton, hopper, automatic" in " ".join(done.output.split())
