"""One problem of the paper's sweep: every system is prepared and checked, then all are timed in turns.

Preparing (expected values, first runs, checks, capture into CUDA graphs) may share the GPU with other processes;
timing must have it alone. So they are two steps: `prepare`, then `Ready.time`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor

from vicinal.bench.cases import Case, Pass, random_inputs
from vicinal.bench.graphs import captured, give_back, own_stream
from vicinal.bench.measure import Effort, time_calls, words
from vicinal.bench.paper.systems import COMPILING, STORING_WEIGHTS, fused_plan, systems
from vicinal.bench.peers import System, both, without_grad
from vicinal.bench.truth import QUICK, Truth, truth
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, dtype_name

EFFORT = Effort(samples=5, seconds=0.03, sample_seconds=3e-4)
LONGEST_CAPTURED = 0.02  # seconds; calls that take longer hide their host time: eager time is kernel time
HOST_HIDDEN = 0.005  # a call that was not captured and yet is shorter than this has no kernel time
GRAPH_SECONDS, GRAPH_CALLS = 0.003, 10  # of eager calls in a graph, about; and at most
KEPT_BYTES = 2 << 30  # of memory that a process keeps from problem to problem, of freed tensors and of graphs

CallsByPass = dict[Pass, dict[str, Callable[[], object]]]


@dataclass
class Ready:
    """A problem whose systems have been checked.

    Attributes:
        line: its object for the file, see `vicinal.bench.paper.sweep`; `time` completes it.
        calls: eager calls by pass and system.
        graphs: by pass and system, a CUDA graph of several calls, and of how many.
        spent: seconds by step.
        short: whether the device had too little memory for something.
    """

    line: dict[str, Any]
    calls: CallsByPass = field(default_factory=dict)
    graphs: dict[Pass, dict[str, tuple[torch.cuda.CUDAGraph, int]]] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    short: bool = False

    def why(self, error: Exception) -> str:
        """An error in one line; one that says that memory ran out is remembered."""
        said = words(error)
        self.short |= out_of_memory(said)
        return said

    def time(self, device: torch.device) -> dict[str, Any]:
        """Time every call; the completed line."""
        start = time.perf_counter()
        try:
            with own_stream(device):
                for p in self.calls:
                    self._time(p, device)
        except Exception as error:
            self.line["error"] = self.why(error)
        self.spent["timing"] = time.perf_counter() - start
        self.line["seconds"] = _rounded(sum(self.spent.values()))
        self.line["spent"] = {what: _rounded(seconds) for what, seconds in self.spent.items()}
        self.calls, self.graphs = {}, {}
        return self.line

    def _time(self, p: Pass, device: torch.device) -> None:
        results, graphs = self.line["systems"], self.graphs[p]
        replays: dict[str, Callable[[], object]] = {name: graph.replay for name, (graph, _) in graphs.items()}
        for name, timing in time_calls(replays, device, EFFORT).items():
            results[name]["kernel"][p] = _rounded(timing.median / graphs[name][1])
        self._time_eager(p, device, [name for name in self.calls[p] if name not in graphs])
        if any(results[name]["kernel"][p] is None for name in self.calls[p]):  # compared eagerly, with all others
            self._time_eager(p, device, list(graphs))

    def _time_eager(self, p: Pass, device: torch.device, names: Sequence[str]) -> None:
        for name, timing in time_calls({name: self.calls[p][name] for name in names}, device, EFFORT).items():
            result = self.line["systems"][name]
            result["eager"][p] = _rounded(timing.median)
            if name not in self.graphs[p]:
                is_kernel = device.type == "cuda" and timing.median > HOST_HIDDEN
                result["kernel"][p] = result["eager"][p] if is_kernel else None
                result["kernel_is_eager"] += [p] * is_kernel


def prepare(case: Case, compiled: bool, device: torch.device) -> Ready:
    """Run and check every system on one problem; `compiled`: also those under torch.compile. Raises nothing."""
    problem = case.problem(device)
    ready = Ready(empty_line(case, problem))
    try:
        with own_stream(device):
            _prepare_all(ready, case, problem, systems(device, compiled))
        ready.line |= fused_plan(problem, case.passes)
    except Exception as error:
        ready.line["error"] = ready.why(error)
    return ready


def warm_up(device: torch.device) -> None:
    """Use everything once that is slow the first time: torch's kernels, cuDNN, flash; not ours, which compile."""
    for dtype in (torch.float16, torch.float32):
        case = Case("", (64,), Neighborhood.of(1, 5), 1, 64, dtype=dtype, passes=("forward", "forward+backward"))
        problem = case.problem(device)
        inputs = random_inputs(problem)
        with own_stream(device), suppress(Exception):
            for target in (problem, case.self_attention().problem(device)):
                truth(target, inputs, inputs.query, True, QUICK)
            for system in systems(device):
                if system.computes == "self attention" and system.unsupported(problem) is None:
                    made, _, _ = first_run(system, case, problem, inputs, inputs.query)
                    if device.type == "cuda":
                        _worth_a_graph(made["forward"], device)


