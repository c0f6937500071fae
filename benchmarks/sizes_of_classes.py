"""Times sizes of programs for tiles of classes (a bias, half precision and float32, head dims above 64), on a GPU.

    PYTHONPATH=src python3 benchmarks/sizes_of_classes.py RESULTS.json [SECONDS [processes that compile]]

Each kernel is tried with each of a few sizes, the other kernel of the backward at its default; the first of every list
is the default (`vicinal.backends.triton.shortlist`), the last is a tiling without classes, which looks biases up.
Results are held against plain torch's in float64 on one batch entry before anything is timed. Times are of whole
passes, medians with quartiles, sampled in turns from CUDA graphs. Prints a line for every problem and kernel.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.hopper import BACKEND as HOPPER
from vicinal.backends.protocol import Backend
from vicinal.backends.triton import BACKEND
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.estimate import Kernel
from vicinal.backends.triton.shortlist import Size, of_classes_sizes, shortlist
from vicinal.backends.triton.tilings import candidates, candidates_of_classes, ranked
from vicinal.bench.graphs import own_stream
from vicinal.bench.measure import Effort, Timing, time_kernels
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference


class Case(NamedTuple):
    """A square map, with a bias, with a key mask, or plain."""

    length: int
    batch: int
    heads: int
    head_dim: int
    dtype: torch.dtype = torch.float16
    window: int = 7
    kind: Literal["bias", "mask", "plain"] = "bias"

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Those that are timed."""
        return get_args(Kernel) if self.kind == "bias" else ("forward",)

    def __str__(self) -> str:
        dims = f"{self.length}x{self.length} B{self.batch} H{self.heads} D{self.head_dim}"
        return f"{dims} {self.dtype} window {self.window}, {self.kind}"


CASES = [
    Case(56, 32, 4, 128),
    Case(56, 16, 4, 256),
    Case(56, 32, 4, 80),
    Case(56, 16, 4, 192),
    Case(56, 16, 4, 128, torch.float32),
    Case(28, 16, 4, 256, torch.float32),
    Case(128, 8, 2, 128, window=13, kind="mask"),
    Case(128, 8, 2, 128, window=33, kind="mask"),
    Case(56, 32, 4, 128, kind="plain"),
    Case(128, 8, 2, 128, window=13, kind="plain"),
]
OTHERS: dict[tuple[Kernel, int, int], list[Size]] = {
    ("forward", 128, 2): [
        Size(64, 64, 4, 2, registers=240),
        Size(64, 32, 4, 2, registers=128),
        Size(64, 64, 4, 2, registers=168),
        Size(64, 32, 4, 3, registers=128),
        Size(64, 32, 4, 2, registers=96),
        Size(64, 16, 4, 2, registers=128),
        Size(32, 32, 1, 2, registers=255),
    ],
    ("query", 128, 2): [
        Size(16, 16, 1, 3, registers=255, abreast=2),
        Size(16, 16, 1, 2, registers=255, abreast=2),
        Size(16, 16, 1, 2, registers=200),
        Size(16, 16, 1, 3, registers=168),
        Size(64, 16, 4, 3, registers=168),
    ],
    ("key_value", 128, 2): [
        Size(16, 16, 1, 2, registers=255),
        Size(32, 32, 2, 3, registers=255),
        Size(64, 16, 4, 3, registers=200),
        Size(16, 64, 4, 2, registers=168),
    ],
    ("forward", 256, 2): [Size(64, 32, 4, 3, registers=255), Size(128, 32, 8, 2, registers=255)],
    ("query", 256, 2): [
        Size(16, 32, 4, 3, registers=255),
        Size(16, 32, 4, 2, registers=255, abreast=2),
        Size(16, 64, 4, 2, registers=255),
        Size(16, 32, 4, 2, registers=128),
    ],
    ("key_value", 256, 2): [
        Size(32, 32, 4, 3, registers=255),
        Size(32, 64, 4, 2, registers=255),
        Size(16, 64, 4, 2, registers=255),
        Size(16, 32, 4, 2, registers=255),
    ],
    ("forward", 128, 4): [
        Size(16, 16, 1, 3, registers=255),
        Size(16, 32, 1, 2, registers=255),
        Size(32, 16, 1, 2, registers=255),
        Size(32, 16, 4, 2, registers=255),
    ],
    ("query", 128, 4): [
        Size(16, 32, 4, 2, registers=255),
        Size(16, 16, 4, 3, registers=255, abreast=2),
        Size(16, 32, 4, 3, registers=128),
    ],
    ("key_value", 128, 4): [Size(16, 32, 4, 2, registers=255), Size(32, 16, 4, 3, registers=255)],
    ("forward", 256, 4): [Size(16, 32, 4, 3, registers=255), Size(16, 64, 4, 2, registers=255)],
    ("query", 256, 4): [Size(16, 16, 4, 3, registers=255), Size(16, 32, 4, 2, registers=255)],
    ("key_value", 256, 4): [Size(16, 16, 4, 3, registers=255), Size(16, 32, 4, 2, registers=255)],
}
ALLOWED = {torch.float16: 4e-3, torch.float32: 3e-3}  # relative errors; float32 multiplies as torch is set to
EFFORT = Effort(samples=7, seconds=0.25)


