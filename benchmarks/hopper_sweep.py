"""Runs the tests of `tests/gpu/test_hopper_gpu.py` in parallel processes, each with a time limit, and sums up.

For a machine with a GPU whose time is short: a kernel that hangs costs its own process only.
Usage: PYTHONPATH=src python3 benchmarks/hopper_sweep.py SHARDS SECONDS [pytest's -k expression]
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time


def main() -> None:
    """Collect, deal out, wait, sum up."""
    shards, seconds = int(sys.argv[1]), float(sys.argv[2])
    wanted = ["-k", sys.argv[3]] if len(sys.argv) > 3 else []
    base = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "--tb=line"]
    listed = subprocess.run(
        [*base, "--collect-only", "tests/gpu/test_hopper_gpu.py", *wanted], capture_output=True, text=True
    ).stdout
    ids = [line for line in listed.splitlines() if "::" in line]
    print(f"{len(ids)} tests in {shards} processes", flush=True)
    running = [
        subprocess.Popen(
            [*("-v" if word == "-q" else word for word in base), *ids[i::shards]],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        for i in range(min(shards, len(ids)))
    ]  # fmt: skip
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in running):
        time.sleep(0.2)
    late = [process.poll() is None for process in running]
    for process in running:  # all at once, with what they started: nothing may run beside what is timed next
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    for i, process in enumerate(running):
        out = process.communicate()[0]
        if late[i]:
            passed = out.count(" PASSED")
            out += f"\nTIME LIMIT in shard {i}: {passed} passed of {len(ids[i::shards])}: {ids[i::shards]}"
        lines = [x for x in out.splitlines() if x.strip()]
        kept = [x[:330] for x in lines if "Error" in x or "FAILED" in x or "TIME LIMIT" in x][:12]
        print("\n".join([*kept, lines[-1][:300] if lines else "no output"]), flush=True)


if __name__ == "__main__":
    main()
