import pytest
import torch

from vicinal.bench.cases import Case
from vicinal.bench.measure import Effort
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.tuning import cache, search


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of tables, read anew before and after."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    cache.reload()
    yield tmp_path / "tuning"
    monkeypatch.undo()
    cache.reload()


@pytest.fixture
def quick(monkeypatch, poisoned_memory):
    """Timing may be done, and is short."""
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(search, "EFFORT", Effort(samples=3, seconds=0.01))


@pytest.fixture
def problem():
    """2-D, of which the numba backend has several tilings."""
    neighborhood = Neighborhood.of(2, 3).resolve((9, 12))
    return Case("", (9, 12), neighborhood, heads=2, head_dim=8).problem("cpu")
