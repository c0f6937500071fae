"""The Hopper kernels, in plain Python on the CPU, against the definition: with a key mask, and without.

What they compute and wait for. What only a GPU shows (registers, the order of asynchronous accesses) is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import plain_gluon
from strategies import Call, calls
from vicinal import neighborhood_attention
from vicinal.backends.gpu.hardware import ASSUMED
from vicinal.backends.hopper import BACKEND, backward, onepass, unsupported_anywhere
from vicinal.backends.hopper.launch import Launcher
from vicinal.backends.hopper.tilings import backward_configs, forward_configs, one_pass_configs
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span
from vicinal.problem import Inputs, Problem, Upstream, Wanted

of = Neighborhood.of
CASES = {  # lengths, neighborhood, heads, key heads, head dim
    "plane": ((10, 21), of(2, (5, 7)), 2, 1, 64),
    "line, strided": ((200,), of(1, 64, stride=8), 1, 1, 128),
    "dilated, causal": ((8, 23), of(2, (5, 3), dilation=(1, 3), is_causal=(True, False)), 1, 1, 64),
    "clipped": ((3, 6, 9), of(3, (2, 5, 4), boundary="clip"), 1, 1, 48),
    "wide": ((8, 10), of(2, 5), 1, 1, 192),
    # Keys that no query that is given attends to, beside some that have queries.
    "part": (
        (20, 9),
        of(2, (5, 7)).resolve((64, 12)).over((Span(64, (8, 28), (0, 64)), Span(12, (0, 9), (0, 12)))),
        1,
        1,
        128,
    ),
}
MASKS = ("no mask", "some", "most", "half", "an entry")
MASKS_OF = {"plane": MASKS, "part": ("no mask",)}


def key_mask(name: str, shape: tuple[int, ...]) -> Tensor | None:
    """What is there of a batch."""
    if name == "no mask":
        return None
    share = {"some": 0.6, "most": 0.04}.get(name, 1.0)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share
    if name == "half":
        mask[..., shape[-1] // 2 :] = False
    if name == "an entry":
        mask[0] = False
    return mask


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """On a card of two multiprocessors: programs take items one after the other."""
    monkeypatch.setattr(Launcher, "__call__", plain_gluon.run)
    monkeypatch.setattr(onepass, "gpu_of", lambda device: replace(ASSUMED, processors=2))


def gradients(problem: Problem, inputs: Inputs, upstream: Upstream) -> Iterator[Inputs]:
    """Of two passes, and where there are tilings for it of one."""
    yield backward.backward(problem, backward_configs(problem)[0], inputs, upstream, Wanted.of(inputs))
    for config in one_pass_configs(problem)[:1]:
        yield onepass.backward(problem, config, inputs, upstream)


@pytest.mark.parametrize(
    ("case", "masked"),
    [(case, masked) for case in CASES for masked in MASKS_OF.get(case, ("no mask", "most"))],
)
def test_kernels(case, masked):
    """Masked tokens, and what comes from above for them, are no numbers: those queries have no answer then."""
    lengths, neighborhood, heads, kv_heads, dim = CASES[case]
    generator = torch.Generator().manual_seed(0)
    neighborhood = neighborhood.resolve(lengths)
    walked = neighborhood.key_lengths(lengths)
    shapes = [(2, *x, h, dim) for x, h in ((lengths, heads), (walked, kv_heads), (walked, kv_heads), (lengths, heads))]
    *tensors, above = (torch.randn(s, generator=generator).half() for s in shapes)
    leaves = [t.float().requires_grad_() for t in tensors]
    mask = key_mask(masked, shapes[0][:-2])
    gone = torch.zeros(()) > 0 if mask is None else ~mask[..., None, None]
    output, lse = neighborhood_attention(*leaves, neighborhood, key_mask=mask, return_lse=True, backend="torch")
    output, lse = output.masked_fill(gone, 0.0), lse.masked_fill(gone[..., 0] if mask is not None else gone, -torch.inf)
    expected = torch.autograd.grad(output, leaves, above.float())

    inputs = Inputs(*(t.masked_fill(gone, torch.nan) for t in tensors), key_mask=mask)
    problem = Problem.of(inputs, (neighborhood,), dim**-0.5)
    found, found_lse = BACKEND.forward(problem, forward_configs(problem)[0], inputs)
    assert_close(found, output.detach())
    torch.testing.assert_close(found_lse, lse.detach(), rtol=1e-3, atol=1e-3)
    upstream = Upstream(found, found_lse, above.masked_fill(gone, torch.nan))
    for results in gradients(problem, inputs, upstream):
        for one, other in zip(results[:3], expected, strict=True):
            assert_close(one, other)


@settings(max_examples=6)
@given(calls(spans=True), *[st.sampled_from([8, 32, 40, 64, 72, 128])] * 2, st.booleans(), st.data())
def test_random_calls(drawn: Call, head_dim: int, value_dim: int, masked: bool, data: st.DataObject):
    """By any of the tilings that are listed."""
    call = replace(drawn, head_dim=head_dim, value_dim=value_dim, has_rpb=False, additional=0, masked=0.4 * masked)
    inputs = call.inputs(torch.float16)
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    assume(unsupported_anywhere(problem) is None)
    leaves = [t.float().requires_grad_() for t in inputs[:3]]
    rest = {"scale": call.scale, "key_mask": inputs.key_mask, "return_lse": True, "backend": "torch"}
    expected = neighborhood_attention(*leaves, one_or_all(call.neighborhoods), **rest)
    found = BACKEND.forward(problem, data.draw(st.sampled_from(BACKEND.configs(problem, "forward"))), inputs)
    assert_close(found[0], expected[0].detach())
    torch.testing.assert_close(found[1], expected[1].detach(), rtol=1e-3, atol=2e-3)
    above = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(1)).half()
    config = data.draw(st.sampled_from(BACKEND.configs(problem, "backward")))
    results = BACKEND.backward(problem, config, inputs, Upstream(*found, above), Wanted.of(inputs))
    for one, other in zip(results[:3], torch.autograd.grad(expected[0], leaves, above.float()), strict=True):
        assert_close(one, other)


def one_or_all(neighborhoods: tuple[Neighborhood, ...]) -> Any:
    return neighborhoods if len(neighborhoods) > 1 else neighborhoods[0]


def assert_close(found: Tensor, expected: Tensor) -> None:
    """By root mean squares; where gradients all but cancel, by what they are made of."""
    error = (found.float() - expected).norm()
    assert error <= 4e-3 * max(expected.norm(), 0.02 * expected.numel() ** 0.5)
