"""Problems of the Triton backend's tests, how their gradients are launched, and the check against the oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import strategies
from closeness import assert_as_close_as_torch, gradients_of
from vicinal.backends import triton as backend
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.circular import unroll
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span
from vicinal.geometry.tiles import reach
from vicinal.problem import Problem

of = Neighborhood.of
device = "cuda" if torch.cuda.is_available() else "cpu"


def call(
    lengths,
    neighborhoods,
    heads=1,
    kv_heads=1,
    head_dim=8,
    value_dim=8,
    additional=0,
    has_rpb=False,
    batch=1,
    seed=0,
    queries=None,
    spare=1,
    masked=0.0,
    sized=False,
):
    """`queries`: intervals of them along the axes, with their keys and up to `spare` more at each end."""
    neighborhoods = neighborhoods if isinstance(neighborhoods, tuple) else (neighborhoods,)
    if queries is not None:
        spans = []
        for i, (n, own) in enumerate(zip(lengths, queries)):
            needed = [reach(each.resolve(lengths).axes[i], n, own) for each in neighborhoods]
            keys = max(min(low for low, _ in needed) - spare, 0), min(max(high for _, high in needed) + spare, n)
            spans.append(Span(n, own, keys))
        neighborhoods = tuple(each.over(spans) for each in neighborhoods)
        lengths = tuple(span.query_length for span in spans)
    resolved = tuple(n.resolve(lengths) for n in neighborhoods)
    sizes = (batch, heads, kv_heads, head_dim, value_dim, additional)
    return strategies.Call(resolved, lengths, *sizes, has_rpb, seed, masked, sized)


def in_launches(config, together):
    """The same tiles in one launch or in two."""
    key_value = replace(config.key_value, warps=config.query.warps, stages=config.query.stages)
    return GradientTilings(config.query, key_value, together)


def by_turns(cases):
    """Every other one with both gradients in one launch."""
    return [pytest.param(*case.values, i % 2 == 0, id=case.id) for i, case in enumerate(cases)]


def check(
    drawn,
    dtype=torch.float32,
    tiles=None,
    tiling=None,
    backward=True,
    with_grad_lse=True,
    scale=None,
    inputs=None,
    together=None,
):
    """Forward and backward are as close to the oracle as torch's attention; tiled as listed first, or as given."""
    scale = drawn.scale if scale is None else scale
    inputs = drawn.inputs(dtype, device) if inputs is None else inputs
    if drawn.neighborhoods[0].is_circular:
        inputs, neighborhoods = unroll(inputs, drawn.neighborhoods)
        drawn = replace(drawn, neighborhoods=neighborhoods)
    problem = Problem.of(inputs, drawn.neighborhoods, scale)
    reason = backend.BACKEND.unsupported(problem)
    if reason is not None:
        pytest.skip(reason)
    tiling = Tiling(*tiles) if tiles else tiling
    config = tiling or backend.BACKEND.configs(problem, "forward")[0]
    output, lse = backend.BACKEND.forward(problem, config, inputs)
    if not backward:
        assert_as_close_as_torch([output, lse], inputs, drawn.neighborhoods, scale)
        return
    generator = torch.Generator().manual_seed(drawn.seed + 1)
    grad_output = torch.randn(output.shape, generator=generator).to(output)
    grad_lse = torch.randn(lse.shape, generator=generator).to(lse) if with_grad_lse else None
    config = GradientTilings(tiling, tiling) if tiling else backend.BACKEND.configs(problem, "backward")[0]
    if together is not None:
        config = in_launches(config, together)
    grads = gradients_of(backend.BACKEND, problem, config, inputs, output, lse, grad_output, grad_lse)
    for grad, given_ in zip(grads.numbers, inputs.numbers, strict=True):
        assert (grad is None) == (given_ is None)
        assert grad is None or (grad.dtype == given_.dtype and grad.is_contiguous())
    results = [output, lse, *(g for g in grads if g is not None)]
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, scale, grad_output, grad_lse)
