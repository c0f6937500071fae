"""Gluon's names move between releases of Triton: kernels take only those that every supported release has."""

import ast
from pathlib import Path

import pytest

pytest.importorskip("triton.experimental.gluon")

from vicinal.backends.hopper import kernels
from vicinal.backends.hopper.kernels.compat import gl

FOLDER = Path(kernels.__file__).parent
# Seen in Triton 3.6.0, 3.7.1, 3.8.0 and 3.9.0; what is not in all goes through `compat`.
EVERYWHERE = {
    "BlockedLayout", "DotOperandLayout", "NVMMADistributedLayout", "NVMMASharedLayout", "SliceLayout",
    "allocate_shared_memory", "arange", "broadcast", "cdiv", "constexpr", "convert_layout", "exp2", "float32",
    "inline_asm_elementwise", "int32", "int64", "load", "log2", "max", "maximum", "minimum", "num_programs",
    "num_warps", "program_id", "static_range", "store", "sum", "to_tensor", "uint32", "warp_specialize",
    "where", "zeros", "zeros_like",
}  # fmt: skip


def used() -> set[str]:
    """Attributes of `gl` in the kernels' sources, but for those of `compat`."""
    trees = (ast.parse(path.read_text()) for path in FOLDER.glob("*.py") if path.name != "compat.py")
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {
        n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "gl"
    }


def test_kernels_use_what_every_release_has():
    assert sorted(used() - EVERYWHERE) == [], "look them up in the oldest and the newest Triton"


@pytest.mark.parametrize("name", sorted(EVERYWHERE))
def test_the_installed_release_has_it(name):
    assert hasattr(gl, name)
