"""GPUs by their architecture: what bounds a program, and how fast matrices are multiplied. Who adds a card adds a line.

Sources. NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and CCCL's
`cuda/__device/arch_traits.h`, which says the same. AMD: ROCm's "AMD GPU specifications" (LDS and registers of a compute
unit, wavefronts). Rates and bandwidths: data sheets, of the fastest card that is one device to torch (A100 80 GB,
RTX 3090 Ti and A40, RTX 4090 and L40S, H200, B200, RTX PRO 6000; one die of two of an MI250X, MI325X): dense 16-bit
products with float32 sums, over multiprocessors and boost clock, rounded to a power of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import TypeVar

import torch

KB = 1024


@dataclass(frozen=True)
class Architecture:
    """What all GPUs of an architecture have in common.

    Attributes:
        name: "sm_90", "gfx942".
        shared: bytes of shared memory that one program may have.
        registers: per multiprocessor, of 32 bits.
        thread_registers: that one thread may have (AMD: besides as many for sums of products).
        threads, programs: at once on a multiprocessor.
        matrix_flops: per cycle and multiprocessor, of 16-bit products.
        bandwidth: bytes per second of the fastest device's memory.
        warp: threads of a warp.
        warpgroups: whether four warps multiply together (wgmma, tcgen05).
        chains: whether a kernel may be launched before the one ahead has ended.
    """

    name: str
    shared: int
    registers: int
    thread_registers: int
    threads: int
    programs: int
    matrix_flops: int
    bandwidth: float
    warp: int = 32
    warpgroups: bool = False
    chains: bool = False

    def __hash__(self) -> int:
        return hash(self.name)


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("sm_80", 163 * KB, 65536, 255, 2048, 32, 2048, 2.04e12),
        Architecture("sm_86", 99 * KB, 65536, 255, 1536, 16, 1024, 1.01e12),
        Architecture("sm_89", 99 * KB, 65536, 255, 1536, 24, 1024, 1.01e12),
        Architecture("sm_90", 227 * KB, 65536, 255, 2048, 32, 4096, 4.8e12, warpgroups=True, chains=True),
        Architecture("sm_100", 227 * KB, 65536, 255, 2048, 32, 8192, 8.0e12, warpgroups=True, chains=True),
        Architecture("sm_120", 99 * KB, 65536, 255, 1536, 24, 1024, 1.79e12, chains=True),
        Architecture("gfx90a", 64 * KB, 131072, 256, 2048, 32, 1024, 1.6e12, warp=64),
        Architecture("gfx942", 64 * KB, 131072, 256, 2048, 32, 2048, 6.0e12, warp=64),
    )
}


@dataclass(frozen=True)
class Gpu:
    """One GPU: its architecture, how many multiprocessors it has, and what was fitted to it.

    `fitted`: constants of estimates (`constants_of`) by their names, "triton.clock", and values; others are as usual.
    """

    architecture: Architecture
    processors: int
    fitted: tuple[tuple[str, float], ...] = ()

    def __hash__(self) -> int:  # estimates are looked up by it often: hash once
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.architecture, self.processors, self.fitted))


ASSUMED = Gpu(ARCHITECTURES["sm_90"], 132)  # an H200, where tensors are not on a GPU

Constants = TypeVar("Constants")


@lru_cache(maxsize=256)
def constants_of(gpu: Gpu, kind: type[Constants], backend: str) -> Constants:
    """A backend's constants as fitted to a GPU; `kind`: their named tuple, whose defaults are the usual ones."""
    known = set(kind._fields)  # type: ignore[attr-defined]
    own = {name.removeprefix(f"{backend}."): value for name, value in gpu.fitted if name.startswith(f"{backend}.")}
    return kind(**{name: value for name, value in own.items() if name in known})


named: Gpu | None = None  # what the CPU stands for, in a process that compiles for a GPU that is not there
fitted_to: Callable[[str], Mapping[str, float]] | None = None  # by a device's name: of `vicinal.tuning.cache`


@contextmanager
def standing_for(gpu: Gpu | None) -> Iterator[None]:
    """Within it GPU backends plan CPU tensors for `gpu`."""
    global named
    before, named = named, gpu
    try:
        yield
    finally:
        named = before


def gpu_of(device: torch.device) -> Gpu:
    """The GPU that tensors on `device` are on; where they are not on one, the one that is `named`, or `ASSUMED`."""
    if device.type != "cuda":
        return named or ASSUMED
    return _present(device)


@cache
def _present(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        name = properties.gcnArchName.split(":")[0]
        architecture = ARCHITECTURES.get(name, ARCHITECTURES["gfx942"])
    else:
        architecture = nearest(properties.major, properties.minor)
    fitted = {} if fitted_to is None else fitted_to(properties.name)
    return Gpu(architecture, properties.multi_processor_count, tuple(sorted(fitted.items())))


def nearest(major: int, minor: int) -> Architecture:
    """NVIDIA's architecture of this compute capability, or the newest one before it; the oldest where none is."""
    known = {divmod(int(name[3:]), 10): a for name, a in ARCHITECTURES.items() if name.startswith("sm_")}
    return known[max((c for c in known if c <= (major, minor)), default=min(known))]
