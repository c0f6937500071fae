"""Records the public API of a NATTEN version from its source distribution: names, order and defaults of arguments.

Facts only, read from the syntax tree: nothing of it is imported, built or copied. For each version:

    pip download natten==VERSION --no-deps --no-binary :all: --no-build-isolation -d DIR
    tar xzf DIR/natten-VERSION.tar.gz -C DIR
    python tests/compat/record.py DIR/natten-VERSION > tests/compat/recorded/VERSION.json

Public is what has no leading underscore, without the parts that are NATTEN's own machinery (`MACHINERY`: its
autotuner, profiler, kernels' entry points and test helpers). A package also has what it imports from its modules.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

MACHINERY = (
    "attn_merge", "autotuner", "backends.", "nested", "ops", "profiler", "profiling_utils", "token_permute",
    "utils.environment", "utils.log", "utils.testing",
)  # fmt: skip
HANDING_ON = ("backends", "functional")  # of what these import, public is what `natten` itself has from them
Table = dict[str, str]


def record(root: Path) -> dict[str, Table]:
    """The tables of all public modules of the package at `root`, by their full names."""
    modules = {_name(path, root): _Module(path, _name(path, root)) for path in sorted(root.rglob("*.py"))}
    top = {bound for _, _, bound in modules[""].imported}
    tables = {}
    for name, module in modules.items():
        if name.startswith((*MACHINERY, "_")):
            continue
        table = dict(module.defined)
        for source, original, bound in module.imported:
            wanted = name in ("", "utils") or bound in module.listed or (name in HANDING_ON and original in top)
            found = _found(modules, source, original)
            if wanted and found is not None and not bound.startswith("_"):
                table[bound] = found
        tables[f"natten.{name}".rstrip(".")] = dict(sorted(table.items()))
    return tables


class _Module:
    """What one file defines, imports from its own package, and lists in `__all__`."""

    def __init__(self, path: Path, name: str) -> None:
        tree = _parsed(path)
        self.defined = _defined(tree)
        self.imported = _imported(tree, name, path.stem == "__init__")
        self.listed: list[str] = []
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" and name not in HANDING_ON:
                self.listed = ast.literal_eval(node.value)


def _found(modules: dict[str, _Module], name: str, wanted: str) -> str | None:
    """How `wanted` is described where the module `name` has it from."""
    if name not in modules:
        return None
    if wanted in modules[name].defined:
        return modules[name].defined[wanted]
    sources = (source for source, original, _ in modules[name].imported if original == wanted)
    return next((text for source in sources if (text := _found(modules, source, wanted)) is not None), None)


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text())
    except SyntaxError:  # the profiler of 0.21 needs a newer Python
        return ast.Module([], [])


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """A module's statements, also those under `if` and `try`."""
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            found += _statements([*node.body, *node.orelse])
        else:
            found.append(node)
    return found


def _defined(tree: ast.Module) -> Table:
    table: Table = {}
    for node in _statements(tree.body):
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            table[node.name] = _signature(node.args)
        elif isinstance(node, ast.ClassDef):
            _add_class(table, node)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
            if name == "__version__":
                table[name] = ast.literal_eval(value)
            elif isinstance(value, ast.Name) and value.id in table:
                table[name] = table[value.id]
            elif name.endswith("Type") or name.endswith("TypeOrDed") or name == "ListOrNestedTensor":
                table[name] = "type"
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "HAS_LIBNATTEN" for alias in node.names):
            table["HAS_LIBNATTEN"] = "value"
    return {name: text for name, text in table.items() if name == "__version__" or not name.startswith("_")}


def _add_class(table: Table, node: ast.ClassDef) -> None:
    """A class by its constructor's arguments; an autograd function by its `apply`'s; an enum by its members."""
    base = ast.unparse(node.bases[0]) if node.bases else ""
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    if base.endswith("Function"):
        table[f"{node.name}.apply"] = _signature(methods["forward"].args, skip=1)
    elif base.endswith("Enum"):
        members = [ast.unparse(item) for item in node.body if isinstance(item, ast.Assign)]
        table[node.name] = "enum " + ", ".join(members).replace(" = ", "=")
    elif "__init__" in methods:
        table[node.name] = _signature(methods["__init__"].args, skip=1)
    elif node.name.endswith("Context"):
        values = [item for item in node.body if isinstance(item, ast.AnnAssign) and item.value is not None]
        public = [
            f"{ast.unparse(i.target)}={ast.unparse(i.value)}" for i in values if not ast.unparse(i).startswith("_")
        ]
        table[node.name] = "attributes " + ", ".join(public)


def _signature(arguments: ast.arguments, skip: int = 0) -> str:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    texts = [a.arg if d is None else f"{a.arg}={ast.unparse(d)}" for a, d in zip(positional, defaults)]
    return f"({', '.join(texts[skip:])})"


def _imported(tree: ast.Module, module: str, package: bool) -> list[tuple[str, str, str]]:
    """Modules (without `natten.`), names there and names here, of what is imported from the package itself."""
    found = []
    for node in _statements(tree.body):
        if not isinstance(node, ast.ImportFrom):
            continue
        source = node.module or ""
        if node.level:
            here = module.split(".") if module else []
            up = here[: len(here) - (node.level - (1 if package else 0))]
            source = ".".join([*up, *(source.split(".") if source else [])])
        elif source.split(".")[0] == "natten":
            source = source.removeprefix("natten").removeprefix(".")
        else:
            continue
        found += [(source, alias.name, alias.asname or alias.name) for alias in node.names]
    return found


if __name__ == "__main__":
    distribution = Path(sys.argv[1])
    root = next(p for p in (distribution / "src" / "natten", distribution / "natten") if (p / "__init__.py").exists())
    json.dump(record(root), sys.stdout, indent=1)
    print()
