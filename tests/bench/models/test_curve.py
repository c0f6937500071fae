"""Curves of training: the same whatever computes attention, falling, and drawn."""

import json

import pytest
import torch

from vicinal.bench.models import curve as module
from vicinal.bench.models.curve import curve
from vicinal.bench.models.rows import Row
from vicinal.cli import main
from vicinal.models import NAT, Architecture

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    """Every name is a small model."""
    import timm

    def make(name, num_classes, drop_path_rate):
        model = NAT(Architecture((1, 1), 16, (1, 2), 2, drop_path_rate, kernel_size=3, num_classes=num_classes))
        model.pretrained_cfg = {"input_size": (3, 32, 32)}
        return model

    monkeypatch.setattr(timm, "create_model", make)
    monkeypatch.setattr(module, "RATE", 3e-3)


def test_curves_fall_and_are_the_same(tiny):
    found = curve(Row("nat_mini", torch.float32, 16, True), ("fused", "torch"), CPU, 40)
    fused, plain = (torch.tensor(found["losses"][name]) for name in ("fused", "torch"))
    torch.testing.assert_close(fused[:5], plain[:5], rtol=1e-4, atol=1e-4)
    assert fused[-10:].mean() < 0.7 * fused[:10].mean()


def test_gradients_that_are_not_finite_are_told(tiny, monkeypatch):
    monkeypatch.setattr(module, "RATE", float("inf"))
    with pytest.raises(FloatingPointError, match="nat_mini with fused: a gradient is not finite after 3 steps"):
        curve(Row("nat_mini", torch.float32, 2, True), ("fused",), CPU, 3)


def test_curves_are_on_the_page(tiny, tmp_path):
    line = curve(Row("nat_mini", torch.bfloat16, 4, True), ("fused", "torch"), CPU, 5)
    (tmp_path / "a.jsonl").write_text(json.dumps(line | {"device": "Some GPU", "date": "2026-01-01"}) + "\n")
    page, plots = tmp_path / "page.md", tmp_path / "pictures"
    options = ["--results", str(tmp_path), "--page", str(page), "--plots", str(plots)]
    assert main(["bench", "models-report", *options]) == 0
    assert (plots / "curve-nat_mini-some-gpu.png").stat().st_size > 1000
    text = page.read_text()
    assert "](pictures/curve-nat_mini-some-gpu.png)" in text
    assert f"| torch | {line['losses']['torch'][0]:.3g} |" in text
