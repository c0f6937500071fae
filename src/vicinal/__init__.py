"""vicinal: exact, fast neighborhood attention in 1-D, 2-D and 3-D, in pure Python.

Names are imported when first asked for, so that `vicinal --help` does not wait for torch. Where torch is there already,
nobody waits: the operators are registered at once, for programs that name them, as exported ones do.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from vicinal._version import __version__

if TYPE_CHECKING:
    from vicinal import compat as compat
    from vicinal import denoise as denoise
    from vicinal import export as export
    from vicinal import models as models
    from vicinal import nn as nn
    from vicinal import reference as reference
    from vicinal import unfused as unfused
    from vicinal.functional import attention, merge_attentions, na1d, na2d, na3d, neighborhood_attention
    from vicinal.geometry.neighborhood import Neighborhood
    from vicinal.geometry.span import Span
    from vicinal.nn import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D
    from vicinal.plot import plot_attention
    from vicinal.tuning.precompile import precompile
    from vicinal.tuning.search import tune
    from vicinal.varlen import na1d_varlen, na2d_varlen, na3d_varlen

__all__ = [
    "Neighborhood",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "Span",
    "__version__",
    "attention",
    "merge_attentions",
    "na1d",
    "na1d_varlen",
    "na2d",
    "na2d_varlen",
    "na3d",
    "na3d_varlen",
    "neighborhood_attention",
    "plot_attention",
    "precompile",
    "tune",
]

_MODULES = ("compat", "denoise", "export", "models", "nn", "reference", "unfused")
_HOMES = {
    "Neighborhood": "vicinal.geometry.neighborhood",
    "NeighborhoodAttention1D": "vicinal.nn",
    "NeighborhoodAttention2D": "vicinal.nn",
    "NeighborhoodAttention3D": "vicinal.nn",
    "Span": "vicinal.geometry.span",
    "attention": "vicinal.functional",
    "merge_attentions": "vicinal.functional",
    "na1d": "vicinal.functional",
    "na1d_varlen": "vicinal.varlen",
    "na2d": "vicinal.functional",
    "na2d_varlen": "vicinal.varlen",
    "na3d": "vicinal.functional",
    "na3d_varlen": "vicinal.varlen",
    "neighborhood_attention": "vicinal.functional",
    "plot_attention": "vicinal.plot",
    "precompile": "vicinal.tuning.precompile",
    "tune": "vicinal.tuning.search",
}

if not TYPE_CHECKING:  # to type checkers, what is not listed above is not there

    def __getattr__(name):
        if name in _MODULES:
            return import_module(f"vicinal.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'vicinal' has no attribute {name!r}")
        found = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | {*__all__, *_MODULES})


if "torch" in sys.modules:
    import_module("vicinal.operators")
