"""Peak memory of a call: on CUDA of torch's allocator; on Linux of this process, by the kernel's book-keeping."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch


def tidy(device: torch.device) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # of glibc


def resident() -> int | None:
    """Bytes that this process has; None where nobody counts them."""
    return _counted("/proc/self/status", "VmRSS")


def peak(call: Callable[[], object], device: torch.device, before: int | None) -> int | None:
    """The most bytes while `call` runs: on CUDA all that torch has allocated, else those beyond `before`, if known."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        return None
    call()
    most = _counted("/proc/self/status", "VmHWM")
    return None if most is None or before is None else max(0, most - before)


def available() -> float:
    """Bytes that the host has left; infinite where it does not say."""
    found = _counted("/proc/meminfo", "MemAvailable")
    return float("inf") if found is None else float(found)


def total(device: torch.device) -> int | None:
    """Bytes that a device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return _counted("/proc/meminfo", "MemTotal")


def _counted(path: str, name: str) -> int | None:
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return None
