"""What the compile-only scripts read off a kernel's PTX."""

from __future__ import annotations

import re

COPIES = r"cp\.async(\.\w+)*\.shared(::\w+)?\.global|cp\.async\.bulk\.tensor\.\dd\.shared"  # the target is first
READ = re.compile(rf"\b(ld\.global|{COPIES}|atom\.)")
WRITE = re.compile(r"\b(st\.global|red\.|cp\.async\.bulk(\.\w+)*\.global\.shared)")  # adding hands nothing on
LABEL = re.compile(r"^(\$L\w+):\s*(.*)")  # the compiler's own: those of inline assembly do not leave its braces
TABLE = re.compile(r"(\$L\w+):\s*\.branchtargets([^;]*);")
BRANCH = re.compile(r"^(@!?%\w+\s+)?(bra|brx\.idx)(\.uni)?\s+(.*);")
END = re.compile(r"^(ret|exit|trap)\b")


def before_waits(ptx: str, writes: bool) -> list[str]:
    """Instructions that touch global memory on some path from a kernel's start that no `griddepcontrol.wait` is on.

    Reads, and with `writes` also writes. Every path counts that the branches allow, whatever their conditions.
    """
    lines, labels, tables = _parsed(ptx)
    found, seen, ahead = set(), set(), [0]
    while ahead:
        i = ahead.pop()
        if i in seen or i >= len(lines):
            continue
        seen.add(i)
        line = lines[i]
        if "griddepcontrol.wait" in line or END.match(line):
            continue
        if READ.search(line) or (writes and WRITE.search(line)):
            found.add(i)
        branch = BRANCH.match(line)
        if branch:
            where = branch[4].split(",")[-1].strip()
            ahead.extend(labels[label] for label in tables.get(where, [where]) if label in labels)
        if branch is None or branch[1]:
            ahead.append(i + 1)
    return [lines[i] for i in sorted(found)]


def _parsed(ptx: str) -> tuple[list[str], dict[str, int], dict[str, list[str]]]:
    """Instructions, the place of each label, and the labels of each table of branches."""
    body = re.sub(r"//.*", "", ptx[ptx.index(".entry") :])
    tables = {name: re.findall(r"\$L\w+", targets) for name, targets in TABLE.findall(body)}
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in TABLE.sub("", body).splitlines():
        line = line.strip()
        label = LABEL.match(line)
        if label:
            labels[label[1]] = len(lines)
            line = label[2]
        if line and not line.startswith("."):
            lines.append(line)
    return lines, labels, tables
