"""The lists of steps that the Hopper kernels take under a key mask, against the definition, token by token."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod

import pytest
import torch

import plain_gluon
from vicinal.backends.hopper import backward, forward, onepass
from vicinal.backends.hopper.config import ForwardConfig
from vicinal.backends.hopper.layout import three
from vicinal.backends.hopper.tilings import backward_configs, forward_configs, one_pass_configs
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem
from vicinal.reference import neighborhood_mask

of = Neighborhood.of
CASES = {
    "plane": ((11, 20), of(2, (5, 7)), 64),
    "line, strided": ((300,), of(1, 70, stride=5), 64),
    "dilated": ((9, 22), of(2, (3, 5), dilation=(1, 3), is_causal=(True, False)), 64),
    "clipped": ((3, 6, 9), of(3, (2, 5, 4), boundary="clip"), 64),
    "two slots": ((9, 80), of(2, (3, 65)), 128),
    "wide": ((12, 14), of(2, 7), 256),
}


def launched(case: str, kernel: str, problem: Problem):
    """The lists of a kernel, of every subproblem."""
    strides = tuple(torch.empty(1, *problem.lengths, 2, problem.head_dim, device="meta").stride() for _ in range(3))
    if kernel == "forward":
        config = ForwardConfig((4, 16), (4, 32), 0, 2) if case == "two slots" else forward_configs(problem)[0]
        parts = forward.launchers(problem, config, strides)
        return [part.steps for part in parts]
    if kernel == "onepass":
        parts = onepass.launchers(problem, one_pass_configs(problem)[0], strides, False)
        return [part.gradients.steps for part in parts]
    passes = backward.Passes(True, True, True)
    parts = backward.launchers(problem, backward_configs(problem)[0], strides, passes)
    return [getattr(part, kernel).steps for part in parts]


@pytest.mark.parametrize(
    ("case", "kernel", "masked"),
    [
        ("plane", "forward", "nothing"),
        ("plane", "forward", "all"),
        ("two slots", "forward", "a row"),
        ("line, strided", "forward", "half"),
        ("dilated", "forward", "some"),
        ("plane", "onepass", "half"),
        ("dilated", "onepass", "some"),
        ("line, strided", "keys", "half"),
        ("wide", "keys", "some"),
        ("clipped", "queries", "half"),
        ("wide", "queries", "some"),
    ],
)
def test_lists(case, kernel, masked):
    lengths, neighborhood, dim = CASES[case]
    tokens = torch.empty(1, *lengths, 2, dim, dtype=torch.bfloat16, device="meta")
    mask = torch.empty(1, *lengths, dtype=torch.bool, device="meta")
    inputs = Inputs(tokens, tokens, tokens, key_mask=mask)
    problem = replace(Problem.of(inputs, (neighborhood.resolve(lengths),), 1.0), device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    share = {"nothing": 1.0, "some": 0.6, "all": 0.0, "half": 1.0, "a row": 1.0}[masked]
    own, walked = (torch.rand(1, *lengths, generator=generator) < share for _ in range(2))
    if masked == "half":
        own[..., lengths[-1] // 2 :] = walked[..., : lengths[-1] // 2] = False
    if masked == "a row":  # some of one warpgroup's in line after line, more than it may pass over
        walked[:, :8, 8:72] = walked[:, 2:8] = False
    states = walked.to(torch.uint8)
    if kernel in ("forward", "queries"):
        own = walked
    else:  # queries that have an answer of some heads
        states[walked & (torch.rand(1, *lengths, generator=generator) < 0.1)] = 2
    for steps in launched(case, kernel, problem):
        assert_right(steps, problem, states, own.to(torch.uint8))


def assert_right(steps, problem, states, own):
    scalars, groups, lists, constants = steps.launch.arguments
    out = torch.full((steps.size,), -7, dtype=torch.int32)
    plain_gluon.run(steps.launch, states, own, out)
    rows = out.view(steps.launch.grid[0], -1)
    inverse, words = constants.inverse, prod(constants.step) // 32
    attends = neighborhood_mask(problem.neighborhood, problem.lengths)
    reached = attends.T if inverse else attends  # [own token, walked token]
    dilation, group_lengths = three(problem.neighborhood.dilation, 1), scalars.axes.lengths
    first = steps.launch.tensors[0]  # token
    spread = three(problem.lengths, 1)

    def token(group, position) -> int | None:
        """Of the whole problem; None beyond the axes."""
        if any(x >= n for x, n in zip(position, group_lengths)):
            return None
        at = [g + x * d for g, x, d in zip(group, position, dilation)]
        return first + (at[0] * spread[1] + at[1]) * spread[2] + at[2]

    def box(group, at, sides) -> list[int | None]:
        return [token(group, [a + x for a, x in zip(at, offset)]) for offset in product(*map(range, sides))]

    order = [a for a in range(3) if a != constants.split] + [constants.split]
    walked, own = states.view(-1).tolist(), own.view(-1).tolist()
    programs = product(product(*map(range, groups.counts)), *map(range, scalars.grid.tiles))
    for row, (group, *tile) in zip(rows, programs):
        lists_of = row[16:].view(3, lists.room, 8)
        counts, after = row[:3].tolist(), [0, *row[3:5].tolist()]
        assert counts[0] < lists.room
        places = []
        for entry in lists_of[0, : counts[0]].tolist():
            at = [entry[order.index(a)] for a in range(3)]
            places.append(at)
            there = box(group, at, constants.step)
            kept = [t is not None and walked[t] > 0 for t in there]
            if entry[3] == 0:
                assert all(walked[t] == 1 for t in there if t is not None)
            else:
                assert entry[3] == 256
                assert [entry[4 + i // 32] >> i % 32 & 1 for i in range(len(kept))] == kept
            assert any(kept) or (counts[0] == 1 and not inverse)
        assert len({tuple(at) for at in places}) == counts[0]
        sides = 1 if constants.shared else 2
        any_own = False
        for w in range(2):
            side = w if sides == 2 else 0
            x = [
                t * n * (sides if a == constants.split else 1) + (side * n if a == constants.split else 0)
                for a, (t, n) in enumerate(zip(tile, constants.tile))
            ]
            rows_of = box(group, x, constants.tile)
            any_own |= any(t is not None and own[t] > 0 for t in rows_of)
            bits = row[8 + 2 * side : 10 + 2 * side].tolist()
            assert [bits[i // 32] >> i % 32 & 1 for i in range(64)] == [t is None or own[t] > 0 for t in rows_of]
            taken = list(range(counts[0]))
            if not constants.aligned:
                entries, n = lists_of[1 + w, : counts[1 + w]], -1
                taken = []
                for entry in entries.tolist():
                    passes = entry[3] % 256
                    assert passes <= constants.stages - 1 or not taken
                    n += passes + 1
                    taken.append(n)
                    same = lists_of[0, n].tolist()
                    assert entry[:3] == same[:3]
                    assert entry[3] - passes == same[3]
                    assert same[3] == 0 or entry[4 : 4 + words] == same[4 : 4 + words]
                assert n + after[1 + w] + 1 == counts[0]
                assert taken or inverse
            found = [t for n in taken for t in box(group, places[n], constants.step) if t is not None]
            assert len(found) == len(set(found))
            for r in rows_of:
                if r is None or (inverse and not any(own[t] for t in rows_of if t is not None)):
                    continue
                needed = {t for t in reached[r].nonzero().view(-1).tolist() if walked[t]}
                assert needed <= set(found) or (inverse and not own[r])
        assert any_own or not inverse or counts[0] == 0
