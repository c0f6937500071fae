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
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.triton.config import Tiling
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
