"""Compiling for a GPU that is not here: a driver for Triton that names a target, and launches nothing."""

from __future__ import annotations

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from vicinal.backends.gpu.hardware import Architecture


class AbsentDriver(DriverBase):  # type: ignore[misc]
    """To be set active in a process that does nothing else: there is no way back where there is no GPU."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target
        self.get_current_stream = lambda device: 0
        self.get_current_device = lambda: 0

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return "int"

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> None:
        return None


def target_of(architecture: Architecture) -> GPUTarget:
    """Triton's name of an architecture."""
    if architecture.name.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.name.removeprefix("sm_")), architecture.warp)
    return GPUTarget("hip", architecture.name, architecture.warp)
