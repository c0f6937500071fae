"""Every tensor that the sources make says its device and its dtype: neither is left to what surrounds a call."""

import ast
from pathlib import Path

import pytest

import vicinal

SOURCES = Path(vicinal.__file__).parent
FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones"),
    *(
        "rand",
        "randint",
        "randn",
        "randperm",
        "range",
        "scalar_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
    ),
}


def unplaced(source):
    """Lines of factory calls without device and dtype; modules' parameters, which follow their surroundings, aside."""
    tree = ast.parse(source)
    parameters = {
        id(argument)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Parameter")
        for argument in call.args
    }
    return [
        call.lineno
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and id(call) not in parameters
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "torch"
        if call.func.attr in FACTORIES and not {"device", "dtype"} <= {k.arg for k in call.keywords}
    ]


@pytest.mark.parametrize("file", sorted(SOURCES.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCES)))
def test_device_and_dtype_are_named(file):
    assert not unplaced(file.read_text())


def test_the_check_finds_what_is_missing():
    source = (
        "torch.zeros(3)\ntorch.ones(3, device=d)\ntorch.arange(3, device=d, dtype=t)\nnn.Parameter(torch.zeros(3))\n"
    )
    assert unplaced(source) == [1, 2]