def main() -> None:
    """Compile, time, print, and write the file named."""
    path = Path(sys.argv[1])
    until = time.monotonic() + (float(sys.argv[2]) if len(sys.argv) > 2 else 600)
    processes = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    each = [(index, kernel, i) for index, case in enumerate(CASES) for kernel in case.kernels for i in range(9)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(compile_one, each, chunksize=1)
    print(f"compiled, {until - time.monotonic():.0f} s left", flush=True)
    rows: list[dict[str, Any]] = []
    for index in range(len(CASES)):
        for row in timed(index, until):
            rows.append(row)
            path.write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}, indent=1) + "\n")


def problem_of(index: int, plain: bool = False, batch: int | None = None) -> tuple[Problem, Inputs]:
    """A problem and its tensors; `plain`: with neither bias nor mask."""
    case = CASES[index]
    generator = torch.Generator("cuda").manual_seed(0)
    length, width = case.length, 2 * case.window - 1

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=case.dtype)

    query, key, value = (random(case.batch, length, length, case.heads, case.head_dim)[:batch] for _ in range(3))
    rpb = random(case.heads, width, width) if case.kind == "bias" and not plain else None
    inputs = Inputs(query, key, value, None, None, rpb)
    if case.kind == "mask" and not plain:
        inputs = inputs._replace(key_mask=random(case.batch, length, length)[:batch] < 0.7)
    neighborhood = Neighborhood.of(2, case.window).resolve((length, length))
    return Problem.of(inputs, [neighborhood], case.head_dim**-0.5), inputs


def tilings_of(problem: Problem, kernel: Kernel) -> list[Tiling]:
    """The default, others, and last one without classes."""
    widest = 128 if problem.head_dim <= 128 else 256
    sizes = [*of_classes_sizes(problem, kernel), *OTHERS[kernel, widest, problem.dtype.itemsize]]
    found = [t for size in sizes for t in candidates_of_classes(problem, kernel, [size], 1)]
    plain = candidates(problem, kernel, shortlist(problem, kernel, gpu_of(problem.device)), 1)[:1]
    return list(dict.fromkeys([ranked(problem, kernel, 1, False)[0][1], *found, *plain]))


def upstream_of(backend: Backend[Any], problem: Problem, inputs: Inputs) -> Upstream:
    """The forward's results by default, and ones from above."""
    out, lse = backend.forward(problem, backend.best(problem, "forward")[0], inputs)
    return Upstream(out, lse, torch.ones_like(out))


def passes(problem: Problem, inputs: Inputs, kernel: Kernel) -> Iterator[tuple[Tiling, Callable[[], Any]]]:
    """Whole passes with each tiling of a kernel."""
    if kernel == "forward":
        for tiling in tilings_of(problem, kernel):
            yield tiling, partial(BACKEND.forward, problem, tiling, inputs)
        return
    upstream, wanted = upstream_of(BACKEND, problem, inputs), Wanted.of(inputs)
    query, key_value = (ranked(problem, own, 1, False)[0][1] for own in ("query", "key_value"))
    for tiling in tilings_of(problem, kernel):
        config = GradientTilings(tiling, key_value) if kernel == "query" else GradientTilings(query, tiling)
        yield tiling, partial(BACKEND.backward, problem, config, inputs, upstream, wanted)


