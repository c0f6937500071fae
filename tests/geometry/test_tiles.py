"""Boxes against the oracle's mask, by brute force."""

from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import axes
from vicinal.geometry.tiles import (
    alike,
    groups,
    key_interval,
    query_interval,
)
from vicinal.reference import axis_mask


@st.composite
def masks_and_tiles(draw):
    """One dilation group of an axis: the axis, its length, its mask, a query tile and a key tile."""
    axis, total = draw(axes(40))
    group = draw(st.sampled_from(groups(axis, total)))
    mask = axis_mask(axis, total)[group.offset :: axis.dilation, group.offset :: axis.dilation]

    def tile():
        start = draw(st.integers(0, group.length - 1))
        return start, draw(st.integers(start + 1, group.length))

    return axis, group.length, mask, tile(), tile()


@settings(max_examples=2000)
@given(masks_and_tiles())
def test_intervals(case):
    axis, length, mask, queries, keys = case
    attended = mask[slice(*queries)]
    columns = attended.any(0).nonzero().flatten().tolist()
    assert key_interval(axis, length, queries) == (columns[0], columns[-1] + 1)

    rows = mask[:, slice(*keys)].any(1).nonzero().flatten().tolist()
    first, last = query_interval(axis, length, keys)
    assert list(range(first, last)) == (list(range(rows[0], rows[-1] + 1)) if rows else [])


@given(axes(40))
def test_groups_alike_are_all_groups(case):
    axis, length = case
    expected = [(group.offset, group.length) for group in groups(axis, length)]
    found = alike(axis, length)
    assert [(kind.first + i, kind.length) for kind in found for i in range(kind.count)] == expected
    assert len({kind.length for kind in found}) == len(found)
