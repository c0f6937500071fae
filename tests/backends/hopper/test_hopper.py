"""What reaches the Hopper kernels, without running them: which are launched, and with which tensors."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton.experimental.gluon")

from strategies import any_layouts
from vicinal.backends.hopper import BACKEND
from vicinal.backends.hopper.launch import Block, Launcher
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted


@pytest.fixture(scope="module")
def launches():
    """What is launched: kernels' names, their constants and tensors."""
    seen: list[SimpleNamespace] = []

    def record(launcher: Launcher, *tensors: torch.Tensor) -> None:
        name = launcher.kernel.fn.__name__
        seen.append(SimpleNamespace(name=name, constants=launcher.arguments[-1], of=launcher.tensors, tensors=tensors))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Launcher, "__call__", record)
        yield seen


def problem_of(inputs: Inputs, **arguments) -> Problem:
    lengths = tuple(inputs.query.shape[1:-2])
    neighborhood = Neighborhood.of(len(lengths), **arguments).resolve(lengths)
    return Problem.of(inputs, [neighborhood], 0.1)


def random_inputs(head_dim: int = 64, lengths: tuple[int, ...] = (6, 9)) -> Inputs:
    return Inputs(*(torch.randn(2, *lengths, h, head_dim).to(torch.bfloat16) for h in (4, 2, 2)))


def random_upstream(inputs: Inputs) -> Upstream:
    output = torch.randn_like(inputs.query)
    return Upstream(output, torch.randn(output.shape[:-1]), torch.randn_like(output), torch.randn(output.shape[:-1]))


@pytest.mark.parametrize("needed", list(product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("head_dim", [64, 192])
def test_what_nobody_needs_is_not_launched(head_dim, needed, launches):
    inputs = random_inputs(head_dim)
    problem = problem_of(inputs, kernel_size=3)
    config = BACKEND.configs(problem, "backward")[0]
    launches.clear()
    grads = BACKEND.backward(problem, config, inputs, random_upstream(inputs), Wanted(*needed, False, False, False))
    assert tuple(g is not None for g in grads[:3]) == needed
    query, key, value = needed
    expected = ["prepare"] * any(needed) + ["backward_keys"] * (key or value) + ["backward_queries"] * query
    assert [launch.name for launch in launches] == expected
    for launch in launches:
        if launch.name == "backward_keys":
            assert (launch.constants.makes_dk, launch.constants.makes_dv) == (key, value)


@given(drawn=any_layouts(), rank=st.integers(1, 3), seed=st.integers(0, 1 << 16))
@settings(max_examples=60, deadline=None)
def test_whatever_lies_in_memory_reaches_kernels_as_it_is(drawn, rank, seed, launches):
    """Through its descriptor, or packed, each tensor reads as the caller's does."""
    torch.manual_seed(seed)
    inputs = drawn.inputs(random_inputs(32, (3, 4, 5)[:rank]))
    problem = problem_of(inputs, kernel_size=2)
    launches.clear()
    BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    (launch,) = launches
    check(launch, dict(enumerate(inputs[:3])))
    upstream = drawn.upstream(random_upstream(inputs))
    launches.clear()
    BACKEND.backward(problem, BACKEND.configs(problem, "backward")[0], inputs, upstream, Wanted.of(inputs))
    prepare, keys, queries = launches
    check(prepare, {0: upstream.output, 1: upstream.grad_output, 2: upstream.lse, 3: upstream.grad_lse})
    check(keys, {0: inputs.query, 1: upstream.grad_output, 4: inputs.key, 5: inputs.value})
    check(queries, {0: inputs.query, 1: upstream.grad_output, 4: inputs.key, 5: inputs.value})


def check(launch: SimpleNamespace, expected: dict[int, torch.Tensor]) -> None:
    for place, (tensor, of) in enumerate(zip(launch.tensors, launch.of)):
        assert tensor.data_ptr() % 16 == 0
        assert not tensor.is_neg()
        if place not in expected:
            continue
        want = expected[place]
        if isinstance(of, Block):
            d = of.description
            seen = tensor.as_strided(d.shape, d.strides, tensor.storage_offset() + d.offset)
            if d.shape[0] != want.shape[0]:  # with heads: the batch is in the columns, compared by its first element
                seen, want = seen[..., : want.shape[-1]], want[0]
        else:
            seen = tensor.as_strided((want.numel(),), (1,), tensor.storage_offset() + of)
        assert torch.equal(seen.flatten(), want.flatten())