def compile_one(which: tuple[int, Kernel, int]) -> None:
    """Run one of the calls once, if there is one; one that does not compile is told of when it is timed."""
    index, kernel, i = which
    if CASES[index].head_dim in (80, 192):
        return  # the kernels of 128 and 256
    with suppress(Exception):
        calls = list(passes(*problem_of(index), kernel))
        if i < len(calls):
            calls[i][1]()
            torch.cuda.synchronize()


def timed(index: int, until: float) -> Iterator[dict[str, Any]]:
    """Rows of a problem: a kernel with a tiling, its pass's time, and that of the plain pass."""
    problem, inputs = problem_of(index)
    name = str(CASES[index])
    with own_stream(problem.device):
        for kernel in CASES[index].kernels:
            if time.monotonic() > until:
                print(f"{name}: no time for {kernel}")
                return
            calls: dict[str, Callable[[], Any]] = {}
            wrong: dict[str, str] = {}
            for tiling, call in passes(problem, inputs, kernel):
                try:
                    error = error_of(index, kernel, call())
                except Exception as failed:  # does not compile
                    wrong[str(tiling)] = str(failed)[:80]
                    continue
                if error > ALLOWED[problem.dtype]:
                    wrong[str(tiling)] = f"wrong, {error:.1e}"
                else:
                    calls[("classes, " if tiling.of_classes else "") + str(tiling)] = call
            others = {f"plain, {b.name}": plain_call(b, index, kernel) for b in plain_backends(problem)}
            found = time_kernels({**calls, **others}, "cuda", EFFORT)
            print(f"{name}, {kernel}", *wrong.items(), sep="\n  ")
            for tiling_name, found_one in found.items():
                ms = found_one if isinstance(found_one, str) else milliseconds(found_one)
                print(f"  {ms}: {tiling_name}", flush=True)
                yield {"problem": name, "kernel": kernel, "tiling": tiling_name, "ms": ms}
            yield from ({"problem": name, "kernel": kernel, "tiling": t, "ms": why} for t, why in wrong.items())


def milliseconds(timing: Timing) -> list[float]:
    """Median and quartiles."""
    return [round(1e3 * seconds, 4) for seconds in (timing.median, timing.lower, timing.upper)]


def plain_backends(problem: Problem) -> list[Backend[Any]]:
    """Those that take it without bias or mask."""
    plain = replace(problem, has_rpb=False, has_key_mask=False)
    return [b for b in (BACKEND, HOPPER) if b.unsupported(plain) is None]


def plain_call(backend: Backend[Any], index: int, kernel: Kernel) -> Callable[[], Any]:
    """The same pass without bias or mask, by a backend."""
    problem, inputs = problem_of(index, plain=True)
    if kernel == "forward":
        return partial(backend.forward, problem, backend.best(problem, "forward")[0], inputs)
    upstream, config = upstream_of(backend, problem, inputs), backend.best(problem, "backward")[0]
    return partial(backend.backward, problem, config, inputs, upstream, Wanted.of(inputs))


_expected: dict[int, list[torch.Tensor]] = {}


def error_of(index: int, kernel: Kernel, found: Any) -> float:
    """Against float64, of the first batch entry; not of the bias, whose gradient sums over all."""
    if index not in _expected:
        problem, inputs = problem_of(index, batch=1)
        numbers = (None if t is None else t.double().requires_grad_() for t in inputs.numbers)
        leaves = Inputs(*numbers)._replace(key_mask=inputs.key_mask)  # type: ignore[arg-type]
        out, _ = reference(leaves, list(problem.neighborhoods), problem.scale)
        grads = torch.autograd.grad(out, leaves[:3], torch.ones_like(out))
        _expected.clear()
        _expected[index] = [t.detach() for t in (out, *grads)]
    own = {"forward": (found[0],), "query": (found[0],), "key_value": found[1:3]}[kernel]
    expected = {"forward": (0,), "query": (1,), "key_value": (2, 3)}[kernel]
    return max(float((t[:1] - _expected[index][i]).norm() / _expected[index][i].norm()) for t, i in zip(own, expected))


if __name__ == "__main__":
    main()
