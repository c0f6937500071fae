"""Keys of compiled kernels on disk do not depend on which kernel a process meets first."""

import subprocess
import sys

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
