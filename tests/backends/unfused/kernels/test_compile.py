"""The unfused kernels compile for sm_90a: once for all windows, without spills or atomics, on tensor cores or not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("compile_only.py")
SOURCE = Path(__file__).parents[4] / "src"
NAMES = [f"{variant}.{kernel}" for variant in ("naive", "gemm") for kernel in ("pn", "nn", "inverse", "bias_sum")]


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    environment = dict(os.environ, PYTHONPATH=str(SOURCE))
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["kernel"]: row for row in found}


@pytest.mark.parametrize("name", NAMES)
def test_compiles(rows, name):
    row = rows[name]
    assert row["calls"] == 3
    assert row["compilations"] == 1  # windows, lengths and heads are run-time
    assert row["spills"] == 0
    assert row["atomics"] == 0
    assert row["shared"] <= 227 * 1024
    is_gemm = name.startswith("gemm") and not name.endswith("bias_sum")
    assert (row["tensor cores"] > 0) == is_gemm
