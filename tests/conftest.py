"""What every test shares: threads, hypothesis profile, poisoned allocations, the Triton interpreter."""

import os

import torch

if not torch.cuda.is_available():
    # Read by Triton when a kernel is decorated, so before any kernel is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("explore", settings.get_profile("default"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers already fill the cores

with suppress(ImportError):
    from triton.runtime import interpreter

    # It would compute every sum and product of integers once more, in 64 bits, for an assertion that it then leaves
    # out unless `debug` is set: half of all its time.
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)

    prepare_and_run = interpreter.InterpretedFunction.__call__

    def run(self, *args, **kwargs):
        """A device function of ours, without preparing the whole language anew each time one is called, which takes
        longer than running it: the launched kernel has done it.
        """
        if self.fn.__module__.startswith("vicinal."):
            return self.rewrite()(*args, **kwargs)
        return prepare_and_run(self, *args, **kwargs)

    interpreter.InterpretedFunction.__call__ = run


@pytest.fixture(scope="session", autouse=True)
def no_tables(tmp_path_factory):
    """What the machine's user has tuned decides nothing."""
    os.environ["VICINAL_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill every uninitialised floating allocation with NaN, so that what is not written shows."""
    memory = torch.utils.deterministic
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    yield
    memory.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
