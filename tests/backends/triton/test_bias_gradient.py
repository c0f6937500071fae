"""What the programs of the bias gradient do, where tiles are of classes: every pair of every step, once."""

from dataclasses import replace
from itertools import groupby

import pytest
import torch

from vicinal.backends.gpu.hardware import standing_for
from vicinal.backends.triton.bias_gradient import _rows, _work
from vicinal.backends.triton.classes import classes_of
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
    assert len(rows) == sum(own.steps * own.shares for own in work)
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)
    found = {
        (step, *columns): [tuple(row[1:3]) for row in each]
        for (step, *columns), each in groupby(sorted(rows, key=_class), key=_class)
    }
    assert len(found) == sum(own.steps for own in work)
    for own in work:
        for step in range(own.steps):
            ends = [0]
            for first, count in sorted(found[(step, *own.columns)]):
                assert first == ends[-1]
                assert 0 < count <= own.own
                ends.append(first + count)
            assert ends[-1] == own.pairs


def _class(row):
    return [row[0], *row[3:]]
