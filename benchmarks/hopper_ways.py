"""Times the ways in which a problem can run on a Hopper GPU against each other, forward and backward.

    PYTHONPATH=src python3 benchmarks/hopper_ways.py RESULTS.jsonl [part of a problem's name]
    PYTHONPATH=src python3 benchmarks/hopper_ways.py --compile I N

Ways: Hopper's kernels with the backward in two passes or in one, and Triton's. Problems: those of the `gpu` suite, and
some with what the suite lacks (head dims, additional keys, scales, dilations per head). What a way gives is compared
with the first before it is timed. One line of JSON per problem, written as it comes. The second form only compiles
every N-th problem's kernels: for several processes side by side, before the first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from triton.testing import do_bench

from vicinal.backends import hopper, triton
from vicinal.bench.cases import SUITES, random_inputs
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.machine import machine, versions
from vicinal.problem import Problem, Upstream, Wanted

ALLOWED = 2e-2  # relative difference (norms) of results: all are rounded to 16 bits, gradients from rounded scores
DIMS = (32, 48, 64, 80, 96, 128, 160, 192, 256)


def main() -> None:
    """Time, print, and write."""
    target, *part = sys.argv[1:]
    if target == "--compile":
        compile_only(*map(int, part))
        return
    with Path(target).open("w") as file:
        about = {"machine": machine(torch.device("cuda")), "versions": versions(), "command": " ".join(sys.argv)}
        file.write(json.dumps(about) + "\n")
        for name, problem in problems():
            if not part or part[0] in name:
                line = json.dumps({"problem": name, "ways": ways(problem)})
                print(line, flush=True)
                file.write(line + "\n")
                file.flush()


def compile_only(first: int, step: int) -> None:
    """Compile what every `step`-th problem takes."""
    for _, problem in list(problems())[first::step]:
        inputs = random_inputs(problem)
        for _, backend, config in chosen(problem):
            forward = backend.forward_kernels(problem, backend.configs(problem, "forward")[0], inputs)
            for job in (*forward, *backend.backward_kernels(problem, config, inputs, Wanted.of(inputs))):
                job()


def problems() -> Iterator[tuple[str, Problem]]:
    """Name and problem."""
    weather, flux = Neighborhood.of(2, 31), Neighborhood.of(2, 40)
    image, cube = Neighborhood.of(2, 33), Neighborhood.of(3, (6, 13, 13))
    halves = [Neighborhood.of(2, 13, 1, 1 if head < 4 else 4) for head in range(8)]
    for dim in (48, 64):
        yield f"weather D{dim}", of((128, 160), 16, dim, [weather])
    for count in (0, 77, 512):
        yield f"128x128 H24 D128 window 40 and {count} keys", of((128, 128), 24, 128, [flux], additional=count)
    for dim in DIMS:
        yield f"128x128 H8 D{dim} window 33", of((128, 128), 8, dim, [image])
    yield "128x128 H8 D64/128 window 33", of((128, 128), 8, 64, [image], value_dim=128)
    yield "128x128 H8/2 D128 window 33 and 256 keys", of((128, 128), 8, 128, [image], additional=256, kv_heads=2)
    for dim in (48, 64):
        yield f"16x48x48 H8 D{dim} window 6x13x13", of((16, 48, 48), 8, dim, [cube])
    yield "weather D64, scale -0.1", of((128, 160), 16, 64, [weather], scale=-0.1)
    yield "128x128 H8 D64 window 13, half of the heads dilated", of((128, 128), 8, 64, halves)
    for case in SUITES["gpu"].cases:
        yield case.name, case.problem("cuda")


def of(lengths: tuple[int, ...], heads: int, dim: int, each: list[Neighborhood], **others: Any) -> Problem:
    """A problem in bfloat16."""
    usual = {"batch": 1, "kv_heads": heads, "value_dim": dim, "scale": dim**-0.5}
    own = tuple(n.resolve(lengths) for n in each)
    device = torch.device("cuda", 0)
    return Problem(
        lengths=lengths, heads=heads, head_dim=dim, dtype=torch.bfloat16, device=device, neighborhoods=own,
        **usual | others,
    )  # fmt: skip


def ways(problem: Problem) -> dict[str, dict[str, object]]:
    """Of each way that takes the problem: milliseconds (medians), estimates, tilings."""
    inputs = random_inputs(problem)
    found: dict[str, dict[str, object]] = {}
    truth: list[torch.Tensor] = []
    for way, backend, config in chosen(problem):
        own = backend.configs(problem, "forward")[0]
        output, lse = backend.forward(problem, own, inputs)
        torch.manual_seed(0)  # the same for all ways
        upstream = Upstream(output, lse, torch.randn_like(output))

        def backward(backend: Any = backend, config: Any = config, upstream: Upstream = upstream) -> Any:
            return backend.backward(problem, config, inputs, upstream, Wanted.of(inputs))

        results = [output, lse, *(g for g in backward() if g is not None)]
        truth = truth or results
        worst = max(difference(ours, theirs) for ours, theirs in zip(results, truth, strict=True))
        assert worst < ALLOWED, (way, worst)
        forward_ms = do_bench(lambda b=backend, c=own: b.forward(problem, c, inputs), 10, 50, return_mode="median")
        found[way] = {
            "forward_ms": forward_ms,
            "backward_ms": do_bench(backward, 10, 50, return_mode="median"),
            "forward_estimate_ms": 1e3 * backend.seconds(problem, "forward", own),
            "backward_estimate_ms": 1e3 * backend.seconds(problem, "backward", config),
            "forward_tiling": str(own),
            "backward_tiling": str(config),
        }
    return found


def chosen(problem: Problem) -> Iterator[tuple[str, Any, Any]]:
    """Way, backend, and its first configuration of the backward."""
    if hopper.BACKEND.unsupported(problem) is None:
        configs = hopper.BACKEND.configs(problem, "backward")
        for way, one_pass in (("two passes", False), ("one pass", True)):
            for config in [c for c in configs if c.one_pass == one_pass][:1]:
                yield way, hopper.BACKEND, config
    if triton.BACKEND.unsupported(problem) is None:
        yield "Triton", triton.BACKEND, triton.BACKEND.configs(problem, "backward")[0]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative to the norm of theirs."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-30))


if __name__ == "__main__":
    main()
