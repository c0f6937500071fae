"""The processes of the paper's sweep: some compile kernels ahead, some measure.

Problems are measured in batches, one for each measuring process: all prepare theirs at once, then they time them one
after the other, so that a timing has the GPU to itself. A process that crashes, hangs or breaks its CUDA context is
replaced, and costs one problem. Where memory ran out, all give back what they keep, and the problem is run again with
none beside it. What torch.compile takes many seconds for is prepared by processes of its own while
other problems run, and timed last; then the problems that share what it compiled.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from vicinal import dispatch
from vicinal.bench.cases import Case, random_inputs
from vicinal.bench.graphs import give_back
from vicinal.bench.paper.measure import (
    EFFORT,
    Ready,
    empty_line,
    first_run,
    out_of_memory,
    prepare,
    usable,
    warm_up,
)
from vicinal.bench.paper.systems import systems
from vicinal.bench.process import Server
from vicinal.bench.roofline import measure_limits
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.machine import machine, versions
from vicinal.problem import Inputs, Upstream, Wanted, dtype_name

Item = tuple[Case, bool]  # a problem; whether also the systems under torch.compile
END_SECONDS = 5.0  # for processes to end by themselves


# Compiling --------------------------------------------------------------------------------------------------------


class Compilers:
    """Processes that put the problems' kernels into Triton's cache on disk, in order; they run no kernel of ours."""

    def __init__(self, cases: Sequence[Case], device: torch.device, processes: int) -> None:
        self.made: dict[Case, Any] = {}
        self.pool = None
        if processes > 0 and device.type == "cuda":
            self.pool = multiprocessing.get_context("spawn").Pool(processes, _only_compile, (device,))
            self.made = {case: self.pool.apply_async(_compile, (device, case)) for case in cases}

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.terminate()

    def wait(self, case: Case, seconds: float = 60.0) -> None:
        """Until a problem's kernels are compiled; what takes longer than `seconds` is not waited for, nor the rest."""
        if case in self.made:
            self.made[case].wait(seconds)
            if not self.made[case].ready():
                self.made = {}


def _only_compile(device: torch.device) -> None:
    """Make launching a Triton kernel only compile it and its launcher, in this process."""
    from triton.compiler import CompiledKernel
    from triton.runtime.jit import JITFunction

    from vicinal.backends.hopper.kernels import compat

    def loaded(kernel: Any, grid: Any) -> Any:
        kernel._init_handles()
        return lambda *args, **options: None

    torch.cuda.set_device(device)
    JITFunction.__getitem__ = lambda self, grid: partial(self.warmup, grid=grid)
    CompiledKernel.__getitem__ = loaded
    compat.launch_function = lambda kernel, grid, device: (lambda i, t: (t,), loaded(kernel, grid))


_unfused_compiled: set[tuple[object, ...]] = set()


def _compile(device: torch.device, case: Case) -> None:
    """Launch what a problem would. What fails here will fail, and be recorded, where it is measured."""
    gradients = case.passes != ("forward",)
    with suppress(Exception):
        problem = case.problem(device)
        inputs = Inputs(*(torch.empty(t, dtype=problem.dtype, device=device) for t in _shapes(case)))
        plan = dispatch.plan(problem)
        output, lse = plan.backend.forward(problem, plan.forward, inputs)
        if gradients:
            plan.gradients.backward(
                problem, plan.backward, inputs, Upstream(output, lse, output, None), Wanted.of(inputs)
            )
    rank, dilation = len(case.lengths), 2 if max(case.neighborhood.dilation) > 1 else 1
    kind = (rank, case.dtype, case.head_dim, dilation)  # what the unfused kernels are compiled for
    if kind in _unfused_compiled:
        return
    _unfused_compiled.add(kind)
    small = Neighborhood.of(rank, 3, 1, dilation)
    case = Case("", (8,) * rank, small, 2, case.head_dim, 2, dtype=case.dtype, passes=case.passes)
    problem = case.problem(device)
    inputs = random_inputs(problem)
    for system in systems(device)[:2]:
        with suppress(Exception):
            first_run(system, case, problem, inputs, torch.ones_like(inputs.query))


def _shapes(case: Case) -> list[tuple[int, ...]]:
    return [(case.batch, *case.lengths, case.heads, case.head_dim)] * 3


# Measuring --------------------------------------------------------------------------------------------------------


