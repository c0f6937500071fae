"""An axis seen as two: the same neighbors, token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import neighborhoods
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.unfold import beside, can_unfold, unfold
from vicinal.reference import neighborhood_mask


@st.composite
def dilated(draw):
    neighborhood, lengths = draw(neighborhoods(2, 12))
    axes = [axis for axis in range(2) if can_unfold(neighborhood, axis)]
    return neighborhood, lengths, draw(st.sampled_from(axes)) if axes else None


def tokens_of(part, lengths, dilation, axis):
    """The row-major numbers of a part's tokens in the whole problem."""
    grids = torch.meshgrid(*(torch.arange(n) for n in part.lengths), indexing="ij")
    along = grids[axis] * dilation + part.first + grids[axis + 1]
    places = [along if a == axis else grids[a if a < axis else a + 1] for a in range(len(lengths))]
    number = torch.zeros(part.lengths, dtype=torch.long)
    for place, length in zip(places, lengths):
        number = number * length + place
    return number.flatten()


@settings(max_examples=300)
@given(dilated())
def test_parts_have_the_same_neighbors(case):
    neighborhood, lengths, axis = case
    if axis is None:
        return
    mask = neighborhood_mask(neighborhood, lengths)
    seen = torch.zeros_like(mask)
    for part in unfold(neighborhood, lengths, axis):
        tokens = tokens_of(part, lengths, neighborhood.axes[axis].dilation, axis)
        seen[tokens[:, None], tokens[None, :]] = neighborhood_mask(part.neighborhood, part.lengths)
    assert torch.equal(seen, mask)


def test_longer_groups_come_first():
    parts = unfold(Neighborhood.of(1, 3, dilation=6), (20,), 0)
    assert [(part.lengths, part.first) for part in parts] == [((4, 2), 0), ((3, 4), 2)]


@pytest.mark.parametrize(("rank", "dilation", "can"), [(1, 1, False), (1, 2, True), (2, 2, True), (3, 2, False)])
def test_what_can_be_unfolded(rank, dilation, can):
    assert can_unfold(Neighborhood.of(rank, 3, dilation=dilation), 0) == can


def test_values_of_groups_follow_those_of_their_axis():
    assert beside((1, 2), 0, 9) == (1, 9, 2)
