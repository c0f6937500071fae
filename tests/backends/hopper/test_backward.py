"""Launchers of the backward: what is compiled for which sizes."""

import pytest

pytest.importorskip("triton.experimental.gluon")

from vicinal.backends.gpu.launch import plain
from vicinal.backends.hopper import backward, onepass
from vicinal.backends.hopper.tilings import backward_configs, one_pass_configs
from vicinal.bench.cases import Case
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import stand_ins


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("lengths", [(16, 32, 64), (9, 21, 33), (8, 22, 40)])
def test_prepare_is_compiled_for_any_strides_of_numbers(lengths, one_pass):
    """Of outputs, which it reads in vectors, Triton sees what they are."""
    problem = Case("", lengths, Neighborhood.of(3, 5), heads=8, head_dim=64).problem("cpu")
    strides = tuple(t.stride() for t in stand_ins(problem)[:3])
    if one_pass:
        (part,) = onepass.launchers(problem, one_pass_configs(problem)[0], strides, has_grad_lse=False)
    else:
        passes = backward.Passes(True, True, True)
        (part,) = backward.launchers(problem, backward_configs(problem)[0], strides, passes)
    given, seen = part.prepare.arguments[4], part.prepare._seen[4]
    assert seen.output == given.output
    assert all(n % 16 for n in numbers(seen.lse) + numbers(seen.result))
    assert len(numbers(seen)) == len(numbers(given))
    assert part.prepare._seen[:4] == part.prepare.arguments[:4]


def numbers(strides):
    """All of them."""
    return [n for each in plain(strides) for n in (numbers(each) if isinstance(each, tuple) else [each])]
