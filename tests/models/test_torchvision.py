"""timm's torchvision, where its operators do not load."""

import sys

import pytest
import torch

from vicinal.models import torchvision


def test_a_missing_operator_is_declared_and_the_import_tried_again(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text(
        "import torch\n"
        'torch.library.register_fake("torchvision::one_of_a_test")(lambda x: x)\n'
        'torch.library.register_fake("torchvision::another_of_a_test")(lambda x: x)\n'
        "reached = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    torchvision.import_torchvision()
    assert sys.modules["torchvision"].reached
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.ops.torchvision.one_of_a_test()


@pytest.mark.parametrize("error", ["RuntimeError('other')", "ImportError('other')"])
def test_other_failures_are_not_hidden(tmp_path, monkeypatch, error):
    (tmp_path / "torchvision.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises((RuntimeError, ImportError), match="other"):
        torchvision.import_torchvision()
