"""What GPU tests share.

An illegal memory access breaks a process's CUDA context for good: the worker ends there, so that one test fails.
"""

import fcntl
import gc
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from launches import alike_launches  # noqa: F401

KEPT_BYTES = 1 << 30  # by torch's allocator, in a worker between tests


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Under pytest-xdist a worker that is gone counts as this test's failure, and another takes its place."""
    report = yield
    if report.failed and "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            print(f"\n{item.nodeid} broke the CUDA context:\n{report.longreprtext}", file=sys.__stderr__, flush=True)
            os._exit(1)
    return report


@pytest.fixture
def most_of_the_memory():
    """For tests that take tens of GB: one at a time, whichever worker runs it; the memory is given back."""
    with Path(tempfile.gettempdir(), "vicinal-most-of-the-memory.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def memory_for_others():
    """Workers share the GPU's memory: of what torch keeps for later, a test leaves little behind."""
    yield
    if torch.cuda.is_available() and torch.cuda.memory_reserved() > KEPT_BYTES:
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def any_order():
    """Sums may be made in any order: kernels may add in memory."""
    torch.use_deterministic_algorithms(False)  # the fixture that poisons memory puts it back
