import pytest

from vicinal import dispatch
from vicinal.bench.cases import Case
from vicinal.explain import explanation
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.work import waste


@pytest.mark.parametrize("width", [60, 200])
def test_explanation_names_the_choice_and_its_waste(width):
    neighborhood = Neighborhood.of(2, 5, dilation=2, is_causal=(True, False)).resolve((16, 16))
    problem = Case("", (16, 16), neighborhood, 4, 16, kv_heads=2).problem("cpu")
    text = explanation(problem, width)
    assert max(map(len, text.splitlines())) <= width
    said = " ".join(text.split())
    assert "16x16 B1 H4/2 D16 float32 window 5x5 dilation 2x2 causal on axis 0" in said
    assert f"{problem.useful_scores:,} useful scores" in said
    plan = dispatch.plan(problem)
    assert f"{plan.backend.name} chosen for forward" in said
    ratio = f"{waste(neighborhood, (16, 16), plan.forward.query_tile, plan.forward.key_tile):.3g}"
    assert any(f"waste {ratio}" in part for part in said.split(f"{plan.backend.name} forward, 1 of ")[1:])


def test_brackets_are_printed(monkeypatch):
    monkeypatch.setattr(dispatch, "unsupported", lambda *_: "pip install 'vicinal[cpu]'")
    neighborhood = Neighborhood.of(1, 3).resolve((8,))
    assert "no: pip install 'vicinal[cpu]'" in explanation(Case("", (8,), neighborhood, 1, 8).problem("cpu"), 80)


def test_what_ranks_send_is_told():
    neighborhood = Neighborhood.of(2, (5, 3)).resolve((16, 10))
    said = " ".join(explanation(Case("", (16, 10), neighborhood, 2, 8).problem("cpu"), 80, (4, 1)).split())
    # Two rows of 10 tokens from each side, of keys and values: 40 tokens of 2 heads, 8 + 8 numbers of 4 bytes.
    assert "Split into 4x1 shards, a rank needs at most 40 tokens of 2 others, 0.00512 MB forward" in said
    assert "3x fewer than all keys and values; 0% of its queries need none of them." in said
