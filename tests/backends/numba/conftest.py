"""Fixtures of the numba backend's tests."""

from __future__ import annotations

import pytest
import torch

from vicinal.backends.numba import plan as numba_plan


@pytest.fixture(params=[None, 9], ids=["one chunk", "chunks of 9 keys"])
def chunks(request, monkeypatch):
    """Small problems fit in one chunk: also cut them."""
    if request.param is not None:
        monkeypatch.setattr(numba_plan, "CHUNK", request.param)
    numba_plan.CALLS.clear()
    yield
    numba_plan.CALLS.clear()


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request, monkeypatch):
    """Small problems are not worth a second thread: start it all the same."""
    monkeypatch.setattr(numba_plan, "START_NS", 1e-3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    numba_plan.CALLS.clear()
    yield request.param
    numba_plan.CALLS.clear()
