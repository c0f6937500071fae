"""Small windows forward, each warp with lines of its own: where, and how it is launched."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch

from vicinal import dispatch
from vicinal.backends.triton import BACKEND, forward, lines
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.forward import lines_launch
from vicinal.backends.triton.launch import Prepared
from vicinal.backends.triton.lines import has_lines
from vicinal.explain import explanation
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.window import window_start, window_stop
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


@pytest.mark.parametrize("lengths", [(128, 128), (56, 56), (70, 17), (7, 16)])
def test_what_is_said_of_it(lengths, monkeypatch):
    monkeypatch.setattr(lines, "ENOUGH_PROGRAMS", 0)
    problem, tiling = problem_of(lengths=lengths), Tiling((8, 8), (1, 64), of_classes=True)
    axis, rows = SEVEN.axes[0], lengths[0]
    seen = [set(range(window_start(axis, rows, y), window_stop(axis, rows, y))) for y in range(rows)]
    walked = 0  # keys
    for first in range(0, rows, 8):
        own = [set().union(*seen[y : y + 2]) for y in range(first, min(first + 8, rows), 2)]
        every = len(set().union(*own))
        # Between borders every warp sees 8 lines; where fewer are there, it walks what any warp sees.
        walked += (8 if len(own) == 4 and all(len(each) == 8 for each in own) else every) * 16
    computed = walked * 64 * -(-lengths[1] // 8)
    found = BACKEND.described(problem, "forward", tiling)
    assert found.waste == pytest.approx(computed / (prod(lengths) * 49))
    assert found.words.startswith("8x8 queries, each warp its own lines of 16 keys, 4 warps, 168 registers (")
    assert found.words.endswith(f"no multiples of 16 bytes {tiling})")


@pytest.mark.parametrize(
    ("direction", "config"),
    [
        ("forward", Tiling((8, 8), (1, 64))),
        ("backward", GradientTilings(*[Tiling((8, 8), (1, 64), of_classes=True)] * 2)),
    ],
    ids=["boxes", "backward"],
)
def test_of_others_their_tilings_are_said(direction, config):
    assert BACKEND.described(problem_of(), direction, config).words == str(config)


@pytest.mark.usefixtures("interpreting")
@pytest.mark.parametrize("switch", [True, False])
def test_explain_says_what_runs(switch, monkeypatch):
    monkeypatch.setattr(lines, "TAKEN", switch)
    problem = problem_of(dtype=torch.float16)
    chosen = dispatch.backend("triton").configs(problem, "forward")[0]
    assert chosen.of_classes
    said = " ".join(explanation(problem, 200).split())
    assert "triton forward, 1 of" in said
    assert ("each warp its own lines" in said) == switch
    assert (f"of 16 bytes {chosen})" in said) == switch


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
