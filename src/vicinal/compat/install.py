"""Making `import natten` resolve to one of the generations."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from types import ModuleType
from typing import Any

GENERATIONS = ("0.14", "0.15", "0.16", "0.17", "0.20", "0.21")
VERSIONS = {"0.14": "0.14.6", "0.15": "0.15.1", "0.16": "0.16.0", "0.17": "0.17.5", "0.20": "0.20.1", "0.21": "0.21.0"}
MARK = "__provided_by_vicinal__"


def install_as_natten(generation: str = "0.20") -> ModuleType:
    """Make `import natten`, `from natten.functional import ...`, `natten.context`, `natten.flops` resolve to vicinal.

    Also answers `importlib.util.find_spec("natten")` and `importlib.metadata.version("natten")`, by which other
    libraries look whether NATTEN is there. Installing another generation replaces the first.

    Args:
        generation: NATTEN's version, as "0.17" or "0.17.5".

    Returns:
        the module that `import natten` gives from now on.

    Raises:
        ValueError: an unknown generation.
        RuntimeError: the real NATTEN has been imported already.
    """
    short = ".".join(str(generation).split(".")[:2])
    if short not in GENERATIONS:
        raise ValueError(f"generation must be one of {', '.join(GENERATIONS)}, got {generation!r}")
    present = sys.modules.get("natten")
    if present is not None and not hasattr(present, MARK):
        raise RuntimeError("natten is already imported, and it is not vicinal's; call install_as_natten before that")
    uninstall_natten()
    modules = _modules(short)
    natten = modules["natten"]
    natten.__path__ = []  # a package, with no other submodules than these
    setattr(natten, MARK, True)
    version = str(generation) if str(generation).count(".") > 1 else VERSIONS[short]
    natten.__dict__["__version__"] = version
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None, is_package=name == "natten")
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent and not (short in ("0.20", "0.21") and child in ("na1d", "na2d", "na3d")):
            setattr(modules[parent], child, module)
    sys.meta_path.insert(0, _Finder(version))
    return natten


def uninstall_natten() -> None:
    """Undo `install_as_natten`; does nothing where it was not called."""
    if hasattr(sys.modules.get("natten"), MARK):
        for name in [n for n in sys.modules if n == "natten" or n.startswith("natten.")]:
            del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def _modules(generation: str) -> dict[str, ModuleType]:
    """The modules of a generation by the name under which they are imported."""
    from vicinal.compat import context, flops, natten014, natten017, natten020, utils

    if generation == "0.14":
        functional = _module("natten.functional", natten014, natten014.FUNCTIONS)
        modules = {"natten": _module("natten", natten014, natten014.MODULES), "natten.functional": functional}
        for rank, kept in ((1, "natten1d"), (2, "natten2d")):
            modules[f"natten.{kept}"] = _module(f"natten.{kept}", natten014, [f"NeighborhoodAttention{rank}D"])
    elif generation in ("0.15", "0.16", "0.17"):
        modules = {
            "natten": _module("natten", natten017, natten017.MODULES),
            "natten.functional": _module("natten.functional", natten017, natten017.FUNCTIONS),
            "natten.context": _module("natten.context", context, context.OLD),
            "natten.types": _module("natten.types", utils, utils.TYPES),
            "natten.utils": _module("natten.utils", utils, ["check_all_args"]),
        }
        for name in context.OLD:
            setattr(modules["natten"], name, getattr(context, name))
            setattr(modules["natten.functional"], name, getattr(context, name))
        for rank in (1, 2, 3):
            for kept in (f"na{rank}d", f"natten{rank}d"):
                modules[f"natten.{kept}"] = _module(f"natten.{kept}", natten017, [f"NeighborhoodAttention{rank}D"])
    else:
        modules = {
            "natten": _module("natten", natten020, [*natten020.FUNCTIONS, *natten020.MODULES, "HAS_LIBNATTEN"]),
            "natten.functional": _module("natten.functional", natten020, natten020.FUNCTIONS),
            "natten.modules": _module("natten.modules", natten020, natten020.MODULES),
            "natten.context": _module("natten.context", context, context.NEW),
        }
        for name in context.NEW:
            setattr(modules["natten"], name, getattr(context, name))
    modules["natten.flops"] = _module("natten.flops", flops, ["add_natten_handle", "get_flops"])
    return modules


def _module(name: str, source: ModuleType, names: Any) -> ModuleType:
    module = ModuleType(name, source.__doc__)
    module.__dict__["__all__"] = list(names)
    for attribute in names:
        setattr(module, attribute, getattr(source, attribute))
    return module


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
