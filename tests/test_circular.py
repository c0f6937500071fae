"""Circular axes: keys copied around, in any layout, and queries near a seam by themselves."""

from __future__ import annotations

import pytest
import torch

import vicinal
from closeness import assert_as_close_as_torch
from vicinal import circular
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span
from vicinal.geometry.unroll import seam
from vicinal.problem import Inputs

of = Neighborhood.of
LAYOUTS = {
    "contiguous": lambda t: t,
    "heads first": lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
    "every other": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "one head": lambda t: t[:, :, :, :1].expand(t.shape),
    "not at 16 bytes": lambda t: t[..., 1:],
    "negated when read": torch._neg_view,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dim", [8, 7])
def test_copies_are_the_tokens_whatever_their_layout(dim, dtype, layout):
    tokens = LAYOUTS[layout](torch.randn(2, 5, 6, 3, dim).to(dtype))
    for axis, length in ((1, 5), (2, 6)):
        span = Span(length, (0, length), (-2, length + 3))
        assert torch.equal(circular._copied(tokens, axis, span), circular.around(tokens, axis, span))


@pytest.mark.parametrize(
    ("lengths", "neighborhood", "more"),
    [
        ((64,), of(1, 4, boundary="wrap"), {}),
        ((3, 96), of(2, (3, 3), dilation=(1, 2), boundary=("clip", "wrap")), {"additional": 3}),
        ((128, 3), of(2, (5, 3), stride=(4, 1), boundary=("wrap", "shift")), {"rpb": True}),
    ],
)
def test_queries_near_a_seam_by_themselves(lengths, neighborhood, more, monkeypatch):
    """As where keys are copied: where there are gradients they are."""
    taken = []
    monkeypatch.setattr(circular, "seam_of", lambda problem, own, backend: seam(own, problem.lengths))
    near = circular.near_seam
    monkeypatch.setattr(circular, "near_seam", lambda inputs, own: (taken.append(own), near(inputs, own))[1])
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    query, key, value = (make(2, *lengths, 2, 8) for _ in range(3))
    extra = {
        n: make(2, more["additional"], 2, 8) for n in ("additional_keys", "additional_values") if "additional" in more
    }
    if "rpb" in more:
        extra["rpb"] = make(2, *(2 * k - 1 for k in neighborhood.window))
    own = (neighborhood.resolve(lengths),)
    results = vicinal.neighborhood_attention(
        query, key, value, neighborhood, scale=0.3, return_lse=True, backend="torch", **extra
    )
    assert len(taken) == 1
    assert_as_close_as_torch(results, Inputs(query, key, value, **extra), own, 0.3)
    vicinal.neighborhood_attention(query.requires_grad_(), key, value, neighborhood, backend="torch", **extra)
    assert len(taken) == 1
