"""Tables of tiles against windows one by one."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import axes, spans, tiles
from vicinal.backends.numba import tables
from vicinal.backends.numba.kernels import call as c
from vicinal.geometry.count import count
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import groups, key_interval
from vicinal.reference import axis_mask

BORDERS = {"shift": {}, "clip": {"boundary": "clip"}, "causal": {"causal": True}}


def tile(own, index):
    """As a kernel reads it: first query, first key, number of keys, the windows from there, the first offset."""
    fields, table = own.fields, own.table.tolist()
    kind = fields[c.KINDS]
    while table[kind + c.KIND_FIELDS + c.KIND_FIRST] <= index:
        kind += c.KIND_FIELDS
    first_tile, of_group, group, run, begin = table[kind : kind + c.KIND_FIELDS]
    place, number = divmod(index - first_tile, of_group)
    group += place
    run += fields[c.RUNS]
    while table[run + c.RUN_FIELDS + c.RUN_FIRST] <= number:
        run += c.RUN_FIELDS
    first, pattern, period, low_step, high_step = table[run : run + c.RUN_FIELDS]
    turn, within = divmod(number - first, period)
    size, dilation = fields[c.TILE_SIZE], fields[c.DILATION]
    at = fields[c.PATTERNS] + (c.PATTERN_FIELDS + 2 * size) * (pattern + within)
    count, low, high = table[at : at + c.PATTERN_FIELDS]
    low, high = low + turn * low_step, high + turn * high_step
    ends = table[at + c.PATTERN_FIELDS : at + c.PATTERN_FIELDS + 2 * count]
    windows = [(start, high - low - stop) for start, stop in zip(ends[::2], ends[1::2])]
    query = begin + number * size
    return group + query * dilation, group + low * dilation, high - low, windows, low - query


def small_axes(length, border, dilation):
    longest = length // dilation if border == "shift" else length + 2
    return [Axis(k, s, dilation, **BORDERS[border]) for k in range(1, longest + 1) for s in range(1, k + 1)]


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("length", "dilation"), [(1, 1), (2, 1), (7, 1), (17, 1), (17, 3), (12, 2), (3, 5)])
def test_tables_hold_every_window_of_every_small_axis(length, dilation, border):
    for axis, size in product(small_axes(length, border, dilation), (1, 2, 3, 8)):
        own = tables.axis_table(axis, length, size)
        mask = torch.zeros(length, length, dtype=torch.bool)
        for index in range(own.fields[c.TILE_COUNT]):
            first_query, first_key, keys, windows, offset = tile(own, index)
            for i, (start, stop) in enumerate(windows):
                assert 0 <= start < stop <= keys
                mask[
                    first_query + i * dilation, first_key + start * dilation : first_key + stop * dilation : dilation
                ] = 1
            assert offset + own.fields[c.REACH] >= 0
            assert offset + own.fields[c.REACH] + keys <= own.fields[c.OFFSETS]
        assert torch.equal(mask, axis_mask(axis, length)), (axis, size)


@given(spans(40), st.integers(1, 16))
def test_tables_of_spans_hold_every_window(case, size):
    axis, length = case
    own, dilation, span = tables.axis_table(axis, length, size), axis.dilation, axis.span
    mask = torch.zeros(span.query_length, span.key_length, dtype=torch.bool)
    for index in range(own.fields[c.TILE_COUNT]):
        first_query, first_key, keys, windows, offset = tile(own, index)
        assert 0 <= offset + own.fields[c.REACH] <= own.fields[c.OFFSETS] - keys
        for i, (start, stop) in enumerate(windows):
            low, high = (first_key + n * dilation - span.keys[0] for n in (start, stop))
            assert min(first_query - span.queries[0], low) >= 0
            mask[first_query + i * dilation - span.queries[0], low:high:dilation] = True
    assert torch.equal(mask, axis_mask(axis, length))


@settings(max_examples=300)
@given(axes(600) | spans(120), st.integers(1, 16))
def test_tables_count_the_keys_of_boxes(case, size):
    own, exact = tables.axis_table(*case, size), count(*case, size, 1)
    assert (own.tiles, own.covered, own.widest) == (exact.tiles, exact.covered, exact.widest)


@pytest.mark.parametrize("axis", [Axis(255), Axis(64, 48), Axis(300, causal=True), Axis(9, 4, 5, boundary="clip")])
def test_tables_of_a_million_tokens_are_small(axis):
    assert tables.axis_table(axis, 1 << 20, 16).nbytes < 1 << 14


def test_the_same_on_long_axes():
    for axis, size in product([Axis(37, 9), Axis(40, 12, 2, causal=True), Axis(31, 7, boundary="clip")], (5, 16)):
        own, length = tables.axis_table(axis, 1001, size), 1001
        expected = [
            (group.offset + first * axis.dilation, group.offset + low * axis.dilation, high - low)
            for group in groups(axis, length)
            for first, last in tiles(group.length, size)
            for low, high in [key_interval(axis, group.length, (first, last))]
        ]
        assert [tile(own, i)[:3] for i in range(own.fields[c.TILE_COUNT])] == expected


def test_lanes():
    places, bits = tables.lane_table((2, 1, 3))
    assert places[:, :6].T.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [1, 0, 0], [1, 0, 1], [1, 0, 2]]
    assert (places[:, 6:] == 16).all()
    assert bits[0, :2].tolist() == [0b000111, 0b111000]
    assert bits[2, :3].tolist() == [0b001001, 0b010010, 0b100100]
