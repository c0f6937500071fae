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


@cache
def capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of NVIDIA's GPUs; None of others: AMD's have numbers too, gfx90a those of Hopper."""
    if device.type != "cuda" or torch.version.hip:
        return None
    return torch.cuda.get_device_capability(device)


def chains(device: torch.device) -> bool:
    """Whether the GPU launches a kernel before the one ahead has ended, where both agree: NVIDIA's, from Hopper on."""
    if device.type != "cuda" and hardware.named is None:
        return False
    return hardware.gpu_of(device).architecture.chains
