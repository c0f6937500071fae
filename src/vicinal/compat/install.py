"""Making `import natten` resolve to vicinal, with the API of a version of NATTEN."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from types import ModuleType
from typing import Any

from vicinal.compat import context
from vicinal.compat.history import modules_of
from vicinal.compat.versions import as_text, parse

MARK = "__provided_by_vicinal__"


def install_as_natten(generation: str = "0.21") -> ModuleType:
    """Make `import natten`, `from natten.functional import ...` and all its public modules resolve to vicinal.

    So do `importlib.util.find_spec("natten")` and `importlib.metadata.version("natten")`, by which other libraries look
    whether NATTEN is there. Installing another version replaces the first; settings of `natten.context` start anew.

    Args:
        generation: NATTEN's version, as "0.17.3", or the last of a generation, as "0.17".

    Returns:
        the module that `import natten` gives from now on.

    Raises:
        ValueError: no such version was released, or it is newer than those known here.
        RuntimeError: the real NATTEN has been imported already.
    """
    version = parse(generation)
    present = sys.modules.get("natten")
    if present is not None and not hasattr(present, MARK):
        raise RuntimeError("natten is already imported, and it is not vicinal's; call install_as_natten before that")
    uninstall_natten()
    context.reset(kv_parallelism=version >= (0, 20, 0))
    modules = modules_of(version)
    setattr(modules["natten"], MARK, True)
    packages = {"natten", *(name.rpartition(".")[0] for name in modules)}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None, is_package=name in packages)
        if name in packages:
            module.__path__ = []  # with no other submodules than these
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent and not hasattr(modules[parent], child):  # na1d is a function of natten's from 0.20 on
            setattr(modules[parent], child, module)
    sys.meta_path.insert(0, _Finder(as_text(version)))
    return modules["natten"]


def uninstall_natten() -> None:
    """Undo `install_as_natten`; does nothing where it was not called."""
    if hasattr(sys.modules.get("natten"), MARK):
        for name in [n for n in sys.modules if n == "natten" or n.startswith("natten.")]:
            del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


class _Finder(DistributionFinder):
    """Answers for the distribution `natten`, and for nothing else."""

    def __init__(self, version: str) -> None:
        self.version = version

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Leaves imports to others: the modules are in `sys.modules`."""
        return

    def find_distributions(self, context: Any = None) -> Iterator[Distribution]:
        """The distribution, where `natten` is asked for."""
        if context is not None and (context.name or "").lower() == "natten":
            yield _Distribution(self.version)


class _Distribution(Distribution):
    def __init__(self, version: str) -> None:
        self._version = version

    def read_text(self, filename: str) -> str | None:
        """Its metadata."""
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: natten\nVersion: {self._version}\nSummary: provided by vicinal.compat\n"

    def locate_file(self, path: Any) -> Any:
        """It has no files."""
        raise FileNotFoundError(f"natten is provided by vicinal.compat and has no file {path}")
