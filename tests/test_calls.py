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


@pytest.mark.parametrize("backend", [None, "torch"])
def test_clamp_takes_the_largest_windows_that_fit(backend):
    q, k, v = torch.randn(3, 1, 11, 4, 2, 8).unbind(0)
    rpb = torch.randn(2, 9, 9)
    found = vicinal.na2d(q, k, v, 5, dilation=(3, 1), rpb=rpb, clamp=True, backend=backend)
    expected = vicinal.na2d(q, k, v, (3, 4), dilation=(3, 1), rpb=rpb[:, 2:7, 1:8], backend=backend)
    assert torch.equal(found, expected)
    assert torch.equal(vicinal.na2d(q, k, v, (3, 4), clamp=True), vicinal.na2d(q, k, v, (3, 4)))


def test_clamp_per_head_and_of_whole_axes():
    q, k, v = torch.randn(3, 1, 9, 2, 8).unbind(0)
    heads = [vicinal.Neighborhood.of(1, w, dilation=2) for w in (None, 11)]
    found = vicinal.neighborhood_attention(q, k, v, heads, clamp=True)
    assert torch.equal(found, vicinal.na1d(q, k, v, 4, dilation=2))


def test_clamp_compiles_for_any_length():
    call = torch.compile(lambda x: vicinal.na1d(x, x, x, 9, clamp=True), dynamic=True, backend="eager", fullgraph=True)
    for length in (5, 20, 12):
        x = torch.randn(1, length, 1, 4)
        torch.testing.assert_close(call(x), vicinal.na1d(x, x, x, min(9, length)))


def test_a_window_per_token_is_that_windows_result():
    q, k, v = torch.randn(3, 2, 7, 9, 2, 8).unbind(0)
    sizes = 2 * torch.randint(0, 3, (2, 7, 9, 2)) + 1
    found = vicinal.na2d(q, k, v, sizes, max_kernel_size=5, dilation=(1, 2), is_causal=(True, False), clamp=True)
    each = {n: vicinal.na2d(q, k, v, (n, min(n, 4)), dilation=(1, 2), is_causal=(True, False)) for n in (1, 3, 5)}
    expected = sum(torch.where(sizes[..., None] == n, out, 0) for n, out in each.items())
    torch.testing.assert_close(found, expected)
    shared = vicinal.na2d(q, k, v, sizes[..., 0], max_kernel_size=5)
    torch.testing.assert_close(shared, vicinal.na2d(q, k, v, sizes[..., :1].expand(-1, -1, -1, 2), max_kernel_size=5))
