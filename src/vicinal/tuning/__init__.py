"""Measured choices of configurations: `table` and `cache` are what plans read, `search` is what measures.

Imports nothing, for plans need a part of it only.
"""
