"""What the compile-only scripts share: a driver that names a GPU which is not there.

The scripts run in processes of their own: the driver must not meet the interpreter that the other tests turn on.
"""

from __future__ import annotations

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class CompileOnlyDriver(DriverBase):
    """Names a GPU target and launches nothing."""

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

    def get_benchmarker(self):
        return None
