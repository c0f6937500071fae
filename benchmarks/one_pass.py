"""Times the Hopper backward in one pass against that in two, on a Hopper GPU.

    PYTHONPATH=src python3 benchmarks/one_pass.py [results.jsonl]

For each problem of the `gpu` suite that the one-pass kernel takes: the first tiling of two passes, the first three of
one. Gradients of both kinds are compared before they are timed. One line per problem, as JSON.
"""

from __future__ import annotations

import json
import sys

import torch
from triton.testing import do_bench

from vicinal.backends.hopper import BACKEND
from vicinal.backends.hopper.config import BackwardConfig
from vicinal.bench.cases import SUITES, random_inputs
from vicinal.machine import machine, versions
from vicinal.problem import Inputs, Problem, Upstream, Wanted

ALLOWED = 2e-3  # relative difference of gradients: both are rounded to 16 bits


def main() -> None:
    """Time, print, and write the file named, if any."""
    device = torch.device("cuda")
    lines = [json.dumps({"machine": machine(device), "versions": versions(), "command": " ".join(sys.argv)})]
    for case in SUITES["gpu"].cases:
        problem = case.problem(device)
        if BACKEND.unsupported(problem) is None and any(c.one_pass for c in BACKEND.configs(problem, "backward")):
            lines.append(json.dumps({"problem": case.name, "tilings": timings(problem)}))
            print(lines[-1], flush=True)
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as file:
            file.write("\n".join(lines) + "\n")


def timings(problem: Problem) -> list[dict[str, object]]:
    """Of each tiling tried: whether it is of one pass, milliseconds (median) and estimate."""
    inputs = random_inputs(problem)
    output, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    upstream = Upstream(output, lse, torch.randn_like(output))
    configs = BACKEND.configs(problem, "backward")
    tried = [*[c for c in configs if not c.one_pass][:1], *[c for c in configs if c.one_pass][:3]]

    def run(config: BackwardConfig) -> Inputs:
        return BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))

    truth = run(tried[0])
    rows: list[dict[str, object]] = []
    for config in tried:
        for ours, theirs in zip(run(config)[:3], truth[:3]):
            assert float((ours.double() - theirs.double()).norm() / theirs.double().norm()) < ALLOWED, config
        took = do_bench(lambda config=config: run(config), warmup=20, rep=100, return_mode="median")
        estimate = 1e3 * BACKEND.seconds(problem, "backward", config)
        rows.append({"tiling": str(config), "one_pass": config.one_pass, "ms": took, "estimate_ms": estimate})
    return rows


if __name__ == "__main__":
    main()
