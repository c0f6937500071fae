"""Compile the Triton kernels for a GPU that is not there: `python compile_only.py sm_90` prints one JSON line a kernel.

PTX_TO names a folder for the kernels' PTX, to be compared (TRITON_DISABLE_LINE_INFO=1 leaves lines out).

Names of variants may follow, or `classes` for those of tiles of classes, `general` for the others, `packed` for maps of
many sizes (which are of classes too).

With `once` for the names of variants: count what would be compiled for problems that differ in their windows, lengths
and heads only.

A stand-in driver names the target and launches nothing; `kernel.warmup` runs the whole compiler, down to a cubin by the
ptxas that Triton ships, or to an AMD code object. Run without TRITON_INTERPRET, in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "gpu"))  # the folder of ptx, ptxas

from ptx import before_waits
from ptxas import compiled_with_log, number

from vicinal.backends.gpu import hardware
from vicinal.backends.gpu.absent import AbsentDriver, target_of
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.triton import classes, packed
from vicinal.backends.triton.backward import Backward
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.forward import Forward
from vicinal.backends.triton.launch import Prepared, readable
from vicinal.backends.triton.tilings import ranked, tilings
from vicinal.geometry.maps import Maps
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span
from vicinal.problem import Inputs, PackedProblem, Problem, Upstream, Wanted


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
    has_key_mask: bool = False
    has_window_sizes: bool = False
    value_dim: int = 0  # 0: the head dim
    classes: bool = False  # tiles of classes

    def problem(self) -> tuple[Problem, Inputs]:
        def make(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=self.dtype, device="meta")

        x, h, hkv, d = self.lengths, self.heads, self.kv_heads, self.head_dim
        dv = self.value_dim or d
        resolved = tuple(n.resolve(x) for n in self.neighborhoods)
        inputs = Inputs(
            make(4, *x, h, d),
            make(4, *resolved[0].key_lengths(x), hkv, d),
            make(4, *resolved[0].key_lengths(x), hkv, dv),
            make(4, self.additional, hkv, d) if self.additional else None,
            make(4, self.additional, hkv, dv) if self.additional else None,
            make(h, *(2 * k - 1 for k in resolved[0].window)) if self.has_rpb else None,
            torch.empty((4, *x), dtype=torch.bool, device="meta") if self.has_key_mask else None,
            torch.empty((4, *x, h), dtype=torch.int32, device="meta") if self.has_window_sizes else None,
        )
        problem = Problem.of(inputs, resolved, d**-0.5)
        return replace(problem, device=torch.device("cpu")), inputs


of = Neighborhood.of
VARIANTS = [
    Variant("2d", (128, 128), (of(2, 33),), torch.bfloat16, 64),
    Variant("part", (40, 128), (of(2, 33).over((Span(128, (30, 70), (14, 86)), None)),), torch.bfloat16, 64),
    Variant("2d-d128", (256, 256), (of(2, 80),), torch.float16, 128),
    Variant("masked", (128, 128), (of(2, 13),), torch.bfloat16, 64, has_key_mask=True),
    Variant("masked-classes", (128, 128), (of(2, 13),), torch.bfloat16, 64, has_key_mask=True, classes=True),
    Variant("masked-classes-d32", (112, 112), (of(2, 7),), torch.bfloat16, 32, 8, 8, has_key_mask=True, classes=True),
    Variant("sized", (128, 128), (of(2, 13),), torch.bfloat16, 64, has_window_sizes=True),
    Variant(
        "circle",
        (128, 256),
        (of(2, 13, boundary=("shift", "wrap")).over((None, Span(256, (0, 256), (-13, 269), circle=True))),),
        torch.bfloat16,
        64,
    ),
    Variant(
        "circle-classes",
        (128, 256),
        (of(2, 13, boundary=("shift", "wrap")).over((None, Span(256, (0, 256), (-13, 269), circle=True))),),
        torch.bfloat16,
        64,
        classes=True,
    ),
    Variant("small", (8, 8), (of(2, 3),), torch.float16, 64),  # all gradients in one launch
    Variant("thin", (130,), (of(1, 7, dilation=18),), torch.float16, 64),  # tiles of several dilation groups
    Variant("nat", (56, 56), (of(2, 7),), torch.float16, 32, has_rpb=True),
    Variant("nat-classes", (56, 56), (of(2, 7),), torch.float16, 32, has_rpb=True, classes=True),
    Variant("nat-classes-float32", (56, 56), (of(2, 7),), torch.float32, 32, has_rpb=True, classes=True),
    Variant("masks-classes", (64, 64), (of(2, 7),), torch.float16, 32, classes=True),  # masks backward
    Variant("masks-classes-d64", (16, 64, 64), (of(3, (3, 7, 7)),), torch.float16, 64, classes=True),  # and forward
    Variant("lines-d32", (256, 256), (of(2, 7),), torch.float16, 32, classes=True),  # a warp walks its own
    Variant("lines-d64", (256, 256), (of(2, 7),), torch.bfloat16, 64, kv_heads=1, classes=True),
    Variant("rpb-d128", (56, 56), (of(2, 7),), torch.float16, 128, has_rpb=True, classes=True),
    Variant("rpb-d256", (56, 56), (of(2, 7),), torch.float16, 256, has_rpb=True, classes=True),
    Variant("values-d256", (64, 64), (of(2, 7),), torch.float16, 16, value_dim=256),
    Variant("float32", (4096,), (of(1, 256),), torch.float32, 64),
    Variant("float32-d256", (64, 64), (of(2, 7),), torch.float32, 256, additional=16, has_rpb=True),
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


PARTS = {  # by variant, the gradients that are wanted alone
    "2d": ["value", "key"],
    "small": ["query value", "key value"],
    "everything": ["key additional_values", "additional_keys"],
}
HALF = torch.float16
ONCE = [  # of each list one kernel serves all: among their numbers are 0, 1 and multiples of 16
    [
        Variant("2d", (128, 96), (of(2, (17, 16)),), HALF, 64, has_rpb=True, additional=16),
        Variant("2d", (57, 33), (of(2, (9, 8)),), HALF, 64, heads=1, kv_heads=1, has_rpb=True, additional=1),
        Variant("2d", (64, 16), (of(2, 16),), HALF, 64, heads=16, kv_heads=16, has_rpb=True, additional=5),
    ],
    [
        Variant("general", (16, 33, 40), (of(3, (16, 4, 8), (1, 2, 1), (1, 3, 4), (True, False, False)),), HALF, 32),
        Variant("general", (21, 8, 48), (of(3, (4, 4, 1), (4, 1, 1), (1, 1, 16), (False, True, False)),), HALF, 32),
    ],
]
ONCE.append(  # nor does another span compile
    [
        replace(
            ONCE[1][0], neighborhoods=(ONCE[1][0].neighborhoods[0].over((None, Span(60, (0, 33), (0, 60)), None)),)
        ),
        replace(
            ONCE[1][1], neighborhoods=(ONCE[1][1].neighborhoods[0].over((Span(37, (16, 37), (1, 37)), None, None)),)
        ),
    ]
)
ONCE_TILES = {2: Tiling((8, 8), (4, 4), 4, 1), 3: Tiling((4, 4, 4), (4, 4, 4), 4, 1)}
ONCE_OF_CLASSES = Tiling((8, 8), (1, 32), 4, 2, of_classes=True)


def launches(variant: Variant, config: Tiling | None = None, names: str | None = None) -> list[tuple[Launch, tuple]]:
    """Every launch of a problem, and what it is given; tiled as the backend would, unless told.

    `names`: of the gradients that are wanted, and of nothing else.
    """
    problem, inputs = variant.problem()
    inputs = readable(inputs)
    first = config or tilings(problem, "forward")[0]
    second = GradientTilings(config, config) if config else tilings(problem, "backward")[0]
    wanted = Wanted.of(inputs)
    if names is not None:
        wanted = Wanted(*(field in names.split() for field in Wanted._fields))
    jobs = [] if names else Forward.of(problem, first, inputs).kernels(inputs)
    jobs += Backward(Prepared.of(problem, inputs), second, wanted).kernels(inputs)
    return [(job.func.__self__, *job.args) for job in jobs]


def spills(compiled, log: str, target: GPUTarget) -> int:
    """Spilled bytes per thread; `log`: what ptxas said."""
    if target.backend == "hip":
        return 4 * number(r"\.vgpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"])
    return number(r"(\d+) bytes spill stores", log)


def is_bound_within(ttgir: str) -> bool:
    """Whether the end of the loop within a loop is a number of that outer loop, not one from before it."""
    lines = ttgir.splitlines()
    outer, inner = (i for i, line in enumerate(lines) if "= scf.for" in line)
    bound = re.search(r" to (%\w+) step", lines[inner])[1]
    return any(line.strip().startswith(f"{bound} =") for line in lines[outer + 1 : inner])


def compile_once() -> None:
    """One JSON line a kernel: how often it would be compiled for how many problems. What Triton asks of its compiler
    counts; that the kernels compile, the variants show.
    """
    triton.compiler.compile = lambda *_, **__: SimpleNamespace()
    for variants in ONCE:
        compiled: dict[str, list[Any]] = {}
        for variant in variants:
            every = launches(variant, ONCE_TILES[len(variant.lengths)])
            if variant.has_rpb:
                every += launches(variant, ONCE_OF_CLASSES)
            for launch, tensors in every:
                compiled.setdefault(launch.kernel.__name__.removesuffix("_kernel"), []).append(launch.compile(tensors))
        for kernel, found in compiled.items():
            row = {"variant": variants[0].name, "kernel": kernel, "problems": len(found)}
            print(json.dumps(row | {"compilations": len({id(one) for one in found})}), flush=True)


def main(name: str, only: list[str]) -> None:
    architecture = hardware.ARCHITECTURES[name]
    target = target_of(architecture)
    triton.runtime.driver.set_active(AbsentDriver(target))
    hardware.named = hardware.Gpu(architecture, 132)
    if target.backend == "hip":
        torch.version.hip = "compile-only"
    if only == ["once"]:
        compile_once()
        return
    for variant in VARIANTS:
        if only and not {variant.name, "classes" if variant.classes else "general"} & set(only):
            continue
        classes.MAX_BYTES = 2**26 if variant.classes else 0
        ranked.cache_clear()
        for names in (None, *PARTS.get(variant.name, ())):
            name = variant.name if names is None else f"{variant.name}: {names}"
            print_all(name, launches(variant, names=names), target)
    if not only or {"packed", "classes"} & set(only):
        classes.MAX_BYTES = 2**26
        for dim in (32, 64):
            print_all(f"packed-d{dim}", packed_launches(dim), target)


def packed_launches(dim: int) -> list[tuple[Launch, tuple]]:
    """Every launch of maps whose tiles are of classes, and what those are given."""
    found: list[tuple[Launch, tuple]] = []
    run, Launch.__call__ = Launch.__call__, lambda launch, tensors, _: found.append((launch, tensors))
    chains, packed.chains = packed.chains, lambda _: hardware.named.architecture.name in ("sm_90", "sm_100")
    try:
        maps = Maps.of([(40, 40), (20, 63)] * 16, [of(2, 7)])
        tokens = torch.empty(maps.total, 4, dim, dtype=torch.float16)
        inputs = Inputs(tokens, tokens[:, :2], tokens[:, :2])
        problem = PackedProblem.of(inputs, maps, dim**-0.5)
        output, lse = packed.forward(problem, inputs)
        packed.backward(problem, inputs, Upstream(output, lse, output, None), Wanted(*[True] * 3, *[False] * 3))
    finally:
        Launch.__call__, packed.chains = run, chains
    return found


def print_all(name: str, found: list[tuple[Launch, tuple]], target: GPUTarget) -> None:
    """One JSON line a kernel."""
    shared = hardware.named.architecture.shared
    with_log = compiled_with_log if target.backend == "cuda" else lambda compile: (compile(), "")
    for launch, tensors in found:
        compiled, log = with_log(lambda launch=launch, tensors=tensors: launch.compile(tensors))
        kernel = launch.kernel.__name__.removesuffix("_kernel")
        ptx = compiled.asm.get("ptx")
        if "PTX_TO" in os.environ and ptx is not None:
            Path(os.environ["PTX_TO"], f"{name}-{kernel}.ptx").write_text(ptx)
        row = {
            "variant": name,
            "kernel": kernel,
            "spilled": spills(compiled, log, target),
            "shared": compiled.metadata.shared,
            "fits": compiled.metadata.shared <= shared,
            "warps": launch.options["num_warps"],
            "chained": launch.options.get("launch_pdl", False),
        }
        if name.startswith("masked-classes") and kernel == "forward_of_classes":
            row["bound_within"] = is_bound_within(compiled.asm["ttgir"])
        if ptx is not None:
            row["waits"] = ptx.count("griddepcontrol.wait")
            row["early"] = before_waits(ptx, writes=True)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
