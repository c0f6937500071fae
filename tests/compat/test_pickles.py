"""Modules that the real library pickled load and run.

It pickles a module as its class's name and its attributes; so does a class of that name with those attributes. The
attributes are those that NATTEN's constructors set, version by version.
"""

import io
import pickle
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from vicinal.compat import install_as_natten

BOTH = {"num_heads": 2, "head_dim": 4, "scale": 0.5}
OLD = {**BOTH, "kernel_size": 3, "dilation": 2, "window_size": 6}
TUPLES = {**BOTH, "kernel_size": (3, 5), "dilation": (2, 1), "is_causal": (False, False)}
NEW = {**TUPLES, "na_dim": 2, "embed_dim": 8, "stride": (2, 1), "expected_input_tensor_rank": 4}
RPB = {"rpb": (2, 5, 5)}
DEPTH = {**OLD, "kernel_size_d": 2, "dilation_d": 1, "window_size_d": 2}
PLAIN = {"dim": 8, "kernel_size": 3, "num_heads": 2, "dilation": 2}
OF_017 = {"dim": 8, "kernel_size": (3, 5), "num_heads": 2, "dilation": (2, 1)}
OF_020 = {"embed_dim": 8, "kernel_size": (3, 5), "num_heads": 2, "dilation": (2, 1), "stride": (2, 1)}
DROP = {"attn_drop_rate": 0.0}
EXPERIMENTAL = {**DROP, "use_experimental_ops": False}
CASES = [  # version, class, the pickled attributes, the bias's shape, arguments of the constructor for the same module
    ("0.14.1", "natten.nattencuda2d.NeighborhoodAttention2D", OLD, RPB, PLAIN),
    ("0.14.6", "natten.natten2d.NeighborhoodAttention2D", OLD, RPB, PLAIN),
    ("0.14.6", "natten.natten2d.NeighborhoodAttention2D", OLD, {"rpb": None}, {**PLAIN, "bias": False}),
    (
        "0.15.1",
        "natten.natten3d.NeighborhoodAttention3D",
        DEPTH,
        {"rpb": (2, 3, 5, 5)},
        {**PLAIN, "kernel_size_d": 2, "dilation_d": 1},
    ),
    (
        "0.17.1",
        "natten.na2d.NeighborhoodAttention2D",
        {**TUPLES, **DROP},
        {"rpb": (2, 5, 9)},
        {**OF_017, "rel_pos_bias": True},
    ),
    ("0.17.5", "natten.na2d.NeighborhoodAttention2D", {**TUPLES, **EXPERIMENTAL}, {"rpb": None}, OF_017),
    ("0.20.1", "natten.modules.NeighborhoodAttention2D", NEW, {}, OF_020),
    ("0.21.7", "natten.modules.NeighborhoodAttentionGeneric", NEW, {}, {"na_dim": 2, **OF_020}),
]


def pickled(path, attributes, bias, monkeypatch) -> tuple[bytes, nn.Module]:
    """What the real library writes, by a stand-in of the same name."""
    module, name = path.rsplit(".", 1)
    package, home = ModuleType("natten"), ModuleType(module)
    stand_in = type(name, (nn.Module,), {"__module__": module})
    setattr(home, name, stand_in)
    monkeypatch.setitem(sys.modules, "natten", package)
    monkeypatch.setitem(sys.modules, module, home)
    layer = stand_in()
    for attribute, value in attributes.items():
        setattr(layer, attribute, value)
    layer.qkv = nn.Linear(8, 24)
    for key, shape in bias.items():
        layer.register_parameter(key, None if shape is None else nn.Parameter(torch.randn(shape)))
    if bias:
        layer.attn_drop = nn.Dropout(0.0)
    layer.proj = nn.Linear(8, 8)
    layer.proj_drop = nn.Dropout(0.0)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    monkeypatch.undo()
    return buffer.getvalue(), layer


@pytest.mark.parametrize(("version", "path", "attributes", "bias", "arguments"), CASES)
def test_a_pickled_module_loads_and_runs(version, path, attributes, bias, arguments, monkeypatch):
    torch.manual_seed(0)
    written, original = pickled(path, attributes, bias, monkeypatch)
    install_as_natten(version)
    layer = torch.load(io.BytesIO(written), weights_only=False)
    assert f"{type(layer).__module__}.{type(layer).__name__}" == path
    fresh = type(layer)(**arguments)
    fresh.load_state_dict(original.state_dict())
    x = torch.randn(1, *((4, 7, 8) if path.endswith("3D") else (7, 8)), 8)
    assert torch.equal(layer(x), fresh(x))
    assert "head_dim=4" in repr(layer)


@pytest.mark.parametrize("version", ["0.14.1", "0.14.6", "0.15.1", "0.17.5", "0.20.1", "0.21.7"])
def test_our_modules_pickle_under_the_real_names(version):
    natten = install_as_natten(version)
    sizes = (8, 3, 2) if version == "0.14.1" else (8, 2, 3)
    layer = natten.NeighborhoodAttention2D(*sizes)
    written = pickle.dumps(layer)
    home = {"0.14.1": "nattencuda2d", "0.17.5": "na2d", "0.20.1": "modules", "0.21.7": "modules"}.get(
        version, "natten2d"
    )
    assert f"natten.{home}".encode() in written
    install_as_natten(version)
    x = torch.randn(1, 5, 6, 8)
    assert torch.equal(pickle.loads(written)(x), layer(x))
