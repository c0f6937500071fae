"""What the public functions have in common."""

import pytest
import torch

import vicinal
from vicinal import calls
from vicinal.geometry.neighborhood import Neighborhood


def test_ignored_knobs_warn_once(recwarn, monkeypatch):
    monkeypatch.setattr(calls, "_warned", set())
    x = torch.randn(1, 8, 2, 4)
    for _ in range(2):
        output = vicinal.na1d(x, x, x, 3, q_tile_shape=(64,), run_persistent_kernel=False)
    messages = [str(w.message) for w in recwarn if "vicinal ignores" in str(w.message)]
    assert len(messages) == 1
    assert "q_tile_shape, run_persistent_kernel" in messages[0]
    assert recwarn[0].filename == __file__
    assert torch.equal(output, vicinal.na1d(x, x, x, 3))


@pytest.mark.parametrize(
    "values",
    [
        (3, 1, 1, False, "shift"),
        (None, None, None, None, "clip"),
        ((3, 5), 2, [1, 2], (True, False), "shift"),
        ([None, 5], (1, 1), 1, True, ("clip", "shift")),
        ((3, 5), None, None, None, "shift"),
    ],
)
def test_neighborhoods_are_made_once(values):
    found = calls.neighborhood(2, *values)
    assert found == Neighborhood.of(2, *values)
    assert calls.neighborhood(2, *values) is found
