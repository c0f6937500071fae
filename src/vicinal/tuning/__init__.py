"""Tuning: how a launch is tiled, and what that should cost."""