class Workers:
    """The processes that measure, on one device."""

    def __init__(self, device: torch.device, count: int) -> None:
        self.each = [_Worker(device) for _ in range(count)]

    def __enter__(self) -> Workers:
        for worker in self.each:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.each:
            worker.release()
        deadline = time.monotonic() + END_SECONDS
        for worker in self.each:
            worker.stop(max(0.0, deadline - time.monotonic()))

    def header(self, dtypes: tuple[torch.dtype, ...], seconds: float = 120.0) -> dict[str, Any]:
        """Date, machine, versions and, on CUDA, measured limits, for the file; once all processes are warm.

        Raises:
            RuntimeError: a process died or took longer.
        """
        for worker in self.each:
            worker.send("warm up")
        for worker in self.each:
            worker.receive(seconds)
        self.each[0].send("header", dtypes)
        return self.each[0].receive(seconds)

    def measure(self, batch: Sequence[Item], seconds: float) -> list[dict[str, Any]]:
        """The objects of at most as many problems as there are processes; a problem has `seconds` for each step."""
        return self.finish(self.begin(batch), seconds)

    def begin(self, batch: Sequence[Item]) -> list[Attempt]:
        """Start preparing at most as many problems as there are processes; what `finish` takes."""
        begun = [Attempt(worker, *item) for worker, item in zip(self.each, batch)]
        for attempt in begun:
            attempt.prepare()
        return begun

    def finish(self, begun: Sequence[Attempt], seconds: float) -> list[dict[str, Any]]:
        """Wait until all are prepared, then time one after the other: their objects.

        Where memory ran out it may be others who had it: such a problem is run again alone, once.
        """
        deadline = time.monotonic() + seconds
        for attempt in begun:
            attempt.wait(max(0.0, deadline - time.monotonic()))
        for attempt in begun:
            if not attempt.short:
                attempt.time(seconds)
        for attempt in begun:
            if attempt.short:
                for worker in self.each:
                    worker.give_back(seconds)
                attempt.prepare()
                attempt.wait(seconds)
                attempt.time(seconds)
        return [attempt.line for attempt in begun]


@dataclass
class Attempt:
    """A problem that a process prepares, then times: its object for the file, and whether memory was short."""

    worker: _Worker
    case: Case
    compiled: bool

    def prepare(self) -> None:
        """Ask for it, from the beginning."""
        self.line, self.short = empty_line(self.case, self.case.problem("cpu")), False
        self.worker.attempt(self.line, "prepare", self.case, self.compiled)

    def wait(self, seconds: float) -> None:
        """Until it is prepared."""
        self.short = bool(self.worker.answer(self.line, seconds))

    def time(self, seconds: float) -> None:
        """Time it, unless something went wrong."""
        if self.line["error"] is None:
            self.worker.attempt(self.line, "time")
            done = self.worker.answer(self.line, seconds)
            if done is not None:
                self.line.update(done[0])
                self.short = out_of_memory(self.line["error"])
                if not done[1]:
                    self.worker.stop()


class _Worker(Server):
    """One measuring process."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(_serve, device)

    def attempt(self, line: dict[str, Any], *request: object) -> None:
        """Send, or say in `line` what went wrong."""
        try:
            self.send(*request)
        except OSError as error:
            line["error"] = self.died(error)

    def answer(self, line: dict[str, Any], seconds: float) -> Any:
        """Receive, or say in `line` what went wrong."""
        if line["error"] is not None:
            return None
        try:
            return self.receive(seconds)
        except RuntimeError as error:
            line["error"] = str(error)
            return None

    def give_back(self, seconds: float) -> None:
        """Let it forget what it has prepared and return its memory to the device; one that cannot is stopped."""
        if self.process is not None:
            line: dict[str, Any] = {"error": None}
            self.attempt(line, "give back")
            self.answer(line, seconds)


def _serve(connection: Connection, device: torch.device) -> None:
    """A measuring process: answers requests until the connection is closed."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ready: Ready | None = None
    while True:
        try:
            what, *arguments = connection.recv()
        except EOFError:
            return
        if what == "header":
            answer: object = _header(device, *arguments)
        elif what == "warm up":
            warm_up(device)
            answer = None
        elif what == "prepare":
            if arguments[1]:
                _compile_alone()
            ready = prepare(arguments[0], arguments[1], device)
            if arguments[1] and device.type == "cuda":
                torch.cuda.empty_cache()  # it may be long until this is timed
            answer = ready.short
        elif what == "give back":
            ready = None
            give_back(device)
            answer = None
        else:
            assert ready is not None
            line, ready = ready.time(device), None
            answer = (line, usable(device))
        connection.send(answer)


def _compile_alone() -> None:
    """Let torch.compile start no processes: each of ours would have as many as there are processors."""
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1


def _header(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> dict[str, Any]:
    limited = dtypes if device.type == "cuda" else ()  # a CPU's would take longer than its problems
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(device),
        "versions": versions(),
        "effort": asdict(EFFORT),
        "limits": {dtype_name(dtype): asdict(measure_limits(device, dtype)) for dtype in limited},
    }
