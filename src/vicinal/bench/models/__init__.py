"""Whole models with their attention computed by one system or another: images per second, checked, in turns."""
