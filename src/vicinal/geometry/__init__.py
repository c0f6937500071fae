"""Geometry: pure integers. Which keys, which boxes, which masks, how much work. Imports neither torch nor Triton."""

from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.span import Span

__all__ = ["Axis", "Neighborhood", "Span"]
