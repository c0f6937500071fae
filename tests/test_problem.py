"""Problems: what is derived from a call's tensors."""

import pickle
from math import prod

import pytest
import torch
from hypothesis import given

from strategies import calls
from vicinal import Neighborhood
from vicinal.problem import DTYPES, Inputs, Problem, dtype_name, lse_dtype
from vicinal.reference import neighborhood_mask


def problem(batch=2, window=3, scale=0.5, dtype=torch.float32):
    tensors = (torch.zeros(batch, 8, 4, 6, dtype=dtype), torch.zeros(batch, 8, 2, 6, dtype=dtype))
    return Problem.of(Inputs(*tensors, torch.zeros(batch, 8, 2, 5, dtype=dtype)), [Neighborhood.of(1, window)], scale)


def test_equal_calls_are_one_problem():
    assert problem() == problem()
    assert hash(problem()) == hash(problem())


@pytest.mark.parametrize("change", [{"batch": 1}, {"window": 5}, {"scale": 0.0}, {"dtype": torch.float64}], ids=str)
def test_different_calls_are_different_problems(change):
    assert problem(**change) != problem()


def test_is_sent_without_its_hash():
    sent = problem()
    hash(sent)  # and so it is cached
    received = pickle.loads(pickle.dumps(sent))
    assert received == sent
    assert "_hash" not in vars(received)


def test_sizes():
    p = problem()
    assert (p.batch, p.lengths, p.heads, p.kv_heads, p.head_dim, p.value_dim) == (2, (8,), 4, 2, 6, 5)
    assert (p.rank, p.group_size, p.per_head, p.neighborhood.window) == (1, 2, False, (3,))


@given(calls(spans=True))
def test_useful_scores_count_the_mask(call):
    p = Problem.of(call.inputs(), call.neighborhoods, call.scale)
    masks = [int(neighborhood_mask(n, call.lengths).sum()) for n in call.neighborhoods]
    window = sum(masks) * (call.heads // len(masks))
    assert p.useful_scores == call.batch * (window + call.heads * call.additional * prod(call.lengths))
    assert p.forward_flops == 2 * p.useful_scores * (call.head_dim + call.value_dim)
    assert p.backward_flops == 2 * p.useful_scores * (3 * call.head_dim + 2 * call.value_dim)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_lse_dtype(dtype, expected):
    assert lse_dtype(dtype) == expected


@pytest.mark.parametrize("name", DTYPES)
def test_dtype_names_go_both_ways(name):
    assert dtype_name(DTYPES[name]) == name
