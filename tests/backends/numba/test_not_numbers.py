"""Scores that are large, infinite or no numbers, in the numba backend."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from closeness import (
    assert_as_close_as_torch,
    gradients,
    gradients_of,
)
from numba_calls import EXACT, any_config, assert_same, present, run
from strategies import whole
from vicinal import merge_attentions, na1d, neighborhood_attention
from vicinal.backends.numba import BACKEND
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem
from vicinal.reference import reference


def test_numbers_that_are_none_come_out_where_they_are_seen():
    call = whole(3)
    inputs = call.inputs()
    inputs.query[0, 5, 1, 2] = float("nan")
    found, *_ = run(inputs, call.neighborhoods, call.scale, 0)
    output, lse, _, _, grad_value = found
    assert output[0, 5, 1].isnan().all()
    assert lse[0, 5, 1].isnan()
    assert output.isnan().sum() == output.shape[-1]
    assert grad_value.isnan().any(-1).any(-1)[0].nonzero().flatten().tolist() == [4, 5, 6]


@pytest.mark.parametrize("size", [1e3, 3e15])
def test_large_scores(size):
    call = whole(5)
    inputs = call.inputs(torch.float32)
    inputs = Inputs(inputs.query * size, inputs.key * size, inputs.value)
    problem = Problem.of(inputs, call.neighborhoods, 1.0)
    output, lse = BACKEND.forward(problem, any_config(problem, 0), inputs)
    assert_as_close_as_torch([output, lse], inputs, call.neighborhoods, 1.0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [1e19, 1.8e19, 1e25], ids=["large", "near the largest", "beyond the largest"])
def test_keys_outside_a_window_change_nothing_however_large_their_scores(size, sign):
    # Every query sees itself alone; of the scores, one in two may be as large as can be.
    query = torch.full((1, 4, 1, 1), sign * size)
    key = torch.tensor([1.0, -size, 1.0, -1.0]).view(query.shape)
    value = torch.arange(4.0).view(query.shape)
    grad = torch.ones_like(value)
    leaves = [t.requires_grad_() for t in (query, key, value)]
    output, lse = neighborhood_attention(*leaves, Neighborhood.of(1, 1), scale=1.0, return_lse=True)
    scores = (query * key)[..., 0].detach()
    finite = scores.isfinite()
    torch.testing.assert_close(lse[finite].detach(), scores[finite])
    torch.testing.assert_close(output[..., 0][finite].detach(), value[..., 0][finite].detach())
    grads = torch.autograd.grad(output, leaves, grad)
    assert all((g[..., 0][finite] == (1.0 if i == 2 else 0.0)).all() for i, g in enumerate(grads))


def overflow(call, dtype):
    """Inputs where every score of one query of each head is -inf."""
    inputs = call.inputs(dtype)
    huge = 1e25 if dtype == torch.float32 else 1e200
    inputs.query[:, 5] = huge
    inputs = inputs._replace(key=-inputs.key.abs() * huge)
    extra = inputs.additional_keys
    return inputs if extra is None else inputs._replace(additional_keys=-extra.abs() * huge)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("with_grad_lse", [False, True])
def test_queries_without_a_score_give_nothing(dtype, extra, with_grad_lse, chunks):
    call = replace(whole(9), additional=extra)
    inputs = overflow(call, dtype)
    others = torch.arange(24) != 5
    found, grad, grad_lse = run(inputs, call.neighborhoods, 1.0, 0, with_grad_lse)
    output, lse, grad_query, *of_keys = found
    assert (output[:, 5] == 0).all()
    assert (lse[:, 5] == float("-inf")).all()
    assert (grad_query[:, 5] == 0).all()
    assert all(t.isfinite().all() for t in (output, lse[:, others]))
    # Keys' gradients are those of the other queries.
    problem = Problem.of(inputs, call.neighborhoods, 1.0)
    grad = grad * others[:, None, None]
    grad_lse = None if grad_lse is None else grad_lse * others[:, None]
    wanted = gradients_of(BACKEND, problem, any_config(problem, 1), inputs, output, lse, grad, grad_lse)
    assert_same(of_keys, present(wanted)[1:])


@pytest.mark.parametrize("extra", [0, 2])
def test_a_bias_of_minus_infinity_shuts_keys_out(extra, chunks):
    call = replace(whole(5), has_rpb=True, additional=extra)
    inputs = call.inputs()
    inputs.rpb[0] = float("-inf")  # the whole window of the first head
    inputs.rpb[1, :3] = float("-inf")  # part of it
    found, grad, _ = run(inputs, call.neighborhoods, call.scale, 0, with_grad_lse=False)
    wanted = gradients(lambda i: reference(i, call.neighborhoods, call.scale), inputs, grad, None)
    torch.testing.assert_close(found, wanted, **EXACT)
    if not extra:
        assert (found[1][:, :, 0] == float("-inf")).all()
        assert all((t[:, :, 0] == 0).all() for t in (found[0], found[2]))


def test_a_part_without_a_score_has_no_weight_in_a_merge():
    inputs = [torch.ones(1, 3, 1, 1) for _ in range(3)]
    rpb = torch.full((1, 1), float("-inf"), requires_grad=True)
    window = na1d(*inputs, 1, rpb=rpb, return_lse=True)
    other = na1d(*inputs[:2], torch.full((1, 3, 1, 1), 7.0), 3, return_lse=True)
    merged, _ = merge_attentions([window[0], other[0]], [window[1], other[1]])
    assert (merged == 7).all()
    output, lse = na1d(
        *inputs, 1, rpb=rpb, additional_keys=torch.ones(1, 1, 1, 1), additional_values=torch.full((1, 1, 1, 1), 7.0),
        return_lse=True,
    )  # fmt: skip
    assert (output == 7).all()
    assert (lse == 1).all()
