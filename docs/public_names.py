"""A hook of mkdocs: every public name stands on the API page, else the strict build fails."""

import re
from collections.abc import Iterator
from typing import Any

from mkdocs.plugins import get_plugin_logger

import vicinal

PAGE = "api.md"


def public_names() -> Iterator[str]:
    """What users may import, by its public path: dunders, which every module has, are left out."""
    for module, path in (
        (vicinal, "vicinal"),
        (vicinal.unfused, "vicinal.unfused"),
        (vicinal.compat, "vicinal.compat"),
    ):
        yield from (f"{path}.{name}" for name in module.__all__ if not name.startswith("__"))


def missing(markdown: str) -> list[str]:
    """The public names that the page neither documents (`::: path`) nor names in backticks."""
    named = set(re.findall(r"^::: ([\w.]+)", markdown, re.MULTILINE)) | set(re.findall(r"`([\w.]+)`", markdown))
    return [path for path in public_names() if path not in named and path.rpartition(".")[2] not in named]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    """Warn of what is missing."""
    if page.file.src_uri == PAGE:
        for path in missing(markdown):
            get_plugin_logger("public names").warning(f"{path} is not on {PAGE}")
