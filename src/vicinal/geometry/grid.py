"""Queries on another grid than the keys: where they sit along one axis. Windows are then those of the key they sit at.

Both grids cover the same extent: query `i` of `queries` is in the middle of its cell, and sits at the key in whose cell
(of `keys`) that is, the later one where it is between two. All functions also take tensors, and compute elementwise.
"""

from __future__ import annotations


def key_at(query: int, queries: int, keys: int) -> int:
    """The key that a query sits at."""
    return (2 * query + 1) * keys // (2 * queries)


def first_query_at(key: int, queries: int, keys: int) -> int:
    """The first query that sits at a key or beyond it."""
    return (2 * queries * key + keys - 1) // (2 * keys)  # that of key 0 is 0, since keys - 1 < 2 * keys


def most_queries(queries: int, keys: int) -> int:
    """How many queries sit at one key, at most."""
    return -(-queries // keys)
