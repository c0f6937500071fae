"""What the Triton backend says that it cannot run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from triton_calls import call, device, of
from vicinal.backends import triton as backend
from vicinal.problem import Problem

pytestmark = pytest.mark.usefixtures("interpreting")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"dtype": torch.float64}, "float64"), ({"head_dim": 260}, "at most 256"), ({"value_dim": 300}, "at most 256")],
)
def test_reasons(change, reason):
    kept = {k: v for k, v in change.items() if k != "dtype"}
    drawn = call((9,), of(1, 3), **kept)
    inputs = drawn.inputs(change.get("dtype", torch.float32), device)
    problem = Problem.of(inputs, drawn.neighborhoods, 1.0)
    assert reason in backend.BACKEND.unsupported(problem)


def test_cpu_tensors_are_not_taken_outside_tests():
    drawn = call((9,), of(1, 3))
    backend._interpreting = False  # the fixture's end puts it back; a monkeypatch would undo that
    problem = Problem.of(drawn.inputs(torch.float32, "cpu"), drawn.neighborhoods, 1.0)
    assert "CPU" in backend.BACKEND.unsupported(problem)


def test_what_a_backend_cannot_run_is_told_without_ranking_tilings(monkeypatch):
    drawn = call((9,), of(1, 3))
    problem = Problem.of(drawn.inputs(torch.float16, device), drawn.neighborhoods, 1.0)
    monkeypatch.setattr(backend, "tilings", lambda *_: pytest.fail("tilings were ranked"))
    assert backend.BACKEND.unsupported(problem) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"batch": 1 << 12, "lengths": (1 << 20,)}, None),
        ({"batch": 1 << 24, "lengths": (1 << 20,)}, "more tiles than a GPU's grid can hold"),
        ({"lengths": (1 << 31,)}, "more than 2**30"),
        ({"heads": 1 << 16, "kv_heads": 1 << 16, "has_rpb": True}, "bias of 65536 heads"),
    ],
)
def test_what_32_bits_do_not_count(change, reason):
    drawn = call((9,), of(1, 3))
    problem = Problem.of(drawn.inputs(torch.float16, device), drawn.neighborhoods, 1.0)
    told = backend.BACKEND.unsupported(replace(problem, **change))
    assert told is None if reason is None else reason in told
