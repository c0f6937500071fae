import re
from pathlib import Path

import pytest

from vicinal.extras import EXTRAS, MissingExtra, need

DISTRIBUTIONS = {"PIL": "pillow"}  # of modules that are called otherwise
tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
PROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_are_those_of_the_package(extra):
    declared = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"][extra]
    named = {re.match(r"[\w-]+", requirement).group() for requirement in declared}
    assert named == {DISTRIBUTIONS.get(module, module) for module in EXTRAS[extra]}


def test_what_is_missing_is_named_with_its_extras(monkeypatch):
    monkeypatch.setattr("vicinal.extras.find_spec", lambda module: None if module in ("PIL", "numba") else module)
    need("this", "rich", "typer")
    with pytest.raises(MissingExtra) as caught:
        need("this", "rich", "PIL", "numba")
    assert str(caught.value) == "this needs PIL and numba: pip install 'vicinal[cli,cpu]'"
