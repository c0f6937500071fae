"""Backends: how tiles are moved and multiplied. `vicinal.dispatch` orders them."""
