"""What tests of the Triton backend share."""

from __future__ import annotations

import pytest
import triton.runtime.interpreter

from vicinal.backends import triton as backend


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
