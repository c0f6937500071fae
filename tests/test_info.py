import pytest
import torch

from vicinal import dispatch, info


@pytest.mark.parametrize("width", [60, 200])
def test_info_tells_every_backends_verdict(width):
    text = info.text(width)
    assert max(map(len, text.splitlines())) <= width
    problem = info.typical_problem(torch.device("cpu"))
    for name in dispatch.BACKENDS:
        reason = dispatch.unsupported(name, problem)
        assert name in text
        assert reason is None or reason in " ".join(text.split())


def test_brackets_are_printed(monkeypatch):
    monkeypatch.setattr(dispatch, "unsupported", lambda *_: "pip install 'vicinal[cpu]'")
    assert "no: pip install 'vicinal[cpu]'" in info.text(80)
