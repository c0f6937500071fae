"""Attention maps: weights at the places of the oracle's keys."""

import pytest
import torch

from vicinal import Neighborhood, plot_attention
from vicinal.extras import MissingExtra
from vicinal.plot import attention_map
from vicinal.unfused import na2d_qk

pytest.importorskip("matplotlib")
GEOMETRIES = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "dilation": (2, 3)},
    {"kernel_size": 4, "stride": (2, 3)},
    {"kernel_size": 3, "is_causal": (True, False)},
    {"kernel_size": 5, "boundary": "clip"},
]


def one_hot_scores(geometry):
    """Unscaled scores whose value tells the key: that of token `n` is `n`, where additional keys are -1."""
    query, key = torch.ones(1, 7, 8, 1, 16), torch.zeros(1, 7, 8, 1, 16)
    key[..., 0] = torch.arange(56.0).view(1, 7, 8, 1) + 1
    return na2d_qk(query, key, additional_keys=-torch.ones(1, 2, 1, 16), **geometry)[0, ..., 0, :]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("query", [(0, 0), (3, 4), (6, 7), (1, 5)])
def test_weights_stand_at_their_keys(geometry, query):
    scores = one_hot_scores(geometry)
    spread = attention_map(scores, query, Neighborhood.of(2, **geometry))
    keys = scores[query][:-2]
    keys = keys[keys.isfinite()]
    assert sorted(spread[spread != 0].tolist()) == sorted(keys.tolist())
    tokens = torch.arange(1, 57.0).view(7, 8)
    assert torch.equal(spread[spread != 0], tokens[spread != 0])


def weights(heads=3):
    torch.manual_seed(0)
    return torch.rand(2, 6, 8, heads, 9).softmax(-1)


def drawn(axes):
    return torch.tensor(axes.images[-1].get_array())


def test_the_mean_of_heads_or_one_of_them_is_drawn_over_the_image():
    w = weights()
    image = torch.rand(60, 80, 3)
    mean = plot_attention(w, (2, 3), 3, image, batch=1)
    one = plot_attention(w, (2, 3), 3, batch=1, head=2)
    assert len(mean.images) == 2
    assert len(one.images) == 1
    torch.testing.assert_close(drawn(mean), attention_map(w[1].mean(2), (2, 3), 3))
    torch.testing.assert_close(drawn(one), attention_map(w[1, :, :, 2], (2, 3), 3))
    assert mean.images[0].get_extent() == mean.images[1].get_extent()


def test_axes_that_are_given_are_drawn_on():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert plot_attention(weights(), (0, 0), 3, axes=axes) is axes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": torch.zeros(6, 8, 9)}, r"weights must be a tensor \[B, X0, X1, H, slots\], got shape"),
        ({"weights": None}, "got NoneType"),
        ({"query": (6, 0)}, r"query must be a place among tokens of \(6, 8\), got \(6, 0\)"),
        ({"query": (1,)}, "query must be a place"),
        ({"neighborhood": 4}, "weights must have at least 16 slots, got 9"),
        ({"batch": 2}, "batch must be from 0 to 1, got 2"),
        ({"head": 3}, "head must be from 0 to 2, got 3"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    arguments = {"weights": weights(), "query": (0, 0), "neighborhood": 3} | change
    with pytest.raises(ValueError, match=words):
        plot_attention(**arguments)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("vicinal.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"vicinal\[plot\]"):
        plot_attention(weights(), (0, 0), 3)
