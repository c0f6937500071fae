"""GPUs: which one is current, and what it can."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from vicinal.backends.gpu import hardware


def current(device: torch.device) -> AbstractContextManager[object]:
    """A context in which `device` is the current GPU; costs next to nothing where it already is."""
    if device.type == "cpu" or device.index is None or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def chains(device: torch.device) -> bool:
    """Whether the GPU launches a kernel before the one ahead has ended, where both agree: NVIDIA's, from Hopper on."""
    if hardware.named is not None:
        return hardware.named.architecture.warpgroups or hardware.named.architecture.name == "sm_120"
    return _chains(device)


@cache
def _chains(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)
