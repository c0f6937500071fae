"""What is known of GPUs, and which of it a device gets."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vicinal.backends.gpu import hardware
from vicinal.backends.triton import estimate


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 5), "sm_80"),  # older than any known: unsupported anyway
        ((8, 0), "sm_80"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((12, 1), "sm_120"),
    ],
)
def test_the_nearest_architecture_that_is_not_newer(capability, name):
    assert hardware.nearest(*capability).name == name


@pytest.mark.parametrize(
    ("hip", "properties", "name"),
    [
        (None, {"major": 8, "minor": 9}, "sm_89"),
        ("6.4", {"gcnArchName": "gfx942:sramecc+:xnack-"}, "gfx942"),
        ("6.4", {"gcnArchName": "gfx1201"}, "gfx942"),
    ],
)
def test_a_device_has_its_architecture_and_its_multiprocessors(monkeypatch, hip, properties, name):
    found = SimpleNamespace(name="a card", multi_processor_count=76, **properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    gpu = hardware._present.__wrapped__(torch.device("cuda", 0))
    assert (gpu.architecture.name, gpu.processors) == (name, 76)


def test_without_a_gpu_an_h200_is_assumed():
    assert hardware.gpu_of(torch.device("cpu")) == hardware.Gpu(hardware.ARCHITECTURES["sm_90"], 132)


def test_what_was_fitted_to_a_device_is_its_own(monkeypatch):
    found = SimpleNamespace(name="a card", multi_processor_count=76, major=9, minor=0)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(hardware, "fitted_to", {"a card": {"triton.clock": 2e9, "triton.gone": 1.0}}.__getitem__)
    gpu = hardware._present.__wrapped__(torch.device("cuda", 0))
    usual = replace(gpu, fitted=())
    assert estimate.fitted(gpu) == estimate.Constants(clock=2e9)  # what no estimate has is passed over
    assert estimate.fitted(usual) == estimate.Constants()
    assert hash(gpu) != hash(usual)
