"""The launches and descriptors of the Hopper backend reach every token once, each with its own dilation group."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from vicinal.backends.hopper.layout import RANK, describable, describe, launches, three, with_heads
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem

CASES = {  # batch, lengths, dilation
    "plain": (2, (5, 6), (1, 1)),
    "1d": (2, (12,), (3,)),
    "1d-ragged": (1, (13,), (3,)),
    "2d-last": (3, (4, 12), (1, 4)),
    "2d-both": (1, (6, 12), (3, 4)),
    "2d-both-batched": (3, (6, 12), (2, 4)),
    "2d-wide-batched": (2, (12, 8), (6, 2)),
    "2d-ragged": (2, (7, 13), (3, 4)),
    "3d": (1, (4, 6, 10), (1, 3, 5)),
    "3d-all": (1, (4, 6, 10), (2, 3, 5)),
    "3d-ragged": (2, (5, 7, 9), (2, 3, 2)),
}
HEADS, COLUMNS = 2, 8


def problem_of(batch: int, lengths: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Problem, torch.Tensor]:
    x = torch.arange(batch * HEADS * COLUMNS * torch.Size(lengths).numel(), dtype=torch.float32)
    x = x.reshape(batch, *lengths, HEADS, COLUMNS)
    neighborhood = Neighborhood.of(len(lengths), 1, 1, dilation)
    return Problem.of(Inputs(x, x, x), [neighborhood], 1.0), x


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_launches_reach_every_token_once(case):
    batch, lengths, dilation = case
    problem, x = problem_of(*case)
    token = torch.arange(batch * torch.Size(lengths).numel()).reshape(batch, *lengths)
    seen = []
    for launch in launches(problem):
        d = describe(problem, launch, tuple(x.shape), x.stride())
        view = x.as_strided(d.shape, d.strides, d.offset)
        for outer, *group, head in product(range(batch), *(range(n) for n in launch.groups), range(HEADS)):
            first = launch.tokens(group) * d.token_columns + head * COLUMNS
            values = view[outer, ..., first : first + COLUMNS]
            tokens = (values[..., 0] / (HEADS * COLUMNS)).long()
            want = tokens[..., None] * HEADS * COLUMNS + head * COLUMNS + torch.arange(COLUMNS)
            assert torch.equal(values.long(), want)  # a box of tokens holds one head's columns
            seen.append(tokens.flatten())
            # neighbors along an axis of the view are `dilation` tokens apart, within one batch element
            where = torch.stack(torch.unravel_index(tokens, token.shape))
            for a in range(RANK):
                steps = where.diff(dim=a + 1)
                missing = RANK - len(lengths)
                expected = torch.zeros(where.shape[0], dtype=torch.long)
                if a >= missing:
                    expected[1 + a - missing] = three(dilation, 1)[a]
                assert (steps == expected[:, None, None, None]).all()
    assert torch.equal(torch.cat(seen).sort().values, token.flatten().repeat_interleave(HEADS))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_heads_as_a_dimension(case):
    """The same elements as without, at the coordinates that the kernel computes."""
    batch = case[0]
    problem, x = problem_of(*case)
    for launch in launches(problem):
        plain = describe(problem, launch, tuple(x.shape), x.stride())
        packed = with_heads(plain, tuple(x.shape), x.stride())
        without = x.as_strided(plain.shape, plain.strides, plain.offset)
        view = x.as_strided(packed.shape, packed.strides, packed.offset)
        for outer, *group, head in product(range(batch), *(range(n) for n in launch.groups), range(HEADS)):
            first = launch.tokens(group) * plain.token_columns
            a = without[outer, ..., first + head * COLUMNS : first + (head + 1) * COLUMNS]
            b = view[..., head, first + outer * x.stride(0) : first + outer * x.stride(0) + COLUMNS]
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("batch", "lengths", "dilation", "count"),
    [
        (1, (4, 11, 10), (1, 11, 5), 1),  # Cosmos-Predict2
        (4, (4, 12, 10), (1, 3, 5), 1),
        (8, (64,), (5,), 2),
        (8, (64, 64), (5, 5), 4),
        (2, (13, 64, 64), (3, 5, 5), 8),
    ],
)
def test_few_launches(batch, lengths, dilation, count):
    """One, or two per axis that its dilation does not divide."""
    assert len(launches(problem_of(batch, lengths, dilation)[0])) == count


def test_describable_keeps_slices_of_a_fused_projection():
    query = torch.zeros(2, 4, 5, 3, 2, 64, dtype=torch.bfloat16).unbind(3)[1]
    assert describable(query) is query


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 4, 64, 2, dtype=torch.bfloat16).transpose(-1, -2),
        torch.zeros(2, 2, 4, 64, dtype=torch.bfloat16).transpose(1, 2),
        torch.zeros(1, 4, 2, 64, dtype=torch.bfloat16).expand(2, 4, 2, 64),
        torch.zeros(2, 4, 6, 2, 64, dtype=torch.bfloat16)[:, :, :5],
    ],
    ids=["columns apart", "heads first", "expanded", "rows apart"],
)
def test_describable_copies_what_descriptors_cannot_say(tensor):
    copy = describable(tensor)
    assert copy.is_contiguous()
    assert torch.equal(copy, tensor)
