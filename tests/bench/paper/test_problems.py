"""The sweep's list: the paper's counts, within the limits, the same everywhere; samples are stratified and nested."""

import pytest
import torch

from vicinal.bench.paper import problems as paper_problems
from vicinal.bench.paper.problems import COUNTS, GRIDS, grid, on_shared_tensors, problems, sample

RANKS = (1, 2, 3)


@pytest.mark.parametrize("rank", RANKS)
def test_counts_are_the_papers_and_names_are_unique(rank):
    assert COUNTS == {1: 6150, 2: 5676, 3: 2448}
    cases = problems(rank)
    assert len(cases) == COUNTS[rank]
    assert len({case.name for case in cases}) == COUNTS[rank]
    assert len(grid(rank)) > COUNTS[rank]


@pytest.mark.parametrize("rank", RANKS)
def test_every_problem_is_within_the_limits(rank):
    for case in problems(rank):
        tokens = case.batch * case.heads * case.tokens
        assert paper_problems.LEAST_ELEMENTS <= tokens * case.head_dim <= paper_problems.MOST_ELEMENTS
        assert paper_problems.pairs_of_self_attention(case) <= paper_problems.MOST_PAIRS
        window = case.neighborhood.window
        assert all(k * d <= n for k, d, n in zip(window, case.neighborhood.dilation, case.lengths))


@pytest.mark.parametrize("rank", RANKS)
def test_all_that_varies_varies(rank):
    cases = problems(rank)
    assert {case.lengths for case in cases} == set(GRIDS[rank].lengths)
    assert {case.neighborhood.window for case in cases} == set(GRIDS[rank].windows)
    assert {case.head_dim for case in cases} == set(paper_problems.HEAD_DIMS)
    assert {case.heads for case in cases} == set(paper_problems.HEADS)
    assert {case.batch for case in cases} == set(paper_problems.BATCHES)
    assert {max(case.neighborhood.dilation) > 1 for case in cases} == {False, True}


def test_passes_are_the_papers():
    assert problems(1)[0].passes == ("forward", "forward+backward")
    assert problems(1, torch.float32)[0].passes == ("forward",)


@pytest.mark.parametrize("rank", RANKS)
def test_samples_are_nested_and_give_every_size_its_share(rank):
    cases = problems(rank)
    small, large = sample(cases, 40), sample(cases, 200)
    assert large[:40] == small
    assert len(set(large)) == 200
    for lengths in GRIDS[rank].lengths:
        share = sum(case.lengths == lengths for case in cases) / len(cases)
        assert abs(sum(case.lengths == lengths for case in large) - 200 * share) <= 1


def test_another_seed_is_another_sample():
    assert sample(problems(2), 50, seed=0) != sample(problems(2), 50, seed=1)


@pytest.mark.parametrize("rank", RANKS)
def test_groups_share_their_tensors(rank):
    cases = problems(rank)
    chosen = sample(cases, 40)
    groups = on_shared_tensors(cases, chosen, 12)
    assert sum(map(len, groups)) == 12
    assert [group[0] for group in groups] == [case for case in chosen if case in [group[0] for group in groups]]
    assert len({case.name for group in groups for case in group}) == 12
    for group in groups:
        assert len({(c.lengths, c.batch, c.heads, c.head_dim, c.dtype) for c in group}) == 1


def test_no_groups_where_none_are_asked_for():
    assert on_shared_tensors(problems(1), sample(problems(1), 3), 0) == []
