"""`precompile`: compiles the kernels of problems before they are met, for the device here or for a GPU that is not.

Triton keeps what is compiled on disk, and so does numba: later processes find it there.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import get_args

import torch

from vicinal import dispatch
from vicinal.backends.gpu import hardware
from vicinal.backends.protocol import Direction
from vicinal.checks import check_directions, check_problems
from vicinal.compiling import WORKERS, Job
from vicinal.problem import Problem, Wanted, stand_ins
from vicinal.tuning.progress import progress

GPU_BACKENDS = ("hopper", "triton")
PROCESSORS = {"sm_90": 132}  # of the cards that the estimate was made for; others' are not known here


def precompile(
    problems: Problem | Iterable[Problem],
    *,
    target: str | None = None,
    processors: int | None = None,
    directions: Sequence[Direction] = get_args(Direction),
) -> int:
    """Compile the kernels that problems run with, forward and backward, all gradients, and keep them on disk.

    Tensors are taken to be contiguous. Kernels are shared by problems, so a few of a family, which differ in lengths
    and windows, fill the caches for most others.

    Args:
        problems: one or several `vicinal.problem.Problem`.
        target: the architecture of a GPU that need not be here ("sm_90", "gfx942"); None for the problems' own devices.
            Kernels are compiled in a process of their own then, and their choice is by the estimate.
        processors: multiprocessors of the target, which the choice depends on; by default 132 for "sm_90".
        directions: which passes.

    Returns:
        How many kernels were compiled, or found on disk.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: no backend can run a problem, or the target or a direction is unknown.
        RuntimeError: a kernel cannot be compiled for the target.
    """
    given, directions = check_problems(problems), check_directions(directions)
    if target is None:
        return _run([job for p in given for job in _jobs(dispatch.plan(p), directions)])
    gpu = gpu_named(target, processors)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "vicinal.tuning.precompile"],
        input=pickle.dumps((given, directions, gpu)),
        capture_output=True,
        env=environment,
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing was said"]
        raise RuntimeError(f"compiling for {target} failed: {lines[-1]}")
    return int(done.stdout.split()[-1])


def gpu_named(target: str, processors: int | None) -> hardware.Gpu:
    """The GPU that `precompile` compiles for.

    Raises:
        ValueError: the target is not known, or it is not known how many processors it has.
    """
    if target not in hardware.ARCHITECTURES:
        raise ValueError(f"target must be one of {', '.join(hardware.ARCHITECTURES)}, got {target!r}")
    if processors is None and target not in PROCESSORS:
        raise ValueError(f"processors must be given for target {target!r}")
    count = PROCESSORS[target] if processors is None else processors
    if count < 1:
        raise ValueError(f"processors must be at least 1, got {processors}")
    return hardware.Gpu(hardware.ARCHITECTURES[target], count)


def _jobs(plan: dispatch.Plan, directions: Sequence[Direction]) -> list[Job]:
    """Compilations of a plan's passes, which may run in any thread."""
    inputs = stand_ins(plan.problem)
    wanted: dict[Direction, Wanted | None] = {"forward": None, "backward": Wanted.of(inputs)}
    return [job for direction in directions for job in dispatch.compilations(plan, inputs, wanted[direction])]


def _run(jobs: Sequence[Job]) -> int:
    """Run them in threads; the first error is raised."""
    with progress("compiling", len(jobs)) as advance, ThreadPoolExecutor(WORKERS) as pool:
        running = [pool.submit(job) for job in jobs]
        try:
            for i, each in enumerate(running, 1):
                each.result()
                advance(f"{i} of {len(jobs)}")
        finally:
            pool.shutdown(cancel_futures=True)
    return len(jobs)


# For a GPU that is not here ---------------------------------------------------------------------------------------


def _stand_for(gpu: hardware.Gpu) -> None:
    """From now on the CPU stands for `gpu`, for plans and for Triton, which can launch nothing any more."""
    import triton

    from vicinal.backends.gpu.absent import AbsentDriver, target_of

    if gpu.architecture.name.startswith("gfx"):
        torch.version.hip = "not here"  # as kernels are planned where torch is built for AMD's
    hardware.named = gpu
    triton.runtime.driver.set_active(AbsentDriver(target_of(gpu.architecture)))


def _compile_for(problems: Sequence[Problem], directions: Sequence[Direction], gpu: hardware.Gpu) -> int:
    """What the process of its own does."""
    jobs: list[Job] = []
    _stand_for(gpu)
    for problem in (replace(p, device=torch.device("cpu")) for p in problems):
        reasons = {name: dispatch.unsupported(name, problem) for name in GPU_BACKENDS}
        able = tuple(dispatch.backend(name) for name, reason in reasons.items() if reason is None)
        if not able:
            raise ValueError(f"no GPU backend can run {problem.in_words()}: {reasons}")
        jobs += _jobs(dispatch.Plan(problem, able), directions)
    return _run(jobs)


if __name__ == "__main__":
    print(_compile_for(*pickle.load(sys.stdin.buffer)))
