"""The Triton backend's first launches."""

from __future__ import annotations

import sys
from threading import Thread
from types import SimpleNamespace

import pytest
import torch

from triton_calls import call, device, of
from vicinal.backends import triton as backend
from vicinal.backends.gpu import launch as launch_module
from vicinal.backends.gpu.hardware import ARCHITECTURES, Gpu, standing_for
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.launch import Prepared
from vicinal.bench.planning import CARD
from vicinal.problem import Problem

pytestmark = pytest.mark.usefixtures("interpreting")


def test_two_threads_first_calls(monkeypatch):
    """Both launch the kernel that was compiled, with all its arguments and their own tensors."""
    compiled = SimpleNamespace(launched=[])
    loaded = lambda self, *_: {self.grid: lambda *a: compiled.launched.append(a)}  # noqa: E731
    monkeypatch.setattr(Launch, "_loaded", loaded)
    monkeypatch.setattr(launch_module.triton, "JITFunction", object)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    drawn = call((16,), of(1, 3), heads=2, kv_heads=2)
    try:
        for _ in range(100):
            fresh = type(backend.BACKEND)()
            compiled.launched.clear()
            inputs = [drawn.inputs(torch.float32, device) for _ in range(2)]
            problem = Problem.of(inputs[0], drawn.neighborhoods, 0.3)
            config = Tiling((16,), (16,))
            threads = [Thread(target=fresh.forward, args=(problem, config, own)) for own in inputs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            first, second = sorted(compiled.launched, key=lambda a: a[0] is not inputs[0].query)
            assert len(first) == len(second)
            others = [[a for a in each if not isinstance(a, torch.Tensor)] for each in (first, second)]
            assert others[0] == others[1]
            for own, got in zip(inputs, (first, second)):
                assert all(a is b for a, b in zip(got, own[:3]))
    finally:
        sys.setswitchinterval(interval)


def test_both_passes_share_what_is_prepared_for_their_strides():
    drawn = call((16,), of(1, 3), heads=2, kv_heads=2)
    inputs, other = (drawn.inputs(torch.float32, device) for _ in range(2))
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    shared = Prepared.of(problem, inputs)
    assert Prepared.of(problem, other) is shared
    config = Tiling((16,), (16,))
    assert shared.flags(config) is shared.flags(config)
    apart = inputs._replace(query=torch.cat([inputs.query] * 2, -1)[..., : inputs.query.shape[-1]])
    assert Prepared.of(problem, apart) is not shared
    assert Prepared.of(problem, apart).strides[0] != shared.strides[0]


@pytest.mark.parametrize("card", [None, Gpu(ARCHITECTURES["sm_80"], 108), Gpu(ARCHITECTURES["sm_90"], 132)])
def test_what_is_prepared_is_of_the_card(card):
    drawn = call((16,), of(1, 3), heads=2, kv_heads=2)
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    with standing_for(CARD):
        assert Prepared.of(problem, inputs).flags(Tiling((16,), (16,))).chained
    with standing_for(card):
        chained = Prepared.of(problem, inputs).flags(Tiling((16,), (16,))).chained
    assert chained == (card is not None and card.architecture.chains)
