"""What is in an image file."""

import pytest
import timm
import torch
from PIL import Image

from vicinal.cli import main

WRONG = {  # arguments, with {folder} for one with files; what the one line must say
    "no image": (["{folder}/no.png", "--model", "nat_mini"], "IMAGE: no file"),
    "no picture": (["{folder}/text.png", "--model", "nat_mini"], "IMAGE: '{folder}/text.png' is not an image"),
    "no such model": (["{folder}/a.png", "--model", "resnet50"], "--model must be one of dinat_base, "),
    "no such tag": (["{folder}/a.png", "--model", "nat_mini.tag"], "--model must be one of dinat_base, "),
    "no such weights": (["{folder}/a.png", "--model", "nat_mini", "--weights", "{folder}/no"], "--weights: no file"),
    "no weights": (["{folder}/a.png", "--model", "nat_mini", "--weights", "{folder}/text.png"], "holds no model's"),
    "another's": (["{folder}/a.png", "--model", "nat_small", "--weights", "{folder}/w.pth"], "not those of nat_small"),
    "none at all": (["{folder}/a.png", "--model", "nat_mini", "--top", "0"], "--top"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image, weights of a model that sees a goldfish whatever it is shown, and a file that is neither."""
    folder = tmp_path_factory.mktemp("classify")
    Image.new("L", (80, 60), 100).save(folder / "a.png")
    (folder / "text.png").write_text("text")
    torch.manual_seed(0)
    state = timm.create_model("dinat_mini", depths=(3, 4, 6, 5)).state_dict()
    state["head.bias"][1] = 50.0
    torch.save(state, folder / "w.pth")
    return folder


@pytest.mark.parametrize("model", ["dinat_mini", "dinat_mini_in1k_224", "dinat_mini.in1k_224", "nat_mini"])
def test_the_most_probable_classes_are_printed(folder, model, capsys):
    assert (
        main(["classify", str(folder / "a.png"), "--model", model, "--weights", str(folder / "w.pth"), "--top", "2"])
        == 0
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("100.0 %  goldfish")
    assert second.startswith("  0.0 %  ")


def test_classes_that_are_not_imagenets_have_numbers(folder, tmp_path, capsys):
    state = torch.load(folder / "w.pth")
    state |= {"head.weight": state["head.weight"][:3], "head.bias": state["head.bias"][:3]}
    torch.save({"state_dict": state}, tmp_path / "own.pth")
    arguments = ["classify", str(folder / "a.png"), "--model", "nat_mini", "--weights", str(tmp_path / "own.pth")]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == "100.0 %  class 1"


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_give_one_line_and_exit_2(arguments, words, folder, capsys):
    assert main(["classify", *(a.format(folder=folder) for a in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words.format(folder=folder) in printed.err
