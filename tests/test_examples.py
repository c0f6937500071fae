"""The examples, in a short form."""

import json
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.skipif(not all(map(find_spec, ("timm", "sklearn", "rich", "matplotlib"))), reason="extras")
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # as torchrun sets them
GUIDE = sorted((FOLDER / "guide").glob("*.py"))


@pytest.mark.parametrize("path", GUIDE, ids=[path.stem for path in GUIDE])
def test_the_guides_code_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what it writes
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    runpy.run_path(str(path), run_name="__main__")


@pytest.fixture
def train_digits(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import train_digits

    return train_digits


def history(folder):
    runs = json.loads((folder / "history.json").read_text())
    return {name: [(h["loss"], h["accuracy"]) for h in epochs] for name, epochs in runs.items()}


def test_digits_are_learned_and_an_interruption_changes_nothing(train_digits, tmp_path, monkeypatch, capsys):
    options = ["--epochs", "3", "--images", "240", "--output"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_digits.main([*options, str(whole)]) == 0
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("of 360 test images told") == 2
    for epochs in history(whole).values():
        assert [loss for loss, _ in epochs] == sorted((loss for loss, _ in epochs), reverse=True)

    epoch = train_digits.Run.epoch

    def interrupted(run, *data):
        if len(run.history) == 2:
            raise KeyboardInterrupt
        epoch(run, *data)

    monkeypatch.setattr(train_digits.Run, "epoch", interrupted)
    assert train_digits.main([*options, str(parts)]) == 130
    assert not (parts / "history.json").exists()
    monkeypatch.setattr(train_digits.Run, "epoch", epoch)
    assert train_digits.main([*options, str(parts)]) == 0
    assert history(parts) == history(whole)


def test_a_run_of_another_recipe_is_not_gone_on_with(train_digits, tmp_path):
    first = train_digits.Run("self attention", train_digits.Recipe(1, 48), tmp_path)
    first.epoch(*train_digits.load(48))
    assert len(train_digits.Run("self attention", train_digits.Recipe(1, 48), tmp_path).history) == 1
    assert train_digits.Run("self attention", train_digits.Recipe(2, 48), tmp_path).history == []


def test_the_models_differ_in_their_windows_alone(train_digits, tmp_path):
    runs = [train_digits.Run(name, train_digits.Recipe(), tmp_path) for name in train_digits.MODELS]
    shapes = [{n: p.shape for n, p in run.model.named_parameters() if "rpb" not in n} for run in runs]
    assert shapes[0] == shapes[1]
