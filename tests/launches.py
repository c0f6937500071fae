"""A check of every launch of Triton kernels, for tests that use it: a `Launch` is for tensors that are alike."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def alike_launches(monkeypatch):
    """What is compiled by its first call is launched by later ones: of the same tensors, dtypes and device."""
    from vicinal.backends.gpu.launch import Launch

    launch = Launch.__call__

    def checked(self, tensors, aligned):
        found = [None if t is None else (t.dtype, t.device) for t in tensors]
        first = vars(self).setdefault("tensors_of_first_call", found)
        assert found == first, f"{self.kernel} was first launched with {first}, then with {found}"
        launch(self, tensors, aligned)

    monkeypatch.setattr(Launch, "__call__", checked)
