"""The examples, in a short form."""

import importlib
import json
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.skipif(not all(map(find_spec, ("timm", "sklearn", "rich", "matplotlib"))), reason="extras")
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # as torchrun sets them
GUIDE = [*sorted((FOLDER / "guide").glob("*.py")), FOLDER / "context_parallel.py"]


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


@pytest.fixture
def example(monkeypatch):
    """Imports an example by name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("denoise", ["--size", "48"]),
        ("denoise_video", ["--steps", "2"]),
        ("local_global", ["--steps", "2"]),
        ("two_processes", ["--steps", "2"]),
    ],
)
def test_examples_run_in_a_short_form_and_draw(example, name, options, tmp_path, capsys):
    path = tmp_path / "drawn.png"
    assert example(name).main([*options, "--output", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert str(path) in capsys.readouterr().out


def test_the_textures_drift_and_the_denoiser_does_not_look_ahead(example):
    video = example("denoise_video")
    clean = video.videos(2, torch.Generator().manual_seed(0))
    steps = (clean[:, 1:] - clean[:, :-1]).square().mean((0, 2, 3))
    assert clean.shape == (2, 8, 24, 24)
    assert (steps < 0.5 * 2).all()  # of unrelated frames 2
    model, other = video.Denoiser(3), clean.clone()
    other[:, 5:] = 0
    torch.testing.assert_close(model(clean)[:, :5], model(other)[:, :5])


def test_the_tour_runs_from_its_first_cell_to_its_last_and_its_outputs_are_kept(example):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    tour = example("run_tour")
    kept, now = nbformat.read(tour.PATH, as_version=4), tour.executed()
    code = [(a, b) for a, b in zip(kept.cells, now.cells) if a.cell_type == "code"]
    assert [len(a.outputs) for a, _ in code] == [len(b.outputs) for _, b in code]
    assert sum(bool(a.outputs) for a, _ in code) >= 8
