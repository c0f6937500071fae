"""Small windows forward, each warp with lines of its own: where, and how it is launched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vicinal.backends.triton import forward, lines
from vicinal.backends.triton.forward import lines_launch
from vicinal.backends.triton.launch import Prepared
from vicinal.backends.triton.lines import has_lines
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem

of = Neighborhood.of
SEVEN = of(2, 7)


class Compiled:
    """Stands for a kernel that Triton compiles, where it interprets."""


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(lines.triton, "JITFunction", Compiled)
        monkeypatch.setattr(lines, "kernel_of_lines", Compiled)
        monkeypatch.setattr(forward, "kernel_of_lines", Compiled)
    has_lines.cache_clear()
    yield
    has_lines.cache_clear()


def problem_of(batch=8, lengths=(128, 128), heads=4, dim=64, neighborhood=SEVEN, dtype=torch.bfloat16, **more):
    query = torch.empty(batch, *lengths, heads, dim, dtype=dtype, device="meta")
    problem = Problem.of(Inputs(query, query, query), (neighborhood.resolve(lengths),), dim**-0.5)
    return replace(problem, device=torch.device("cpu"), **more)


def test_what_was_timed_is_taken():
    assert has_lines(problem_of())
    assert has_lines(problem_of(128, (56, 56), 2, 32, dtype=torch.float16))


@pytest.mark.parametrize(
    "more",
    [
        {"neighborhood": of(2, 9)},
        {"neighborhood": of(2, (7, 5))},
        {"neighborhood": of(2, 7, dilation=2)},
        {"neighborhood": of(2, 7, stride=2)},
        {"neighborhood": of(2, 7, is_causal=(True, False))},
        {"neighborhood": of(2, 7, boundary="clip")},
        {"neighborhood": of(2, 7, boundary=("shift", "wrap"))},
        {"dtype": torch.float32},
        {"dim": 48},
        {"batch": 1, "heads": 1},
        {"lengths": (2048, 15), "neighborhood": of(2, 7)},
        {"has_rpb": True},
        {"has_key_mask": True},
        {"additional": 3},
        {"scale": -1.0},
    ],
)
def test_nothing_else_is(more):
    assert not has_lines(problem_of(**more))


def test_the_switch(monkeypatch):
    monkeypatch.setattr(lines, "TAKEN", False)
    assert not has_lines(problem_of())


def test_strides_are_in_vectors_and_others_are_left_to_tiles_of_classes():
    problem = problem_of()
    packed = torch.empty(8, 128, 128, 3, 4, 64, dtype=torch.bfloat16, device="meta")
    query, key, value = packed.unbind(3)
    launch = lines_launch(Prepared.of(problem, Inputs(query, key, value)), False)
    assert launch.grid == (8 * 4 * 16 * 16, 1, 1)
    apart = (128 * 128 * 96, 128 * 96, 96, 8)
    assert launch.arguments[1:] == (4, 1, 128, 128, 7, *apart, *apart, *apart, 7, 64)
    assert lines_launch(Prepared.of(problem, Inputs(query, key, value)), True) is None
    odd = torch.empty(8, 128, 128, 4 * 64 + 4, dtype=torch.bfloat16, device="meta")[..., :256].unflatten(-1, (4, 64))
    assert lines_launch(Prepared.of(problem, Inputs(odd, key, value)), False) is None
