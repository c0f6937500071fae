"""A hook of mkdocs: a line `<!-- notebook: PATH -->` of a page becomes the notebook's cells and their kept outputs."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COLOURS = re.compile(r"\x1b\[[\d;]*m")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put notebooks into a page."""
    return re.sub(r"^<!-- notebook: (\S+) -->$", lambda found: cells(ROOT / found[1]), markdown, flags=re.MULTILINE)


def cells(path: Path) -> str:
    """A notebook as Markdown."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"^# .*\n*", "", source))  # the page has a title of its own
        elif cell["cell_type"] == "code":
            code = "".join(line for line in source.splitlines(keepends=True) if not line.startswith("%"))
            parts += [f"```python\n{code}\n```", *map(_output, cell["outputs"])]
    return "\n\n".join(parts)


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="output" src="data:image/png;base64,{_text(data["image/png"]).replace(chr(10), "")}">'
    shown = COLOURS.sub("", _text(output.get("text", data.get("text/plain", "")))).rstrip()
    return f"```text\n{shown}\n```"


def _text(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
