"""The Triton backend's backward pass: which parts run, in one launch or in two, with the same bits every run."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from closeness import gradients_of, random_gradients
from triton_calls import call, check, device, in_launches, of
from vicinal.backends import triton as backend
from vicinal.backends.gpu.launch import Launch
from vicinal.problem import Problem, Upstream, Wanted

pytestmark = pytest.mark.usefixtures("interpreting")


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "drawn",
    [
        pytest.param(call((37,), of(1, 20), heads=2, kv_heads=2, batch=2), id="1d"),
        pytest.param(
            call((6, 7), of(2, (2, 3), dilation=(3, 2)), heads=4, kv_heads=2, value_dim=16), id="dilation-gqa"
        ),
        pytest.param(call((5, 7), of(2, 4, stride=(1, 3), is_causal=(True, False)), additional=5), id="causal-more"),
        pytest.param(call((6, 9), of(2, 3), has_rpb=True, batch=2), id="rpb"),
        pytest.param(call((6, 5), (of(2, 3), of(2, (2, 5), dilation=(3, 1))), heads=2), id="per-head-shared-keys"),
    ],
)
def test_gradients_in_two_launches_and_in_one(drawn, together):
    check(drawn, together=together)


def test_log_sum_exp_without_gradient():
    check(call((20,), of(1, 5)), with_grad_lse=False)


WANTED = (
    "query",
    "key",
    "value",
    "key value",
    "query value",
    "rpb",
    "additional_keys",
    "additional_values",
    "query key",
    "value rpb",
    "additional_values key",
)
DRAWN = {
    "everything": call((9, 4), of(2, 3), heads=2, additional=2, has_rpb=True),
    "per-head": call((7, 5), (of(2, 3), of(2, 3, dilation=(2, 1))), heads=2, additional=2),
}


@cache
def everything(name, together):
    """A problem and its backward pass's arguments, and all of its gradients."""
    drawn = DRAWN[name]
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    output, lse = backend.BACKEND.forward(problem, backend.BACKEND.configs(problem, "forward")[0], inputs)
    config = in_launches(backend.BACKEND.configs(problem, "backward")[0], together)
    given = problem, config, inputs, Upstream(output, lse, *random_gradients(output, lse, 5))
    return given, backend.BACKEND.backward(*given, Wanted.of(inputs))


@pytest.mark.parametrize("names", WANTED)
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", DRAWN)
def test_only_what_is_wanted(name, together, names, monkeypatch):
    """The same bits as with all gradients, but for a delta that another kernel sums; None elsewhere."""
    given, every = everything(name, together)
    wanted = Wanted(*(n in names.split() and t is not None for n, t in zip(Wanted._fields, given[2])))
    launched = []
    run = Launch.__call__
    monkeypatch.setattr(Launch, "__call__", lambda s, *a: (launched.append(s.kernel.__name__), run(s, *a)))
    grads = backend.BACKEND.backward(*given, wanted)
    assert launched == kernels_for(wanted, together)
    for grad, full, wants in zip(grads, every, wanted):
        assert (grad is not None) == wants
        if wants:
            torch.testing.assert_close(grad, full, rtol=1e-5, atol=1e-5)


def kernels_for(wanted: Wanted, together: bool) -> list[str]:
    """What a backward pass launches, in order."""
    keys = wanted.key or wanted.value
    kernels = []
    if together and wanted.query and keys:
        kernels.append("gradients_kernel")
    else:
        if wanted.query:
            kernels.append("query_gradient_kernel")
        elif wanted.key or wanted.additional_keys or wanted.rpb:
            kernels.append("delta_kernel")
        if keys:
            kernels.append("key_value_gradient_kernel")
    if wanted.additional_keys or wanted.additional_values:
        kernels.append("additional_gradient_kernel")
    return kernels + ["bias_gradient_kernel"] * wanted.rpb


def test_backward_has_the_same_bits_every_run():
    drawn = call((6, 9), of(2, 3), heads=2, additional=3, has_rpb=True)
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.5)
    forward, config = (backend.BACKEND.configs(problem, d)[0] for d in ("forward", "backward"))
    output, lse = backend.BACKEND.forward(problem, forward, inputs)
    first, second = (gradients_of(backend.BACKEND, problem, config, inputs, output, lse, output, lse) for _ in range(2))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))
