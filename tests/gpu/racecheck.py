"""Runs GPU tests under compute-sanitizer's racecheck, each within its time, and tells what is ours of what it finds.

    python3 tests/gpu/racecheck.py SECONDS_EACH TEST...

Of a kernel whose warps are specialised it reports the byte by which Triton itself starts the other warps: it is read
and written at the kernel's own line and at that of `gl.warp_specialize`, around named barriers that racecheck does not
follow (docs/laboratory/hopper.md). Anything else is a failure.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "src" / "vicinal" / "backends"
ACCESS = re.compile(r"(?:Read|Write) access at (\w+)\+0x[0-9a-f]+ in ([\w.]+):(\d+)")
STARTS_WARPS = re.compile(r"^def \w+\(|^    gl\.warp_specialize\(\[")


def main() -> None:
    """Run all, print a line each, exit with 1 if any failed."""
    seconds, *tests = sys.argv[1:]
    failed = [test for test in tests if not passes(test, float(seconds))]
    sys.exit(1 if failed else 0)


def passes(test: str, seconds: float) -> bool:
    """Whether the test passes and no race is reported but of Triton's start of warps."""
    command = ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9"]
    command += [sys.executable, "-m", "pytest", "-q", "-m", "gpu", test]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"{test}: not done in {seconds:.0f} s", flush=True)
        return False
    ours = [line for line in run.stdout.splitlines() if not all(map(starts_warps, ACCESS.findall(line)))]
    is_right = run.returncode in (0, 9) and " passed" in run.stdout and " failed" not in run.stdout and not ours
    print(f"{test}: {'no race of ours' if is_right else run.stdout + run.stderr}", flush=True)
    return is_right


def starts_warps(access: tuple[str, str, str]) -> bool:
    """Whether a line that was read or written is where a kernel begins or specialises its warps."""
    kernel, name, number = access
    found = [p for p in KERNELS.glob(f"*/kernels/{name}") if f"def {kernel}(" in p.read_text()]
    return any(STARTS_WARPS.match(path.read_text().splitlines()[int(number) - 1]) for path in found)


if __name__ == "__main__":
    main()
