"""Autocast: what it makes of a call's tensors, and where it must not reach."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tensors (or None) in autocast's dtype where it is on, as for torch's own attention; float64 is left alone."""
    if not isinstance(tensors[0], Tensor):
        return tensors
    dtype = autocast_dtype(tensors[0].device)
    if dtype is None:
        return tensors
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in _CAST else t for t in tensors)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast works in on a device; None where it is off, or unknown there."""
    kind = device.type
    if not _is_known(kind):
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which products stay in the precision that they are asked for in."""
    return torch.autocast(device.type, enabled=False) if _is_known(device.type) else nullcontext()


_CAST = (torch.float32, torch.bfloat16, torch.float16)


def _is_known(kind: str) -> bool:
    return kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)  # these two without asking
