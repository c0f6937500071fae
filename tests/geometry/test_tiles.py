"""Boxes against the oracle's mask, by brute force."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import axes, spans
from vicinal.geometry.tiles import (
    alike,
    check_span,
    groups,
    key_interval,
    query_interval,
    reach,
)
from vicinal.reference import axis_mask, neighbors


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
    assert all(kind.own == kind.other == (0, kind.length) for kind in found)


@given(spans(40), st.booleans())
def test_groups_alike_of_a_span_hold_its_tokens(case, inverse):
    axis, length = case
    found = alike(axis, length, inverse)
    own, other = (axis.span.keys, axis.span.queries) if inverse else (axis.span.queries, axis.span.keys)

    def tokens(which: str) -> list[int]:
        return sorted(
            (kind.first + i) + axis.dilation * position
            for kind in found
            for i in range(kind.count)
            for position in range(*getattr(kind, which))
        )

    assert tokens("own") == list(range(*own))
    of_groups = {token % axis.dilation for token in range(*own)}
    assert tokens("other") == [token for token in range(*other) if token % axis.dilation in of_groups]
    assert all(kind.own[0] < kind.own[1] for kind in found)


@settings(max_examples=500)
@given(spans(40))
def test_reach(case):
    axis, _ = case
    span = axis.span
    each = [neighbors(axis, span.length, query) for query in range(*span.queries)]
    assert reach(axis, span.length, span.queries) == (min(map(min, each)), max(map(max, each)) + 1)
    if axis.boundary != "wrap":
        mask = axis_mask(replace(axis, span=None), span.length)[slice(*span.queries)]
        assert axis_mask(axis, span.query_length).equal(mask[:, slice(*span.keys)])


@given(spans(40), st.integers(0, 1))
def test_a_span_without_a_key_that_is_needed(case, end):
    axis, _ = case
    needed = list(reach(axis, axis.span.length, axis.span.queries))
    needed[end] += 1 - 2 * end
    if needed[0] >= needed[1]:
        return
    check_span(replace(axis, span=replace(axis.span, keys=reach(axis, axis.span.length, axis.span.queries))), 0)
    with pytest.raises(ValueError, match="keys of axis 2 must hold every query's window"):
        check_span(replace(axis, span=replace(axis.span, keys=tuple(needed))), 2)
