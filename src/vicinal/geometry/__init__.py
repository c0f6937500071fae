"""Geometry: pure integers. Which keys, which boxes, which masks, how much work. Imports neither torch nor Triton."""

from vicinal.geometry.neighborhood import Axis, Neighborhood

__all__ = ["Axis", "Neighborhood"]
