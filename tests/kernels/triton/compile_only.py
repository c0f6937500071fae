"""Compile the Triton kernels for a GPU that is not there: `python compile_only.py sm_90` prints one JSON line a kernel.

A stand-in driver names the target and launches nothing; `kernel.warmup` runs the whole compiler, down to a cubin by the
ptxas that Triton ships, or to an AMD code object. Run without TRITON_INTERPRET, in a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of compile_driver

from compile_driver import CompileOnlyDriver

from vicinal.backends.triton_backward import Backward
from vicinal.backends.triton_launch import Forward, Launch, Prepared
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem
from vicinal.tuning import cost

TARGETS = {  # name: target, bytes of shared memory a program may have
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


class Pointer:
    """Stands for a tensor, 16-byte aligned."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def data_ptr(self) -> int:
        return 16


@dataclass(frozen=True)
class Variant:
    """One problem, whose kernels are compiled with the tilings that the backend would choose."""

    name: str
    lengths: tuple[int, ...]
    neighborhoods: tuple[Neighborhood, ...]
    dtype: torch.dtype
    head_dim: int
    heads: int = 2
    kv_heads: int = 2
    additional: int = 0
    has_rpb: bool = False

    def problem(self) -> tuple[Problem, Inputs]:
        def make(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=self.dtype, device="meta")

        x, h, hkv, d = self.lengths, self.heads, self.kv_heads, self.head_dim
        resolved = tuple(n.resolve(x) for n in self.neighborhoods)
        inputs = Inputs(
            make(4, *x, h, d),
            make(4, *x, hkv, d),
            make(4, *x, hkv, d),
            make(4, self.additional, hkv, d) if self.additional else None,
            make(4, self.additional, hkv, d) if self.additional else None,
            make(h, *(2 * k - 1 for k in resolved[0].window)) if self.has_rpb else None,
        )
        problem = Problem.of(inputs, resolved, d**-0.5)
        return replace(problem, device=torch.device("cpu")), inputs


of = Neighborhood.of
VARIANTS = [
    Variant("2d", (128, 128), (of(2, 33),), torch.bfloat16, 64),
    Variant("2d-d128", (256, 256), (of(2, 80),), torch.float16, 128),
    Variant("nat", (56, 56), (of(2, 7),), torch.float16, 32, has_rpb=True),
    Variant("float32", (4096,), (of(1, 256),), torch.float32, 64),
    Variant(
        "everything",
        (24, 44, 80),
        (of(3, (24, 12, 24), (1, 4, 8)), of(3, (24, 4, 16), 1, (1, 11, 5), (True, False, False))),
        torch.bfloat16,
        128,
        kv_heads=1,
        additional=16,
    ),
]


def launches(variant: Variant) -> list[tuple[Launch, tuple]]:
    """Every launch of a problem, with stand-ins for its tensors."""
    problem, inputs = variant.problem()
    prepared = Prepared.of(problem, inputs)
    x, f32 = Pointer(variant.dtype), Pointer(torch.float32)
    table = None if prepared.table is None else Pointer(torch.int32)
    q, k, v, ek, ev, rpb = given = tuple(None if t is None else x for t in inputs)
    forward = Forward(prepared, cost.tilings(problem, "forward")[0], False)._launch
    backward = Backward(prepared, cost.tilings(problem, "backward")[0], False)
    found = [
        (forward, (*given, table, x, f32)),
        (backward._query, (*given, table, x, f32, x, None, f32, x)),
        (backward._key_value, (q, k, v, rpb, table, f32, x, f32, x, x)),
    ]
    if backward._additional is not None:
        found.append((backward._additional, (q, ek, ev, f32, x, f32, f32, f32)))
    if backward._bias is not None:
        found.append((backward._bias, (q, k, v, rpb, table, f32, x, f32, f32)))
    return found


def spills(compiled, target: GPUTarget) -> int:
    """Spilled bytes per thread."""
    if target.backend == "hip":
        return 4 * int(re.search(r"\.vgpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"])[1])
    from triton.backends.nvidia.compiler import get_ptxas

    ptxas = get_ptxas(target.arch).path
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        name = f"sm_{target.arch}" + ("a" if target.arch >= 90 else "")
        command = [ptxas, "-v", f"--gpu-name={name}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"(\d+) bytes spill stores", report)[1])


def main(name: str, only: list[str]) -> None:
    target, shared = TARGETS[name]
    triton.runtime.driver.set_active(CompileOnlyDriver(target))
    cost.gpu_of = lambda problem: cost.Gpu(shared, name in ("sm_90", "sm_100"), 132)
    if target.backend == "hip":
        torch.version.hip = "compile-only"
    for variant in VARIANTS:
        if only and variant.name not in only:
            continue
        for launch, tensors in launches(variant):
            compiled = launch.kernel.warmup(*tensors, *launch.arguments, grid=launch.grid, **launch.options)
            row = {
                "variant": variant.name,
                "kernel": launch.kernel.__name__.removesuffix("_kernel"),
                "spilled": spills(compiled, target),
                "shared": compiled.metadata.shared,
                "fits": compiled.metadata.shared <= shared,
                "warps": launch.options["num_warps"],
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
