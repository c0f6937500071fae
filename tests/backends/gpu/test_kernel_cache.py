"""Keys of compiled kernels on disk do not depend on which kernel a process meets first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KEYS = """
import os
os.environ["TRITON_INTERPRET"] = "0"
import torch
from importlib import import_module
from vicinal.backends.gpu.kernel_cache import settle_keys
first = getattr(import_module("vicinal.backends.triton.kernels.{module}"), "{kernel}")
if {settled}:
    settle_keys()
first.cache_key
from vicinal.backends.triton.kernels.backward import query_gradient_kernel
from vicinal.backends.triton.kernels.forward import forward_kernel
print(forward_kernel.cache_key, query_gradient_kernel.cache_key)
"""


def keys(module, kernel, settled=True):
    program = KEYS.format(module=module, kernel=kernel, settled=settled)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_keys_do_not_depend_on_what_comes_first():
    backward = ("backward", "key_value_gradient_kernel")
    assert keys("forward", "forward_kernel") == keys(*backward)
    assert keys("forward", "forward_kernel", settled=False) != keys(*backward, settled=False)  # else all this can go


HERE = Path(__file__).parent
ANEW, FOUND = {"compilations": 1, "warnings": 1}, {"compilations": 0, "warnings": 0}
STATES = {  # of the cache: what it costs, and what the next process
    "empty .json": (ANEW, FOUND),
    "truncated .json": (ANEW, FOUND),
    "null .json": (ANEW, FOUND),
    "empty .cubin": (ANEW, FOUND),
    "truncated .cubin": (ANEW, FOUND),
    "truncated .ptx": (FOUND, FOUND),  # nobody reads it
    "unwritable": (ANEW, ANEW),
    "full": (ANEW, ANEW),
}


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(HERE.parents[2] / "src")
    command = [sys.executable, str(HERE / "damaged_cache.py"), str(tmp_path_factory.mktemp("cache")), *STATES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(STATES, map(json.loads, done.stdout.splitlines())))


@pytest.mark.parametrize("state", STATES)
def test_a_bad_cache_costs_one_compilation_and_a_warning(state, costs):
    """What is damaged is repaired; where nothing can be written, every process compiles."""
    assert tuple(costs[state]) == STATES[state]
