"""Times two checkouts of vicinal against each other, on one machine, in turns: before and after a change.

    python3 benchmarks/compare.py BEFORE/src AFTER/src RESULTS.json [options of `vicinal bench`]

Both run the same bench (by default the `gpu` suite without peers) twice, in the order before, after, after, before: a
machine that warms up favours neither. Prints the geometric mean and the extremes of each backend and pass, of the time
after over the time before; writes that of every case, and how much the two runs of one checkout differ.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import geometric_mean

OURS = ("--backend", "hopper", "--backend", "triton")  # not torch's operations, which take most of a run
DEFAULT = ("--suite", "gpu", "--no-peers", *OURS, "--samples", "5", "--seconds", "0.1")
Key = tuple[str, str, str]  # case, system, pass


def main() -> None:
    """Run, compare, print, write; what two runs of each give replaces what the first ones gave."""
    before, after, results, *options = sys.argv[1:]
    runs: dict[str, list[dict[Key, float]]] = {before: [], after: []}
    for source in (before, after, after, before):
        runs[source].append(dict(timings(source, options or list(DEFAULT))))
        if runs[before] and runs[after]:
            write(Path(results), runs[before], runs[after])


def write(target: Path, before: list[dict[Key, float]], after: list[dict[Key, float]]) -> None:
    """Print a line for each system and pass, and write every ratio; noise is how much runs of one checkout differ."""
    keys = sorted(set.intersection(*(set(run) for run in (*before, *after))))
    rows = {key: mean_of(*after, key=key) / mean_of(*before, key=key) for key in keys}
    noise = {key: max(run[-1][key] / run[0][key] for run in (before, after)) for key in keys}
    for system, passed in sorted({key[1:] for key in keys}):
        own = {case: rows[case, system, passed] for case, *rest in keys if tuple(rest) == (system, passed)}
        best, worst = min(own, key=own.__getitem__), max(own, key=own.__getitem__)
        mean = geometric_mean(own.values())
        print(f"{system}, {passed}: {mean:.3f} ({own[best]:.3f} {best}; {own[worst]:.3f} {worst})", flush=True)
    listed = [{"case": c, "system": s, "pass": p, "ratio": rows[c, s, p], "noise": noise[c, s, p]} for c, s, p in keys]
    target.write_text(json.dumps({"command": sys.argv, "ratios": listed}, indent=1) + "\n")


def timings(source: str, options: list[str]) -> Iterator[tuple[Key, float]]:
    """Seconds of every case, system and pass that a checkout's bench measured; kernels' where it has them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        environment = dict(os.environ, PYTHONPATH=str(Path(source).resolve()))
        subprocess.run(
            [sys.executable, "-m", "vicinal", "bench", *options, "--json", file],
            env=environment, cwd=folder, stdout=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        for case in json.loads(file.read_text())["cases"]:
            for measured in case["measurements"]:
                timing = measured.get("kernel") or measured.get("eager")
                if measured["status"] == "ok" and timing:
                    yield (case["name"], measured["system"], measured["pass"]), timing["median"]


def mean_of(*runs: dict[Key, float], key: Key) -> float:
    """The geometric mean of a key's times."""
    return geometric_mean([run[key] for run in runs])


if __name__ == "__main__":
    main()
