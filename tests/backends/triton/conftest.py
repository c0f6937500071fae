"""What tests of the Triton backend share."""

from __future__ import annotations

from typing import get_args

import pytest
import triton.runtime.interpreter

from launches import alike_launches  # noqa: F401
from vicinal.backends import triton as backend
from vicinal.backends.triton import bias_gradient, classes
from vicinal.backends.triton.estimate import Kernel


@pytest.fixture
def interpreting(monkeypatch):
    """Let the backend take CPU tensors; and have our device functions not prepare the whole language anew each time
    the interpreter calls one, which takes longer than running them: the launched kernel has done it.
    """
    kernel = triton.runtime.interpreter.InterpretedFunction
    prepare = kernel.__call__

    def run(self, *args, **kwargs):
        if self.fn.__module__.startswith("vicinal."):
            return self.rewrite()(*args, **kwargs)
        return prepare(self, *args, **kwargs)

    monkeypatch.setattr(kernel, "__call__", run)
    with backend.interpreting():
        yield


@pytest.fixture
def classes_everywhere(monkeypatch):
    """Tiles of classes also for problems as small as tests have, and in float32 all kernels that start from masks."""
    monkeypatch.setattr(classes, "LEAST_TILES", 0)
    monkeypatch.setattr(classes, "ENOUGH_PROGRAMS", 1)  # so programs have several batch entries each
    monkeypatch.setattr(bias_gradient, "ENOUGH_OF_CLASSES", 1)  # or several tiles
    monkeypatch.setattr(classes, "MASKED", {(kernel, 32, 4) for kernel in get_args(Kernel)})
