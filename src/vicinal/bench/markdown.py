"""Markdown of generated pages, as GitHub and MkDocs both show it."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], body: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """A table; with `numbers` all columns after the first are set to the right."""
    rule = ["---", *(["--:" if numbers else "---"] * (len(header) - 1))]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in [header, rule, *body]
    )


def folded(summary: str, text: str) -> str:
    """Text that is shown when its summary is clicked."""
    return f'<details markdown="1">\n<summary>{summary}</summary>\n\n{text}\n\n</details>'


def figure(path: str, caption: str) -> str:
    """A picture and, below it, what it shows."""
    return f"![{caption.partition('.')[0]}]({path})\n\n*{caption}*"
