"""Where packed sequences begin and end, from their lengths or from lengths added up."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicinal.packing import Packing

NOTHING = Packing(None, None, None, None, None, None)


def tokens(count):
    return torch.zeros(1, count, 1, 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5), st.booleans())
def test_spans_follow_each_other(lengths, is_added_up):
    queries, keys = (list(column) for column in zip(*lengths))
    given = [torch.tensor([0, *accumulate(n)] if is_added_up else n) for n in (queries, keys)]
    packing = NOTHING._replace(**dict(zip(NOTHING._fields[2:4] if is_added_up else NOTHING._fields[:2], given)))
    spans = packing.spans(tokens(sum(queries)), tokens(sum(keys)))
    assert [(q.stop - q.start, k.stop - k.start) for q, k in spans] == lengths
    for column, total in zip(zip(*spans), (sum(queries), sum(keys))):
        assert [s.start for s in column] == [0, *(s.stop for s in column[:-1])]
        assert column[-1].stop == total


@pytest.mark.parametrize("maxima", [(None, None), (0, 0), (0, None)])
def test_nothing_is_packed_where_nothing_says_so(maxima):
    packing = NOTHING._replace(max_seqlen_Q=maxima[0], max_seqlen_KV=maxima[1])
    assert packing.spans(tokens(3), tokens(4)) is None


@pytest.mark.parametrize("longest", [2, 3])
def test_a_maximum_that_is_large_enough_is_accepted(longest):
    lengths = torch.tensor([1, 2], dtype=torch.int32)
    packing = Packing(lengths, lengths, None, None, longest, longest)
    assert packing.spans(tokens(3), tokens(3)) == [(slice(0, 1),) * 2, (slice(1, 3),) * 2]


def test_lengths_on_the_cpu_serve_tensors_elsewhere():
    lengths = torch.tensor([1, 2])
    spans = NOTHING._replace(seqlens_Q=lengths, seqlens_KV=lengths).spans(tokens(3).to("meta"), tokens(3).to("meta"))
    assert len(spans) == 2
