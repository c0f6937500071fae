"""Checked timing: every system runs the same tensors, is held against the truth, and only then timed, in turns.

`measure` does a case with several systems. `time_calls` times any callables the same way, for other benchmarks.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from statistics import quantiles
from typing import Literal

import torch
from torch import Tensor

from vicinal.bench.cases import Case, Pass, random_inputs, useful_flops
from vicinal.bench.graphs import captured, own_stream
from vicinal.bench.peers import System, both, without_grad
from vicinal.bench.truth import Truth, truth
from vicinal.dispatch import plan
from vicinal.problem import Inputs, Problem

HOST_BOUND_SECONDS = 0.05  # calls that take longer hide their host time: eager time is kernel time
WIDEST_QUARTILES = 0.3  # of the median: figures with wider ones are marked
IDLE_SECONDS = 0.005  # before a CPU sample: idle threads of the last system's thread pool spin for some milliseconds

Status = Literal["ok", "skipped", "failed", "wrong"]
Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        samples: timed samples per callable, fewer (at least 3) where `seconds` run out.
        seconds: time for all samples of one callable.
        sample_seconds: a sample repeats its call until it lasts about this long.
        prepare_seconds: limit for preparing and first running one system (compilation), on the main thread.
    """

    samples: int = 15
    seconds: float = 10.0
    sample_seconds: float = 0.005
    prepare_seconds: float = 300.0


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and quartiles over `samples` samples of `calls` calls each."""

    median: float
    lower: float
    upper: float
    samples: int
    calls: int

    @property
    def steady(self) -> bool:
        """Whether quartiles are close enough to compare: wider, something else ran on the machine."""
        return self.upper - self.lower <= WIDEST_QUARTILES * self.median


@dataclass(frozen=True)
class Measurement:
    """One system on one pass of one case.

    Attributes:
        system: its name; `computes` tells whether it computes the case or self attention on the same tensors.
        status: "ok"; or "skipped" (cannot run it), "failed" (an error), "wrong" (bad result), with the `reason`.
        eager: seconds per call as a user makes it. On a GPU also `kernel`: replayed from a CUDA graph, for calls that
            take less than 50 ms (longer ones hide their host time).
        errors, tolerances: relative root mean square errors against the truth, by tensor.
        sampled: whether the truth is a sample of rows.
        flops: useful FLOPs of the pass, of what the system computes.
        note: the tiling, for our own backends.
    """

    system: str
    computes: str
    passed: Pass
    status: Status
    reason: str | None = None
    eager: Timing | None = None
    kernel: Timing | None = None
    errors: dict[str, float] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=dict)
    sampled: bool = False
    flops: int = 0
    note: str = ""

    @property
    def best(self) -> Timing | None:
        """Kernel time where there is one, else eager time: what ratios are made of."""
        return self.eager if self.kernel is None else self.kernel


def measure(
    case: Case,
    systems: Sequence[System],
    device: torch.device | str,
    effort: Effort = Effort(),
    progress: Callable[[str], None] = lambda what: None,
) -> list[Measurement]:
    """Check, then time `systems` on `case`, one measurement per pass and system.

    A system that cannot run, raises, or returns a wrong result is reported so and not timed.
    """
    problem = case.problem(device)
    with own_stream(problem.device):
        inputs = random_inputs(problem)
        generator = torch.Generator(problem.device).manual_seed(1)
        shape = (*inputs.query.shape[:-1], problem.value_dim)
        grad = torch.randn(shape, generator=generator, dtype=torch.float32, device=problem.device).to(problem.dtype)
        truths: dict[str, Truth | str] = {}
        ready: list[_Ready] = []
        finished: list[Measurement] = []
        for system in systems:
            target = problem if system.computes == "neighborhood" else case.self_attention().problem(device)
            reason = system.unsupported(problem)
            if reason is not None:
                finished += [Measurement(system.name, system.computes, p, "skipped", reason) for p in case.passes]
                continue
            if system.computes not in truths:
                progress(f"{case.name}: expected values ({system.computes})")
                truths[system.computes] = _truth_or_why(target, inputs, grad, case.passes != ("forward",))
            expected = truths[system.computes]
            if isinstance(expected, str):
                why = f"no expected values: {expected}"
                finished += [Measurement(system.name, system.computes, p, "failed", why) for p in case.passes]
                continue
            progress(f"{case.name}: {system.name}")
            run = _Ready(system, target, expected)
            run.prepare(case, problem, inputs, grad, effort)
            ready.append(run)
        timed = _time_all(case, ready, problem.device, effort, progress)
    results = finished + [m for run in ready for m in run.measurements(case, timed)]
    order = {system.name: i for i, system in enumerate(systems)}
    return sorted(results, key=lambda m: (case.passes.index(m.passed), order[m.system]))


def time_calls(calls: Calls, device: torch.device | str, effort: Effort = Effort()) -> dict[str, Timing]:
    """Seconds per call of each callable, sampled in turns after a warm-up.

    CPU: `perf_counter`. CUDA: events around the calls, so host time counts where it is the longer.
    """
    sample = _sample_cuda if torch.device(device).type == "cuda" else sample_cpu
    counts: dict[str, int] = {}
    spent: dict[str, float] = {}
    for name, call in calls.items():
        single = sample(call, 1)
        if single < effort.seconds / 10:  # else it is long enough to need neither warm-up nor repeats
            single = min(sample(call, 1), sample(call, 1))
        counts[name] = min(1000, max(1, ceil(effort.sample_seconds / max(single, 1e-7))))
        spent[name] = 0.0
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(effort.samples):
        for name, call in calls.items():
            if len(taken[name]) >= 3 and spent[name] > effort.seconds:
                continue
            seconds = sample(call, counts[name])
            spent[name] += seconds
            taken[name].append(seconds / counts[name])
    return {name: timing_of(taken[name], counts[name]) for name in calls}


def time_kernels(calls: Calls, device: torch.device | str, effort: Effort = Effort()) -> dict[str, Timing | str]:
    """Seconds per call replayed from a CUDA graph of several calls, without host time; or why there is no graph.

    Call it on a stream of its own, the one that any forward pass of the calls ran on. Data that fits the L2 cache
    stays in it from call to call.
    """
    graphs: dict[str, Callable[[], object]] = {}
    counts: dict[str, int] = {}
    failed: dict[str, Timing | str] = {}
    for name, call in calls.items():
        single = min(_sample_cuda(call, 1) for _ in range(3))
        counts[name] = min(20, max(1, ceil(effort.sample_seconds / max(single, 1e-7))))
        try:
            graphs[name] = captured(call, counts[name], torch.device(device)).replay
        except Exception as error:
            failed[name] = words(error)
    timings = time_calls(graphs, device, effort)
    per_call = {name: _scaled(t, counts[name]) for name, t in timings.items()}
    return {name: failed[name] if name in failed else per_call[name] for name in calls}


def words(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class _Ready:
    """A system prepared for a case: checked, with a callable for each pass that works."""

    def __init__(self, system: System, target: Problem, expected: Truth) -> None:
        self.system = system
        self.target = target
        self.expected = expected
        self.calls: dict[Pass, Callable[[], object]] = {}
        self.outcome: dict[Pass, tuple[Status, str | None]] = {}
        self.errors: dict[str, float] = {}

    def prepare(self, case: Case, problem: Problem, inputs: Inputs, grad: Tensor, effort: Effort) -> None:
        """Make the callables; on any failure say so in `outcome`."""
        leaves = [self.system.arranged(t, problem) for t in inputs[:3]]
        upstream = self.system.arranged(grad, problem)
        try:
            with time_limit(effort.prepare_seconds):
                attend = self.system.prepare(problem)
                forward = partial(without_grad, attend, leaves)
                self._check({"output": forward()}, grad)
            self._offer(case, "forward", forward)
        except Exception as error:
            self._give_up(case.passes, error)
            return
        backward_passes = [p for p in case.passes if p != "forward"]
        if not backward_passes:
            return
        reason = self.system.no_backward(problem)
        if reason is not None:
            self.outcome.update(dict.fromkeys(backward_passes, ("skipped", reason)))
            return
        try:
            leaves = [t.detach().requires_grad_() for t in leaves]
            with time_limit(effort.prepare_seconds):
                output = attend(*leaves)
                backward = partial(torch.autograd.grad, output, leaves, upstream, retain_graph=True)
                self._check(dict(zip(("dq", "dk", "dv"), backward())), grad)
            self._offer(case, "backward", backward)
            self._offer(case, "forward+backward", partial(both, attend, leaves, upstream))
        except Exception as error:
            self._give_up(backward_passes, error)

    def works(self, p: Pass) -> bool:
        """Whether the pass runs; if it turns out not to (memory may be short by now), `outcome` says so."""
        if p not in self.calls:
            return False
        try:
            self.calls[p]()
        except Exception as error:
            self._give_up([p], error)
            return False
        return True

    def measurements(self, case: Case, timed: Mapping[tuple[str, Pass], _Timed]) -> list[Measurement]:
        results = []
        for p in case.passes:
            status, reason = self.outcome[p]
            timing = timed.get((self.system.name, p), _Timed())
            results.append(
                Measurement(
                    self.system.name,
                    self.system.computes,
                    p,
                    status,
                    timing.reason if reason is None else reason,
                    timing.eager,
                    timing.kernel,
                    dict(self.errors),
                    dict(self.expected.tolerances),
                    self.expected.sampled,
                    useful_flops(self.target, p),
                    self._note(p) if status == "ok" else "",
                )
            )
        return results

    def _offer(self, case: Case, p: Pass, call: Callable[[], object]) -> None:
        if p in case.passes:
            self.calls[p] = call
            self.outcome[p] = ("ok", None)

    def _check(self, results: Mapping[str, Tensor], like: Tensor) -> None:
        errors = self.expected.errors(self.system.heads_last(results, self.target))
        self.errors.update(errors)
        faults = self.expected.faults(errors)
        if faults:
            raise WrongResult("; ".join(faults))

    def _give_up(self, passes: Sequence[Pass], error: Exception) -> None:
        wrong = isinstance(error, WrongResult)
        outcome: tuple[Status, str] = ("wrong", str(error)) if wrong else ("failed", words(error))
        self.outcome.update(dict.fromkeys(passes, outcome))

    def _note(self, p: Pass) -> str:
        if not self.system.ours:
            return ""
        made = plan(self.target, self.system.name.split()[-1])
        return str(made.forward if p == "forward" else made.backward)


class WrongResult(Exception):
    """A result differs from the truth by more than its tolerance."""


@dataclass(frozen=True)
class _Timed:
    eager: Timing | None = None
    kernel: Timing | None = None
    reason: str | None = None


def _time_all(
    case: Case, ready: Sequence[_Ready], device: torch.device, effort: Effort, progress: Callable[[str], None]
) -> dict[tuple[str, Pass], _Timed]:
    timed: dict[tuple[str, Pass], _Timed] = {}
    for p in case.passes:
        progress(f"{case.name}: timing {p}")
        calls = {run.system.name: run.calls[p] for run in ready if run.works(p)}
        eager = time_calls(calls, device, effort)
        short = {name: call for name, call in calls.items() if eager[name].median < HOST_BOUND_SECONDS}
        kernels = time_kernels(short, device, effort) if device.type == "cuda" else {}
        for name in calls:
            kernel = kernels.get(name)
            if isinstance(kernel, str):
                timed[name, p] = _Timed(eager[name], None, f"no CUDA graph: {kernel}")
            else:
                timed[name, p] = _Timed(eager[name], kernel)
    return timed


def _truth_or_why(problem: Problem, inputs: Inputs, grad: Tensor, gradients: bool) -> Truth | str:
    try:
        return truth(problem, inputs, grad, gradients)
    except Exception as error:
        return words(error)


def sample_cpu(call: Callable[[], object], count: int) -> float:
    """Seconds that `count` calls take."""
    time.sleep(IDLE_SECONDS)
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


def _sample_cuda(call: Callable[[], object], count: int) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def timing_of(samples: Sequence[float], calls: int) -> Timing:
    """Of samples of seconds per call, each over `calls` calls."""
    lower, median, upper = quantiles(samples, n=4, method="inclusive")
    return Timing(median, lower, upper, len(samples), calls)


def _scaled(timing: Timing, calls: int) -> Timing:
    return Timing(
        timing.median / calls, timing.lower / calls, timing.upper / calls, timing.samples, timing.calls * calls
    )


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after `seconds`, where signals work (the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise TimeoutError(f"took longer than {seconds:g} s to prepare")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
