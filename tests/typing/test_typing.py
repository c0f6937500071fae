"""What type checkers say of calls of the public functions: of right ones nothing, of each wrong one something."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CALLS = Path(__file__).parent / "calls.py"
ROOT = CALLS.parents[2]


def mypy() -> dict[int, str]:
    out = run("-m", "mypy", "--output", "json", "--no-error-summary", str(CALLS))
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {e["line"]: e["message"] for e in found if (ROOT / e["file"]).samefile(CALLS) and e["severity"] == "error"}


def pyright() -> dict[int, str]:
    out = run("-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(CALLS))
    found = json.loads(out[out.index("{") :])["generalDiagnostics"]
    return {e["range"]["start"]["line"] + 1: e["message"] for e in found if e["severity"] == "error"}


def run(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False, timeout=280
    ).stdout


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_checkers_complain_of_wrong_calls_alone(checker):
    if find_spec(checker.__name__) is None:
        pytest.skip(f"{checker.__name__} is not installed")
    wrong = {i for i, line in enumerate(CALLS.read_text().splitlines(), 1) if line.endswith("# wrong")}
    found = checker()
    assert {line: message for line, message in found.items() if line not in wrong} == {}
    assert sorted(wrong - set(found)) == []
