"""Kernels compiled before they are needed. Those of a GPU that is not here take a process and a compiler: few are."""

import os
import re
from dataclasses import replace

import pytest
import torch

import vicinal
from vicinal import dispatch
from vicinal.backends.gpu import hardware
from vicinal.backends.numba import compiled as numba
from vicinal.backends.numba import launch  # noqa: F401 - before `compiled` is another, which it would keep
from vicinal.tuning import precompile as module


@pytest.fixture
def compiled(monkeypatch):
    """What the numba backend is asked to compile."""
    asked = []
    monkeypatch.setattr(numba, "compiled", lambda name, dtype: asked.append((name, dtype)))
    return asked


BIASED = ["spread", "biased forward", "spread", "biased backward", "gather"]


@pytest.mark.parametrize(
    ("fields", "directions", "expected"),
    [
        ({}, ("forward", "backward"), [("forward", "float32"), ("backward", "float32")]),
        ({}, ("forward",), [("forward", "float32")]),
        ({"dtype": torch.float16}, ("backward",), [("backward", "float32")]),
        ({"dtype": torch.float64}, ("backward",), [("backward", "float64")]),
        ({"has_rpb": True}, ("forward", "backward"), [(name, "float32") for name in BIASED]),
    ],
)
def test_the_cpu_s_kernels(problem, compiled, fields, directions, expected):
    assert vicinal.precompile(replace(problem, **fields), directions=directions) == len(expected)
    assert sorted(compiled) == sorted(expected)


def test_several_problems(problem, compiled):
    assert vicinal.precompile([problem, replace(problem, dtype=torch.float64)]) == len(compiled) == 4


def test_what_cannot_be_compiled_is_raised(problem, monkeypatch):
    def failing(name, dtype):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(numba, "compiled", failing)
    with pytest.raises(RuntimeError, match="no such instruction"):
        vicinal.precompile(problem)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "sm_12"}, "target must be one of sm_80, .*, got 'sm_12'"),
        ({"target": "gfx942"}, "processors must be given for target 'gfx942'"),
        ({"target": "sm_80"}, "processors must be given for target 'sm_80'"),
        ({"target": "sm_90", "processors": 0}, "processors must be at least 1, got 0"),
    ],
)
def test_an_unknown_target_is_refused(problem, arguments, words):
    with pytest.raises(ValueError, match=words):
        vicinal.precompile(problem, **arguments)


@pytest.mark.parametrize("fields", [{}, {"has_rpb": True}, {"additional": 3}, {"kv_heads": 1, "value_dim": 4}])
def test_stand_ins_are_of_the_problem(problem, fields):
    wanted = replace(problem, **fields)
    inputs = module.stand_ins(wanted)
    assert all(t is None or t.is_meta for t in inputs)
    found = type(problem).of(inputs, wanted.neighborhoods, wanted.scale)
    assert replace(found, device=wanted.device) == wanted


pytest.importorskip("triton")


def gpu_problem(problem, **fields):
    return replace(problem, dtype=torch.float16, head_dim=32, value_dim=32, **fields)


def test_a_gpu_that_is_not_here(problem, tmp_path, monkeypatch):
    """All kernels of two problems for two targets are on disk after; another time they are found there."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    both = [gpu_problem(problem), gpu_problem(problem, lengths=(10, 13))]
    count = vicinal.precompile(both, target="sm_80", processors=108)
    made = {file.name: file.stat().st_mtime_ns for file in tmp_path.rglob("*.cubin")}
    assert {re.sub("_kernel.cubin", "", name) for name in made} >= {"forward"}
    assert count >= 4
    assert vicinal.precompile(both, target="sm_80", processors=108) == count
    assert made == {file.name: file.stat().st_mtime_ns for file in tmp_path.rglob("*.cubin")}
    assert hardware.named is None  # here all is as before
    assert os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available()


def test_a_problem_that_no_gpu_kernel_can_run(problem):
    with pytest.raises(RuntimeError, match="for sm_90 failed: ValueError: no GPU backend can run .*float64"):
        vicinal.precompile(replace(problem, dtype=torch.float64), target="sm_90")


# What the processes of `precompile` rely on, in this one ----------------------------------------------------------


@pytest.fixture
def named(monkeypatch):
    """A function that makes the CPU stand for a GPU of some architecture."""
    return lambda name: monkeypatch.setattr(hardware, "named", hardware.Gpu(hardware.ARCHITECTURES[name], 7))


@pytest.mark.parametrize(("target", "hopper"), [("sm_80", False), ("sm_90", True), ("sm_100", False)])
def test_the_named_gpu_s_backends(problem, named, target, hopper):
    named(target)
    wanted = gpu_problem(problem)
    assert dispatch.unsupported("triton", replace(wanted, dtype=torch.bfloat16)) is None
    reason = dispatch.unsupported("hopper", wanted)
    assert reason is None if hopper else f"it needs sm_90, not {target}" in reason
    assert hardware.gpu_of(problem.device).processors == 7


@pytest.mark.parametrize(("target", "chained"), [("sm_80", False), ("sm_89", False), ("sm_90", True), ("sm_120", True)])
def test_kernels_of_the_named_gpu_are_chained_from_hopper_on(problem, named, target, chained):
    from vicinal.backends.gpu.devices import chains

    named(target)
    assert chains(problem.device) is chained
