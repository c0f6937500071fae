"""Functions' source, found quickly: Triton asks `inspect` for that of every function that it decorates.

`inspect` tokenizes it to see where it ends, a third of what it takes to import our kernels. In modules that are
formatted as ours are, a function ends before the next line that is not indented.
"""

from __future__ import annotations

import inspect
import linecache
import re
from types import FunctionType
from typing import Any

OURS = "vicinal."
WITHIN = re.compile(r"\s|\)")  # how lines after the first begin: empty, indented, or the end of the parameters


def source_lines(function: Any) -> tuple[list[str], int]:
    """What `inspect.getsourcelines` returns."""
    ours = type(function) is FunctionType and function.__module__.startswith(OURS)
    if not ours or function.__qualname__ != function.__name__:  # or one in another's body
        return inspect.getsourcelines(function)
    code = function.__code__
    first = code.co_firstlineno - 1
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)[first:]
    if not lines:
        raise OSError(f"no source of {function.__qualname__}")  # as Python says it
    stop = next(i for i, line in enumerate(lines) if line.startswith("def ")) + 1
    while stop < len(lines) and WITHIN.match(lines[stop]):
        stop += 1
    while not lines[stop - 1].strip():
        stop -= 1
    return lines[:stop], first + 1


class _Inspect:
    """The module `inspect`, as Triton is to see it."""

    getsourcelines = staticmethod(source_lines)

    def __getattr__(self, name: str) -> Any:
        return getattr(inspect, name)


def be_quick() -> None:
    """Have Triton find our functions' source that way, where it asks as Triton 3.6 to 3.9 do."""
    from triton.runtime import jit

    if getattr(jit, "inspect", None) is inspect:
        jit.inspect = _Inspect()
