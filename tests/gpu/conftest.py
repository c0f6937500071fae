"""An illegal memory access breaks a process's CUDA context for good: end the worker there, so that one test fails."""

import os
import sys

import pytest
import torch


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