def usable(device: torch.device) -> bool:
    """Whether the CUDA context still works; gives memory back where much is kept. No graph may be in use."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            if torch.cuda.memory_reserved(device) > KEPT_BYTES:
                give_back(device)
    except Exception:
        return False
    return True


def out_of_memory(said: str | None) -> bool:
    """Whether an error is the device's lack of memory: torch's allocator and CUDA say so in the same words."""
    return said is not None and "out of memory" in said


def empty_line(case: Case, problem: Problem) -> dict[str, Any]:
    """The object of a problem without results."""
    return {
        "kind": "problem",
        "name": case.name,
        "rank": len(case.lengths),
        "dtype": dtype_name(case.dtype),
        "lengths": list(case.lengths),
        "window": list(case.neighborhood.window),
        "dilation": list(case.neighborhood.dilation),
        "batch": case.batch,
        "heads": case.heads,
        "head_dim": case.head_dim,
        "useful_scores": problem.useful_scores,
        "fused": None,
        "tilings": {},
        "waste": {},
        "seconds": None,
        "error": None,
        "systems": {},
    }


# Preparing --------------------------------------------------------------------------------------------------------


def _prepare_all(ready: Ready, case: Case, problem: Problem, every: Sequence[System]) -> None:
    clock = _Clock(ready.spent)
    inputs = random_inputs(problem)
    generator = torch.Generator(problem.device).manual_seed(1)
    grad = torch.randn(inputs.query.shape, generator=generator, dtype=torch.float32, device=problem.device).to(
        problem.dtype
    )
    gradients = case.passes != ("forward",)
    targets = {"neighborhood": problem, "self attention": case.self_attention().problem(problem.device)}
    truths = {name: truth(target, inputs, grad, gradients, QUICK) for name, target in targets.items()}
    clock("expected values")
    ready.calls = {p: {} for p in case.passes}
    ready.graphs = {p: {} for p in case.passes}
    for system in every:
        result: dict[str, Any] = {"status": "ok", "reason": None, "errors": {}}
        result |= {"eager": {}, "kernel": {}, "kernel_is_eager": []}
        ready.line["systems"][system.name] = result
        reason = system.unsupported(problem)
        if reason is not None:
            result |= {"status": "skipped", "reason": reason}
            continue
        try:
            made = _checked(system, case, problem, inputs, grad, truths[system.computes], result)
            for p, call in made.items():
                ready.calls[p][system.name] = call
        except Exception as error:
            result |= {"status": "failed", "reason": ready.why(error)}
            continue
        clock(system.name)
    if problem.device.type == "cuda":
        for p, calls in ready.calls.items():
            for name, call in calls.items():
                try:
                    made_graph = _worth_a_graph(call, problem.device)
                except Exception as error:
                    ready.line["systems"][name]["reason"] = f"no CUDA graph: {ready.why(error)}"
                    continue
                if made_graph is not None:
                    ready.graphs[p][name] = made_graph
        clock("graphs")


class _Clock:
    """Adds the time since it was last called to `spent`."""

    def __init__(self, spent: dict[str, float]) -> None:
        self.spent = spent
        self.last = time.perf_counter()

    def __call__(self, what: str) -> None:
        now = time.perf_counter()
        self.spent[what] = now - self.last
        self.last = now


def _checked(
    system: System, case: Case, problem: Problem, inputs: Inputs, grad: Tensor, expected: Truth, result: dict[str, Any]
) -> dict[Pass, Callable[[], object]]:
    """The calls to time; none where the results of a first run are wrong. What that run took is put into `result`."""
    made, tensors, result["peak_bytes"] = first_run(system, case, problem, inputs, grad)
    errors = expected.errors(tensors)
    result["errors"] = {name: _rounded(e) for name, e in errors.items()}
    stored = problem.dtype if system.name in STORING_WEIGHTS else None
    faults = expected.faults(errors, stored)
    if not faults:
        return made
    result |= {"status": "wrong", "reason": "; ".join(faults)}
    return {}


def first_run(
    system: System, case: Case, problem: Problem, inputs: Inputs, grad: Tensor
) -> tuple[dict[Pass, Callable[[], object]], dict[str, Tensor], int | None]:
    """The calls to time; the heads-last results of a first run; the memory that a run takes beyond its inputs."""
    leaves = [system.arranged(t, problem) for t in inputs[:3]]
    upstream = system.arranged(grad, problem)
    attend = system.prepare(problem)
    made: dict[Pass, Callable[[], object]] = {}
    cuda = problem.device.type == "cuda"
    if cuda:
        if system.name in COMPILING:  # what compiling tries out is no run's memory
            with suppress(Exception):
                both(attend, [t.detach().requires_grad_() for t in leaves], upstream)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with torch.no_grad():
        found = {"output": attend(*leaves)}
    if "forward" in case.passes:
        made["forward"] = partial(without_grad, attend, leaves)
    if "forward+backward" in case.passes and system.no_backward(problem) is None:
        leaves = [t.detach().requires_grad_() for t in leaves]
        found |= dict(zip(("dq", "dk", "dv"), both(attend, leaves, upstream)))
        made["forward+backward"] = partial(both, attend, leaves, upstream)
    found = system.heads_last(found, problem)
    peak = None
    if cuda:
        torch.cuda.synchronize()  # an error of this system's kernels shows here, not at the next one's
        kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found.values()}
        # autograd's thread may have freed an earlier system's gradients only now
        before = min(before, torch.cuda.memory_allocated() - sum(kept.values()))
        peak = torch.cuda.max_memory_allocated() - before
    return made, {name: t.detach() for name, t in found.items()}, peak


def _worth_a_graph(call: Callable[[], object], device: torch.device) -> tuple[torch.cuda.CUDAGraph, int] | None:
    """A graph of some calls and how many they are; None for a call so long that it is not worth it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if seconds > LONGEST_CAPTURED:
        return None
    count = min(GRAPH_CALLS, max(1, ceil(GRAPH_SECONDS / seconds)))
    return captured(call, count, device), count


def _rounded(number: float) -> float:
    """Four digits: files of results stay small."""
    return float(f"{number:.4g}")
