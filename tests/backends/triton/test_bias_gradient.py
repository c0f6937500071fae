"""What the programs of the bias gradient do, where tiles are of classes: every pair of every step, once."""

from dataclasses import replace

import pytest
import torch

from vicinal.backends.gpu.hardware import standing_for
from vicinal.backends.triton.bias_gradient import _rows, _work
from vicinal.backends.triton.classes import classes_of
from vicinal.backends.triton.launch import tiles_of
from vicinal.backends.triton.tilings import ranked
from vicinal.bench.cases import Case
from vicinal.bench.planning import CARD
from vicinal.geometry.neighborhood import Neighborhood


@pytest.mark.parametrize(
    ("lengths", "window", "dilation", "batch"),
    [((300,), 7, 1, 2), ((56, 56), 7, 1, 16), ((28, 31), 7, 4, 8), ((120, 200), 7, 1, 1), ((9, 12, 10), 3, 1, 4)],
)
def test_every_pair_of_every_step_is_some_program_s_once(lengths, window, dilation, batch):
    neighborhood = Neighborhood.of(len(lengths), window, dilation=dilation)
    case = Case("", lengths, neighborhood, batch=batch, heads=2, head_dim=32, dtype=torch.bfloat16)
    problem = replace(case.problem("cpu"), has_rpb=True)
    with standing_for(CARD):
        config = ranked(problem, "query", 1, False)[0][1]
    assert config.of_classes
    classes = classes_of(problem, config.tile, config.step, inverse=False)
    work = _work(problem, config, classes, batch)
    rows = _rows(work).tolist()
    shares = sum(own.steps * len(lines) * len(tiles) for own in work for _, _, lines, tiles in own.shares())
    assert len(rows) == shares == sum(own.programs for own in work)
    counts = [lines * tiles for _, _, _, lines, tiles, *_ in rows]
    assert counts == sorted(counts, reverse=True)
    found = [(step, tile) for row in rows for step, tile in _read(row, len(lengths))]
    programs = tiles_of(problem, config)
    every = [(b * problem.heads * programs + tile) for b in range(batch) for tile in range(programs)]
    assert sorted(tile for step, tile in found if step == 0) == sorted(every)
    assert len(found) == len(set(found)) == sum(own.steps * own.lines * own.line.length for own in work)


def _read(row, rank):
    """The steps and the tiles that a program reads, as the kernel finds them."""
    step, begin, first, lines, length, apart_in_line = row[:6]
    extents, apart = row[6 : 6 + 2 * rank], row[6 + 2 * rank : 6 + 4 * rank]
    for line in range(first, first + lines):
        at = begin
        for extent, distance in zip(extents, apart):
            at += line % extent * distance
            line //= extent
        yield from ((step, at + i * apart_in_line) for i in range(length))
