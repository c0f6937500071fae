"""Context parallelism: one map over several ranks, by halo exchange (docs/distributed.md).

Names are imported when first asked for: `vicinal.routing`, which these functions go through, looks in here for tensors
that are split.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vicinal.distributed.functions import na1d, na2d, na3d, neighborhood_attention
    from vicinal.distributed.halo import Halo as Halo
    from vicinal.distributed.layout import Layout as Layout
    from vicinal.distributed.style import SplitMap as SplitMap

__all__ = ["Halo", "Layout", "SplitMap", "na1d", "na2d", "na3d", "neighborhood_attention"]

_HOMES = {
    "Halo": "halo",
    "Layout": "layout",
    "SplitMap": "style",
    "na1d": "functions",
    "na2d": "functions",
    "na3d": "functions",
    "neighborhood_attention": "functions",
}

if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module 'vicinal.distributed' has no attribute {name!r}")
        found = getattr(import_module(f"vicinal.distributed.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
