"""The suite of sizes never seen: what is measured, and that wrong results are told."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch

from vicinal.bench import new_sizes
from vicinal.bench.new_sizes import FAMILIES, OURS, Run, measure

CPU = torch.device("cpu")
SMALL = replace(FAMILIES[-1], spans=((8, 12), (8, 12)), head_dim=8)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_problems_of_a_family_differ_in_their_lengths_only(family):
    rng = random.Random(0)
    one, other = (family.problem(rng, CPU) for _ in range(2))
    assert one.lengths != other.lengths
    assert replace(one, lengths=()) == replace(other, lengths=())


def test_first_and_repeated_calls_are_recorded(tmp_path):
    path, told = tmp_path / "record.json", []
    record = measure(Run(CPU, (SMALL,), sizes=3, flex=False), path, told.append)
    (family,) = record["families"]
    assert (family["status"], family["system"], len(family["warm_up"])) == ("ok", OURS, 3)
    assert [len(lengths) for lengths, _, _ in family["sizes"]] == [2, 2, 2]
    assert all(first > 0 and again > 0 for _, first, again in family["sizes"])
    assert json.loads(path.read_text()) == record
    assert "3 new sizes took" in told[0]


def test_a_wrong_result_is_no_time(monkeypatch):
    monkeypatch.setattr(new_sizes, "_error", lambda *given: 1.0)
    (family,) = measure(Run(CPU, (SMALL,), sizes=2, flex=False), None, lambda line: None)["families"]
    assert family["status"] == "wrong"
    assert family["sizes"] == []


def test_it_stops_when_time_is_over():
    (family,) = measure(Run(CPU, (SMALL,), seconds=0.0, flex=False), None, lambda line: None)["families"]
    assert family["status"] == "budget"
