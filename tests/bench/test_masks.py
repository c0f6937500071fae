import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.testing import assert_close

from vicinal.bench.cases import random_inputs
from vicinal.bench.masks import BLOCK, dense_mask, flex_block_mask
from vicinal.reference import neighborhood_mask, reference


def test_dense_mask_is_the_definition(case):
    problem = case.problem("cpu")
    assert torch.equal(dense_mask(problem), neighborhood_mask(problem.neighborhood, problem.lengths))


def test_block_mask_sorts_blocks_exactly(case):
    problem = case.problem("cpu")
    mask = neighborhood_mask(problem.neighborhood, problem.lengths)
    padded = -(-mask.shape[0] // BLOCK) * BLOCK
    whole = torch.zeros(padded, padded, dtype=torch.bool)
    whole[: mask.shape[0], : mask.shape[1]] = mask
    blocks = whole.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    some, every = blocks.any(3).any(1), blocks.all(3).all(1)

    made = flex_block_mask(problem)
    for counts, indices, expected in (
        (made.kv_num_blocks, made.kv_indices, some & ~every),
        (made.full_kv_num_blocks, made.full_kv_indices, every),
    ):
        found = torch.zeros_like(expected)
        for row, count in enumerate(counts[0, 0].tolist()):
            found[row, indices[0, 0, row, :count].long()] = True
        assert torch.equal(found, expected)


def test_flex_attention_with_the_block_mask_is_the_oracle(case):
    problem = case.problem("cpu")
    inputs = random_inputs(problem)
    q, k, v = (t.double().flatten(1, -3).transpose(1, 2) for t in inputs[:3])
    output = flex_attention(q, k, v, block_mask=flex_block_mask(problem), scale=problem.scale, enable_gqa=True)
    expected, _ = reference(inputs, problem.neighborhoods, problem.scale)
    assert_close(output.transpose(1, 2).reshape(expected.shape), expected)
