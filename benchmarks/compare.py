"""Times two checkouts of vicinal against each other, on one machine, in turns: before and after a change.

    python3 benchmarks/compare.py BEFORE/src AFTER/src RESULTS.json [options of `vicinal bench`]

Both run the same bench (by default the `gpu` suite without peers) twice, in the order before, after, after, before: a
machine that warms up favours neither. Prints the geometric mean and the extremes of each backend and pass, and of the
faster backend of each case ("fastest"), of the time after over the time before; writes that of every case, the times,
and how much the two runs of one checkout differ.
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
from typing import Any

OURS = ("--backend", "hopper", "--backend", "triton")  # not torch's operations, which take most of a run
DEFAULT = ("--suite", "gpu", "--no-peers", *OURS, "--samples", "5", "--seconds", "0.1")
Key = tuple[str, str, str]  # case, system, pass
FASTEST = "fastest"


def main() -> None:
    """Run, compare, print, write; what two runs of each give replaces what the first ones gave."""
    before, after, results, *options = sys.argv[1:]
    runs: dict[str, list[dict[Key, float]]] = {before: [], after: []}
    about: list[dict[str, Any]] = []
    for source in (before, after, after, before):
        found = bench(source, options or list(DEFAULT))
        about.append({"source": source, **{name: found[name] for name in ("date", "machine", "versions")}})
        runs[source].append(with_fastest(dict(timings(found))))
        if runs[before] and runs[after]:
            listed = compared(runs[before], runs[after])
            lines = {"command": sys.argv, "runs": about, "ratios": listed}
            Path(results).write_text(json.dumps(lines, indent=1) + "\n")


def compared(before: list[dict[Key, float]], after: list[dict[Key, float]]) -> list[dict[str, Any]]:
    """Every ratio, having printed a line for each system and pass; noise is how much runs of one checkout differ."""
    keys = sorted(set.intersection(*(set(run) for run in (*before, *after))))
    seconds = {key: (mean_of(*before, key=key), mean_of(*after, key=key)) for key in keys}
    rows = {key: new / old for key, (old, new) in seconds.items()}
    noise = {key: max(run[-1][key] / run[0][key] for run in (before, after)) for key in keys}
    for system, passed in sorted({key[1:] for key in keys}):
        own = {case: rows[case, system, passed] for case, *rest in keys if tuple(rest) == (system, passed)}
        best, worst = min(own, key=own.__getitem__), max(own, key=own.__getitem__)
        mean = geometric_mean(own.values())
        print(f"{system}, {passed}: {mean:.3f} ({own[best]:.3f} {best}; {own[worst]:.3f} {worst})", flush=True)
    named = [dict(zip(("case", "system", "pass"), key)) for key in keys]
    return [row | {"ratio": rows[k], "noise": noise[k], "seconds": seconds[k]} for row, k in zip(named, keys)]


def bench(source: str, options: list[str]) -> dict[str, Any]:
    """What a checkout's bench wrote."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        environment = dict(os.environ, PYTHONPATH=str(Path(source).resolve()))
        subprocess.run(
            [sys.executable, "-m", "vicinal", "bench", *options, "--json", file],
            env=environment, cwd=folder, stdout=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        return dict(json.loads(file.read_text()))


def timings(found: dict[str, Any]) -> Iterator[tuple[Key, float]]:
    """Seconds of every case, system and pass that was measured; kernels' where it has them."""
    for case in found["cases"]:
        for measured in case["measurements"]:
            timing = measured.get("kernel") or measured.get("eager")
            if measured["status"] == "ok" and timing:
                yield (case["name"], measured["system"], measured["pass"]), timing["median"]


def with_fastest(run: dict[Key, float]) -> dict[Key, float]:
    """A run's times, and for each case and pass that of the backend that takes least."""
    fastest: dict[Key, float] = {}
    for (case, _, passed), time in run.items():
        key = case, FASTEST, passed
        fastest[key] = min(time, fastest.get(key, time))
    return run | fastest


def mean_of(*runs: dict[Key, float], key: Key) -> float:
    """The geometric mean of a key's times."""
    return geometric_mean([run[key] for run in runs])


if __name__ == "__main__":
    main()
