"""NATTEN 0.20 and later: vicinal's own names. Names of NATTEN's backends stand for the best that runs here."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from vicinal import functional, nn

HAS_LIBNATTEN = True  # "are there compiled kernels": code that asks falls back to something slower when told no
FUNCTIONS = ["attention", "merge_attentions", "na1d", "na2d", "na3d"]
MODULES = ["NeighborhoodAttention1D", "NeighborhoodAttention2D", "NeighborhoodAttention3D"]
__all__ = ["HAS_LIBNATTEN", *FUNCTIONS, *MODULES]

_FOREIGN = {
    *(f"{kind}-{what}" for kind in ("cutlass", "hopper", "blackwell", "flash") for what in ("fna", "fmha")),
    "reference",
}
_said: set[str] = set()


def _translated(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with names of NATTEN's backends understood; "flex-*" is vicinal's "flex"."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        backend = bound.arguments.get("backend")
        if backend in ("flex-fna", "flex-fmha"):
            bound.arguments["backend"] = "flex"
        elif backend in _FOREIGN:
            if backend not in _said:
                _said.add(backend)
                warnings.warn(f"vicinal has no backend {backend!r}: the best of its own runs", stacklevel=2)
            bound.arguments["backend"] = None
        return function(*bound.args, **bound.kwargs)

    return call


na1d = _translated(functional.na1d)
na2d = _translated(functional.na2d)
na3d = _translated(functional.na3d)
attention = _translated(functional.attention)
merge_attentions = functional.merge_attentions
NeighborhoodAttention1D = nn.NeighborhoodAttention1D
NeighborhoodAttention2D = nn.NeighborhoodAttention2D
NeighborhoodAttention3D = nn.NeighborhoodAttention3D
