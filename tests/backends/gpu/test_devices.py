"""What is asked of a GPU, where there is none."""

from types import SimpleNamespace

import pytest
import torch

from vicinal.backends.gpu import devices, hardware
from vicinal.backends.hopper import BACKEND as HOPPER
from vicinal.backends.triton import BACKEND as TRITON
from vicinal.info import typical_problem

GPU = torch.device("cuda", 0)
TOO_OLD = "the GPU's compute capability is below 8.0"


def forget():
    devices.capability.cache_clear()
    hardware._present.cache_clear()


@pytest.fixture
def a_gpu(monkeypatch):
    """Makes torch tell of a GPU: the version of ROCm, or None, and the numbers that it has."""

    def tell(hip, numbers):
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: numbers)
        found = SimpleNamespace(
            name="a card", major=numbers[0], minor=numbers[1], gcnArchName="gfx90a", multi_processor_count=110
        )
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
        forget()

    yield tell
    forget()


@pytest.mark.parametrize(
    ("hip", "numbers", "expected"),
    [(None, (9, 0), (9, 0)), (None, (8, 6), (8, 6)), ("6.4", (9, 0), None)],  # the last is gfx90a
)
def test_only_nvidia_s_numbers_are_compute_capabilities(a_gpu, hip, numbers, expected):
    a_gpu(hip, numbers)
    assert devices.capability(GPU) == expected
    assert devices.chains(GPU) is (expected == (9, 0))


@pytest.mark.parametrize(
    ("hip", "numbers", "hopper", "triton"),
    [
        (None, (8, 6), "it needs compute capability 9.0, cuda:0 has (8, 6)", None),
        (
            None,
            (7, 5),
            "it needs compute capability 9.0, cuda:0 has (7, 5)",
            "the GPU's compute capability is below 8.0",
        ),
        ("6.4", (9, 0), "it needs an NVIDIA GPU, cuda:0 is another", None),
    ],
)
def test_which_backend_takes_which_gpu(a_gpu, hip, numbers, hopper, triton):
    a_gpu(hip, numbers)
    problem = typical_problem(GPU)
    assert HOPPER.unsupported(problem) == hopper
    assert TRITON.unsupported(problem) == triton
