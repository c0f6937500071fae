"""The machine and the versions of what runs on it: what measurements depend on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from vicinal._version import __version__


def versions() -> dict[str, str]:
    """Versions of what results depend on; the commit where vicinal runs from a git checkout."""
    found = {"vicinal": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for package in ("triton", "numba"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    commit = _commit()
    if commit is not None:
        found["commit"] = commit
    return found


def machine(device: torch.device) -> dict[str, str | int | float]:
    """The device and the host, for records of measurements; `load` is the average of the last minute."""
    return {
        "device": device_name(device),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        "platform": platform.platform(),
    }


def devices() -> list[torch.device]:
    """The CPU and every CUDA (or ROCm) device."""
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]


def device_name(device: torch.device) -> str:
    """What the device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    if not (Path(__file__).parents[2] / ".git").exists():  # installed, not a checkout
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
