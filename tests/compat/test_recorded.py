"""Names, order and defaults are those of NATTEN's versions, as `record.py` read them from its source distributions."""

import enum
import inspect
import json
from pathlib import Path

import pytest
import torch

import vicinal
from vicinal.compat import context
from vicinal.compat.history import modules_of
from vicinal.compat.versions import as_text, parse

RECORDED = {
    file.stem: json.loads(file.read_text()) for file in sorted((Path(__file__).parent / "recorded").glob("*.json"))
}
MODULES = [(version, name) for version, tables in RECORDED.items() for name in tables]
OWN = [
    "na1d",
    "na2d",
    "na3d",
    "attention",
    "merge_attentions",
    *(f"NeighborhoodAttention{rank}D" for rank in (1, 2, 3)),
]


def described(thing) -> str:
    """As `record.py` describes it."""
    if isinstance(thing, type) and issubclass(thing, enum.Enum):
        return "enum " + ", ".join(f"{member.name}={member.value}" for member in thing)
    if hasattr(thing, "apply") and not issubclass(thing, torch.nn.Module):
        return described(thing.apply)
    parameters = inspect.signature(thing).parameters.values()
    return f"({', '.join(p.name + default(p) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)})"


def default(parameter) -> str:
    if parameter.default is parameter.empty:
        return ""
    value = parameter.default
    return f"={value.__name__ if isinstance(value, type) else repr(value)}"


def test_every_generation_is_recorded():
    assert {"0.14.1", "0.14.6", "0.15.1", "0.17.5", "0.20.1", "0.21.0", "0.21.7"} <= set(RECORDED)


@pytest.mark.parametrize(("version", "name"), MODULES)
def test_a_module_is_as_recorded(version, name):
    """No name is missing, none is there that the version had not, and every argument list is the same."""
    module = modules_of(parse(version)).get(name)
    expected = {key.removesuffix(".apply"): text for key, text in RECORDED[version][name].items()}
    if module is None:
        assert not expected
        return
    expected.pop("__version__", None)
    assert {key for key in vars(module) if not key.startswith("_")} == set(expected)
    given = {key: described(vars(module)[key]) for key, text in expected.items() if text.startswith(("(", "enum"))}
    assert given == {key: expected[key] for key in given}


@pytest.mark.parametrize("version", RECORDED)
def test_no_module_is_there_that_the_version_had_not(version):
    assert set(modules_of(parse(version))) <= set(RECORDED[version])


@pytest.mark.parametrize("version", RECORDED)
def test_the_version_is_the_recorded_one(version):
    tables = RECORDED[version]
    expected = tables.get("natten.version", tables["natten"])["__version__"]
    assert modules_of(parse(version))["natten"].__version__ == expected == version


@pytest.mark.parametrize(
    ("version", "owner"),
    [
        ("0.17.5", "NattenContext"),
        ("0.17.5", "AutotunerContext"),
        ("0.20.1", "NattenContext"),
        ("0.21.7", "NattenContext"),
    ],
)
def test_settings_start_as_recorded(version, owner, install):
    install(version)
    text = RECORDED[version]["natten.context"][owner].removeprefix("attributes ")
    given = dict(part.split("=") for part in text.split(", "))
    assert {name: str(getattr(getattr(context, owner), name)) for name in given} == given


@pytest.mark.parametrize("name", OWN)
def test_vicinals_own_names_follow_the_newest(name):
    """Positional arguments are exactly these; what vicinal adds is keyword-only."""
    assert described(getattr(vicinal, name)) == RECORDED["0.21.7"]["natten"][name]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.14", "0.14.6"),
        ("0.14.2.post4", "0.14.2"),
        ("0.17.5+torch250cu121", "0.17.5"),
        ("v0.20.1", "0.20.1"),
        ("0.21.3", "0.21.3"),
        ("0.21.1.dev0", "0.21.1"),
        ("0.21", "0.21.7"),
    ],
)
def test_versions_are_read(text, version):
    assert as_text(parse(text)) == version


@pytest.mark.parametrize(
    "text", ["0.13", "0.16", "0.18.0", "0.14.0", "0.21.8", "1.0", "newest", "", "0.17.x", None, 0.2]
)
def test_unknown_versions_are_refused(text):
    with pytest.raises(ValueError, match="generation must be one of 0.14|known here are"):
        parse(text)


@pytest.mark.parametrize(("between", "before"), [("0.14.3", "0.14.4"), ("0.17.2", "0.17.1"), ("0.21.3", "0.21.0")])
def test_between_two_versions_the_earlier_is_in_force(between, before):
    expected = {key.removesuffix(".apply"): text for key, text in RECORDED[before]["natten.functional"].items()}
    functional = modules_of(parse(between))["natten.functional"]
    assert {k: described(v) for k, v in vars(functional).items() if not k.startswith("_")} == expected
