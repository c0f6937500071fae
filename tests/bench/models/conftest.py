"""Left out without the extra `models`; with it vicinal.models comes before timm (see its torchvision)."""

from importlib.util import find_spec

import pytest
import torch

if find_spec("timm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import vicinal.models  # noqa: F401


@pytest.fixture
def small(monkeypatch):
    """Every row's model is a small one: the function that makes it, and its images."""
    from vicinal.bench.models import ahead, measure
    from vicinal.models import NAT, Architecture

    numbers = Architecture((2, 1), 32, (1, 2), 2, 0.0, dilations=((1, 2), (1,)), kernel_size=3, num_classes=3)

    def make(row, device):
        with device:
            return NAT(numbers).eval(), torch.randn(row.batch, 3, 32, 32)

    monkeypatch.setattr(measure, "make", make)
    monkeypatch.setattr(ahead, "make", make)
    return make
