"""Compiles the unfused kernels for sm_90a on a machine without a GPU; one JSON line per kernel.

Run by `test_compile_only.py` in a process of its own: a stand-in driver names the target, and must not meet the
interpreter that the other tests turn on.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "gpu"))  # the folder of ptxas

from ptxas import log_of, number

from vicinal.backends.gpu.absent import AbsentDriver
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.unfused import launch
from vicinal.backends.unfused.kernels import gemm, naive
from vicinal.backends.unfused.kernels import slots as shared
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.slots import Slots

KERNELS = {"naive": (naive.pn, naive.nn, naive.inverse), "gemm": (gemm.pn, gemm.nn, gemm.inverse)}
WINDOWS = [  # lengths, geometry: the first compiles, the others must find it compiled
    ((32, 32), {"kernel_size": 7}),
    ((33, 40), {"kernel_size": (16, 3)}),
    ((64, 17), {"kernel_size": (5, 17)}),
]


def run(lengths: tuple[int, ...], geometry: dict, dtype: torch.dtype, variant: str, heads: int) -> None:
    slots = Slots(Neighborhood.of(len(lengths), **geometry).resolve(lengths), lengths)
    x = torch.zeros(1, *lengths, heads, 64, dtype=dtype)
    attn = torch.zeros(1, *lengths, heads, slots.count, dtype=dtype)
    rpb = torch.zeros(heads, *slots.bias_shape, dtype=dtype)
    launch.pn(x, x, rpb, slots, 1.0, 0.0, variant)
    launch.nn(attn, x, slots, 1.0, variant)
    launch.inverse(attn, x, heads, slots, 1.0, variant)
    launch.bias_sum(attn, slots, variant)


if __name__ == "__main__":
    triton.runtime.driver.set_active(AbsentDriver(GPUTarget("cuda", 90, 32)))
    launch._interpreted = lambda: True  # lets CPU tensors reach the kernels
    compiled: list = []
    Launch.__call__ = lambda self, tensors, aligned: compiled.append((self.kernel, self.compile(tensors)))
    for variant, kernels in KERNELS.items():
        compiled.clear()
        for i, (lengths, geometry) in enumerate(WINDOWS):
            run(lengths, geometry, torch.float16, variant, heads=1 + i)
        for function in (*kernels, shared.bias_sum):
            own = [kernel for f, kernel in compiled if f is function]
            ptx = own[0].asm["ptx"]
            if "PTX_TO" in os.environ:
                Path(os.environ["PTX_TO"], f"unfused-{variant}-{function.__name__.rpartition('.')[2]}.ptx").write_text(
                    ptx
                )
            row = {
                "kernel": f"{variant}.{function.__name__.rpartition('.')[2]}",
                "calls": len(own),
                "compilations": len({id(kernel) for kernel in own}),
                "tensor cores": ptx.count("wgmma.mma_async") + ptx.count("mma.sync"),
                "atomics": len(re.findall(r"\b(?:atom|red)\.", ptx)),
                "shared": own[0].metadata.shared,
                "spills": number(r"(\d+) bytes spill stores", log_of(own[0])),
            }
            print(json.dumps(row))
