"""Blocks of queries, in which the one-pass backward adds up dQ."""

from __future__ import annotations

from math import prod

from hypothesis import given
from hypothesis import strategies as st

from vicinal.backends.gpu.shapes import shapes_of
from vicinal.backends.hopper.kernels.arguments import block_of

STEPS = st.sampled_from([step for step in shapes_of(64, 3) if step[-1] >= 4])


def at(row: int, box: tuple[int, ...]) -> tuple[int, ...]:
    """Where a row of a row-major box is."""
    found = []
    for n in reversed(box):
        row, x = divmod(row, n)
        found.insert(0, x)
    return tuple(found)


@given(STEPS, st.integers(0, 63), st.tuples(*[st.integers(0, 30)] * 3))
def test_a_query_is_in_one_place_whatever_tile_it_is_of(step, row, multiples):
    """Of a tile from a multiple of a block, each 16 rows are a block, in the order of its own box."""
    block = block_of(step)
    assert prod(block) == 16
    token = [n * b + x for n, b, x in zip(multiples, block, at(row, step))]
    assert tuple(x % b for x, b in zip(token, block)) == at(row % 16, block)
    first = [n * b + x for n, b, x in zip(multiples, block, at(row // 16 * 16, step))]
    assert [x // b for x, b in zip(first, block)] == [x // b for x, b in zip(token, block)]
