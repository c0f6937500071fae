"""vicinal: exact, fast neighborhood attention in 1-D, 2-D and 3-D, in pure Python."""

from vicinal._version import __version__
from vicinal.functional import attention, merge_attentions, na1d, na2d, na3d, neighborhood_attention
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.nn import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D

__all__ = [
    "Neighborhood",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "__version__",
    "attention",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention",
]
