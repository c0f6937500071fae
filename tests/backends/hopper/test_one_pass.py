"""The backward runs in one pass where it may: where sums may be made in any order, and all gradients are wanted."""

from contextlib import nullcontext
from itertools import product

import pytest
import torch

from vicinal.backends import hopper
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted

pytest.importorskip("triton.experimental.gluon")


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("wanted", list(product((False, True), repeat=3)), ids=str)
def test_where_it_may(wanted, deterministic, monkeypatch):
    tokens = torch.zeros(1, 64, 64, 2, 64, dtype=torch.bfloat16, device="cpu")
    inputs = Inputs(tokens, tokens, tokens)
    problem = Problem.of(inputs, [Neighborhood.of(2, 13)], 0.125)
    config = next(c for c in hopper.BACKEND.configs(problem, "backward") if c.one_pass)
    ran = []
    monkeypatch.setattr(hopper, "current", lambda device: nullcontext())
    monkeypatch.setattr(hopper.onepass, "backward", lambda _, config, *rest: ran.append(config))
    monkeypatch.setattr(hopper.backward, "backward", lambda _, config, *rest: ran.append(config))
    torch.use_deterministic_algorithms(deterministic)  # put back by the fixture that poisons memory
    upstream = Upstream(tokens, tokens[..., 0].float(), tokens)
    hopper.BACKEND.backward(problem, config, inputs, upstream, Wanted(*wanted, False, False, False))
    assert [c.one_pass for c in ran] == [all(wanted) and not deterministic]
