import pytest
import torch
from rich.console import Console

from vicinal import dispatch, info
from vicinal.bench.cases import Case
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.work import waste


@pytest.fixture
def console():
    return Console(width=200, record=True, file=open("/dev/null", "w"))


def test_versions_name_what_results_depend_on():
    found = info.versions()
    assert found["torch"] == torch.__version__
    assert {"vicinal", "python", "triton"} <= found.keys()


def test_info_tells_every_backends_verdict(console):
    info.print_info(console)
    text = console.export_text()
    problem = info.typical_problem(torch.device("cpu"))
    for name in dispatch.BACKENDS:
        reason = dispatch.unsupported(name, problem)
        assert name in text
        assert reason is None or reason.split(": ")[0] in text


def test_explanation_names_the_choice_and_its_waste(console):
    neighborhood = Neighborhood.of(2, 5, dilation=2, is_causal=(True, False)).resolve((16, 16))
    problem = Case("", (16, 16), neighborhood, 4, 16, kv_heads=2).problem("cpu")
    info.print_explanation(console, problem)
    text = console.export_text()
    assert "16x16 B1 H4/2 D16 float32 window 5x5 dilation 2x2 causal on axis 0" in text
    assert f"useful scores {problem.useful_scores:,}" in text
    (chosen,) = (line for line in text.splitlines() if "chosen" in line)
    assert dispatch.plan(problem).backend.name in chosen
    first = dispatch.plan(problem).forward
    ratio = f"{waste(neighborhood, (16, 16), first.query_tile, first.key_tile):.3g}"
    assert any("forward" in line and "1 of " in line and ratio in line for line in text.splitlines())


@pytest.mark.parametrize("name", info.DTYPES)
def test_dtype_names_go_both_ways(name):
    assert info.dtype_name(info.DTYPES[name]) == name
