"""Whole models, their attention computed by one system or another."""

import json
from importlib.util import find_spec

import pytest
import torch

import vicinal

if find_spec("timm") is None:
    pytest.skip("the extra models is not installed", allow_module_level=True)

from vicinal.bench import models
from vicinal.bench.measure import Effort
from vicinal.cli import main
from vicinal.models import NAT, Architecture
from vicinal.models.stylenat import SplitHeads

EFFORT = Effort(samples=3, seconds=0.01)
CPU = torch.device("cpu")
SYSTEMS = {name: make for name, make in models.systems(CPU).items() if name != models.NONE} | {
    "FlexAttention": models.Flex
}
SMALL = Architecture((2, 1), 32, (1, 2), 2, 0.0, dilations=((1, 2), (1,)), kernel_size=3, num_classes=3)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_compute_the_same_model(name):
    torch.manual_seed(0)
    model, images = NAT(SMALL).eval(), torch.randn(2, 3, 32, 32)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    with torch.no_grad():
        expected = model(images)
        with models.attending(SYSTEMS[name]()):
            torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert vicinal.nn.neighborhood_attention is vicinal.neighborhood_attention


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_know_heads_with_windows_of_their_own(name):
    torch.manual_seed(0)
    module, x = SplitHeads(16, 4, 3, (1, 2)).eval(), torch.randn(1, 7, 8, 16)
    with torch.no_grad():
        expected = module(x)
        with models.attending(SYSTEMS[name]()):
            torch.testing.assert_close(module(x), expected)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(models, "_make", lambda setting, device: (NAT(SMALL), torch.randn(setting.batch, 3, 32, 32)))


@pytest.mark.parametrize("training", [False, True])
def test_rows_are_checked_timed_and_not_run_twice(small, tmp_path, training):
    file = tmp_path / "models.jsonl"
    settings = [models.Setting("nat_mini", torch.float32, 2, training)]
    only = ["fused", "torch", "none"]
    assert models.run(settings, CPU, file, EFFORT, "test", only)
    header, row = map(json.loads, file.read_text().splitlines())
    assert header["kind"] == models.KIND
    assert list(row["systems"]) == only
    assert all(r["status"] == "ok" and r["images_per_second"] > 0 for r in row["systems"].values())
    assert models.run(settings, CPU, file, EFFORT, "test", only)
    assert [json.loads(line)["kind"] for line in file.read_text().splitlines()].count("model") == 1


def test_wrong_outputs_are_not_timed_and_errors_are_told(small, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("cannot")

    every = {
        "fused": lambda: vicinal.neighborhood_attention,
        "zero": lambda: lambda q, k, v, n, **_: torch.zeros_like(v),
    }
    monkeypatch.setattr(models, "systems", lambda _: every | {"fails": lambda: fails})
    file = tmp_path / "models.jsonl"
    monkeypatch.setitem(models.TOLERANCE, torch.float32, 1e-4)
    assert not models.run([models.Setting("nat_mini", torch.float32, 1, False)], CPU, file, EFFORT, "test")
    found = json.loads(file.read_text().splitlines()[1])["systems"]
    assert [r["status"] for r in found.values()] == ["ok", "wrong", "failed"]
    assert "images_per_second" not in found["zero"]
    assert found["fails"]["reason"] == "RuntimeError: cannot"


def test_the_command(small, tmp_path, capsys):
    options = ["--results", str(tmp_path / "a"), "--samples", "3", "--seconds", "0.01", "--device", "cpu"]
    assert main(["bench", "models", "--model", "nat_mini", "--system", "fused", *options]) == 0
    assert capsys.readouterr().out.startswith("nat_mini float32 1 inference: fused ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "resnet50"], "--model: must be one of dinat_base,"),
        (["--model", "nat_mini", "--dtype", "int8"], "--dtype: must be float32"),
        (["--model", "nat_mini", "--system", "magic"], "--system must be one of fused,"),
    ],
)
def test_wrong_arguments_give_one_line_and_exit_2(arguments, words, tmp_path, capsys):
    assert main(["bench", "models", "--results", str(tmp_path / "a"), "--device", "cpu", *arguments]) == 2
    assert words in capsys.readouterr().err
