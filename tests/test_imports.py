"""What import-linter cannot say: contracts list what is forbidden, here is all that is allowed."""

import ast
import sys
from pathlib import Path

import pytest

import vicinal

SOURCE = Path(vicinal.__file__).parent
GEOMETRY = sorted(SOURCE.glob("geometry/*.py"))
KERNELS = sorted(SOURCE.glob("backends/*/kernels/*.py"))
COMPILERS = ("triton", "numba", "llvmlite", "torch")  # torch: for the types of tensors


def imported(file: Path) -> set[str]:
    """The modules that a file imports, wherever in it; packages of names too, since a name may be a module."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            is_package = (SOURCE.parent / node.module.replace(".", "/")).is_dir()
            found |= set(names) if is_package else {node.module}
    return found


def others(file: Path, *allowed: str) -> set[str]:
    """Of what a file imports all that is neither Python's own, nor in these packages, nor one of them."""
    names = {name for name in imported(file) if name.split(".")[0] not in sys.stdlib_module_names}
    return {name for name in names if not any(f"{name}.".startswith(f"{package}.") for package in allowed)}


@pytest.mark.parametrize("file", GEOMETRY, ids=lambda file: file.stem)
def test_geometry_needs_nothing_but_python(file):
    assert not others(file, "vicinal.geometry", "vicinal.words")


@pytest.mark.parametrize("file", KERNELS, ids=lambda file: f"{file.parents[1].name}/{file.stem}")
def test_kernels_import_geometry_and_kernels_only(file):
    own = f"vicinal.backends.{file.parents[1].name}.kernels"
    assert not others(file, "vicinal.geometry", "vicinal.backends.gpu.kernels", own, *COMPILERS)
