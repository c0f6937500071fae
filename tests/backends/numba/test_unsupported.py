"""What the numba backend cannot run; CPUs and environments other than this one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from strategies import whole
from vicinal.backends.numba import BACKEND
from vicinal.problem import Problem


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(dtype=torch.int32), "torch.int32 is not one of"),
        (dict(device=torch.device("meta")), "not on a CPU"),
    ],
)
def test_unsupported_says_why(change, reason):
    call = whole(3)
    problem = replace(Problem.of(call.inputs(), call.neighborhoods, 1.0), **change)
    assert reason in BACKEND.unsupported(problem)


def in_a_process(code, **environment):
    script = f"import torch, vicinal, sys\n{code}"
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_without_numba_torch_s_operations_do():
    said = in_a_process("""
assert "numba" not in sys.modules
sys.modules["numba"] = None
from vicinal import dispatch
from vicinal.problem import Inputs, Problem
x = torch.randn(1, 8, 2, 4, requires_grad=True)
vicinal.na1d(x, x, x, 3).sum().backward()
problem = Problem.of(Inputs(x, x, x), [vicinal.Neighborhood.of(1, 3)], 1.0)
print(dispatch.plan(problem).backend.name, dispatch.unsupported("numba", problem))
""")
    assert said.startswith("torch it needs numba: pip install 'vicinal[cpu]'")


@pytest.mark.parametrize(
    ("cpu", "features"),
    [("haswell", "+avx,+avx2,+fma,+bmi,+bmi2,+sse4.2,+popcnt"), ("x86-64", "+sse2")],
    ids=["16 registers of 256 bits", "16 registers of 128 bits"],
)
@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="other CPUs of this family")
def test_other_cpus(cpu, features):
    said = in_a_process(
        """
from vicinal.backends.numba.kernels.vectors import registers
from vicinal.problem import Inputs
from vicinal.reference import reference
torch.manual_seed(0)
x = [torch.randn(1, 9, 9, 2, 24, requires_grad=True) for _ in range(3)]
grads = []
for run in (
    lambda: vicinal.na2d(*x, 5, return_lse=True, backend="numba"),
    lambda: reference(Inputs(*x), [vicinal.Neighborhood.of(2, 5)], 24**-0.5),
):
    out, lse = run()
    grads.append([out, lse, *torch.autograd.grad([out.square().sum() + lse.sum()], x)])
torch.testing.assert_close(*grads, check_dtype=False)
print(registers())
""",
        NUMBA_CPU_NAME=cpu,
        NUMBA_CPU_FEATURES=features,
    )
    assert said.strip() == ("(256, 16)" if cpu == "haswell" else "(128, 16)")
