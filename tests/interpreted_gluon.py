"""Gluon kernels without tensor cores, run by Triton's interpreter, which knows no Gluon.

Their sources are read again with Triton's language for Gluon's and without layouts, as modules of other names.
"""

from __future__ import annotations

import linecache
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels import memory
from vicinal.backends.hopper.kernels import arguments

FOLDER = Path(arguments.__file__).parent
PACKAGE, OURS = arguments.__name__.removesuffix(".arguments"), "gluon_interpreted"


def module(name: str) -> ModuleType:
    """`vicinal.backends.hopper.kernels.NAME`, to be interpreted."""
    found = sys.modules.get(f"{OURS}.{name}")
    if found is None:
        source = (FOLDER / f"{name}.py").read_text().replace(PACKAGE, OURS)
        for other in re.findall(rf"from {OURS}\.(\w+) import", source):
            module(other)
        source = re.sub(r", layout=[\w.]+\)", ")", source)
        source = re.sub(r"gl\.BlockedLayout\(.*\)", "None", source)
        source = re.sub(r"\bgl\.", "tl.", source)  # by which the interpreter knows constexprs
        found = _add(name)
        source = source.replace("tl.to_tensor", "_to_tensor")
        found.__dict__.update(tl=tl, _to_tensor=lambda number: tl.full([], number, tl.int32))
        found.__file__ = f"{OURS}/{name}.py"
        linecache.cache[found.__file__] = (len(source), None, source.splitlines(True), found.__file__)
        exec(compile(source, found.__file__, "exec", dont_inherit=True), found.__dict__)
    return found


def _add(name: str) -> ModuleType:
    found = ModuleType(f"{OURS}.{name}".rstrip("."))
    sys.modules[found.__name__] = found
    return found


_add("").__dict__.update(__path__=[], arguments=arguments)
_add("compat").__dict__.update(
    gl=tl,
    gluon=SimpleNamespace(jit=triton.jit, constexpr_function=lambda function: function),
    import_triton=lambda function: function,
    **dict.fromkeys(("fence_async_shared", "mbarrier", "thread_barrier")),
)
_add("chain").__dict__.update(await_previous=memory.await_previous, let_next_start=memory.let_next_start)
sys.modules[f"{OURS}.arguments"] = arguments
