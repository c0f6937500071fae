"""The optional dependencies: what each extra brings, and the one line that says which is missing."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS: dict[str, tuple[str, ...]] = {  # extra, as in pyproject.toml -> the modules that it brings
    "cli": ("rich", "typer", "PIL", "numpy"),
    "plot": ("matplotlib",),
    "cpu": ("numba",),
    "models": ("timm",),
    "tune": ("platformdirs", "filelock"),
}


class MissingExtra(ImportError):
    """An optional dependency is not installed; the message says which, and what to install."""


def install(*extras: str) -> str:
    """The command that adds extras to an installed vicinal; pip asks no index for vicinal itself then."""
    return f"pip install 'vicinal[{','.join(extras)}]'"


def need(what: str, *modules: str) -> None:
    """Raise `MissingExtra` unless these modules are installed, before `what` does any work; imports none of them."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        extras = [extra for extra, brought in EXTRAS.items() if set(brought) & set(missing)]
        raise MissingExtra(f"{what} needs {' and '.join(missing)}: {install(*extras)}")
