"""What tests of the Triton backend share."""

from __future__ import annotations

from typing import get_args

import pytest

from launches import alike_launches  # noqa: F401
from vicinal.backends import triton as backend
from vicinal.backends.triton import bias_gradient, classes
from vicinal.backends.triton.estimate import Kernel


@pytest.fixture
def interpreting():
    """Let the backend take CPU tensors."""
    with backend.interpreting():
        yield


@pytest.fixture
def classes_everywhere(monkeypatch):
    """Tiles of classes also for problems as small as tests have, and in float32 all kernels that start from masks."""
    monkeypatch.setattr(classes, "LEAST_TILES", 0)
    monkeypatch.setattr(classes, "ENOUGH_PROGRAMS", 1)  # so programs have several batch entries each
    monkeypatch.setattr(bias_gradient, "ENOUGH_OF_CLASSES", 1)  # or several tiles
    monkeypatch.setattr(classes, "MASKED", {(kernel, 32, 4) for kernel in get_args(Kernel)})
