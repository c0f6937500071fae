"""The paper's sweep: every system on many problems, resumable, no single problem ends it.

Results are appended to a file of JSON lines, one object each:
    {"kind": "vicinal paper", schema, date (UTC), command, machine, versions, limits by dtype (on CUDA)}: once per run,
        see `vicinal.bench.record` for the fields;
    {"kind": "problem", name, rank, dtype, lengths, window, dilation, batch, heads, head_dim, fused (its backend),
        seconds (the problem's own, over all systems, compilation included), error (null, or why there are no results),
        systems: {name: {status, reason, errors, peak_bytes, eager and kernel: seconds per call by pass, medians}}}.
`status` is "ok", "skipped" (cannot run it), "failed" (an error) or "wrong" (a bad result, not timed). A rerun with the
same file skips what is in it, except with `retry` problems that have an error.

Problems run in a process of their own: one that crashes, hangs or breaks the CUDA context is recorded as failed, and a
fresh process goes on with the next.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vicinal import info
from vicinal.bench.cases import Case, Pass, random_inputs
from vicinal.bench.measure import Effort, time_calls, time_kernels
from vicinal.bench.paper_check import Expected, expected
from vicinal.bench.paper_problems import pairs_of_self_attention, problems, sample
from vicinal.bench.paper_systems import GEMM, NAIVE, PLAIN, fused_backend, systems
from vicinal.bench.peers import System
from vicinal.bench.roofline import measure_limits
from vicinal.problem import Inputs, Problem

SCHEMA = 1
KIND = "vicinal paper"
HOST_BOUND_SECONDS = 1e-3  # calls that take longer are not replayed from a CUDA graph: host time does not show
EFFORT = Effort(samples=5, seconds=0.03, sample_seconds=0.0005)
CPU_PAIRS = 1 << 22  # on CPU only problems up to this size of self attention


@dataclass(frozen=True)
class Sweep:
    """What to run and where its results go.

    Attributes:
        results: the file of JSON lines, appended to.
        device: where to run.
        ranks: 1, 2, 3.
        dtypes: float16 (both passes) and float32 (forward), as in the paper.
        sample: problems per rank and dtype; None for all.
        seed: of the sample.
        compiled: of these, how many also run FlexAttention and compiled plain attention (seconds of compilation each).
        seconds: stop before the next problem once the run has taken so long; None for no limit.
        problem_seconds: a problem that takes longer is given up.
        compilers: processes that compile kernels into Triton's cache before the first problem, on CUDA; 0 for none.
        retry: run problems again that the file has with an error.
        command: as typed, for the record.
    """

    results: Path
    device: torch.device
    ranks: tuple[int, ...] = (1, 2, 3)
    dtypes: tuple[torch.dtype, ...] = (torch.float16,)
    sample: int | None = None
    seed: int = 0
    compiled: int = 0
    seconds: float | None = None
    problem_seconds: float = 120.0
    compilers: int = 0
    retry: bool = False
    command: str = ""

    def cases(self) -> list[tuple[Case, bool]]:
        """The problems, ranks and dtypes in turns, so that a run cut short has some of each; whether also compiled."""
        columns = []
        for rank in self.ranks:
            for dtype in self.dtypes:
                every = problems(rank, dtype)
                if self.device.type != "cuda":
                    every = tuple(case for case in every if pairs_of_self_attention(case) <= CPU_PAIRS)
                chosen = sample(every, len(every) if self.sample is None else self.sample, self.seed)
                columns.append([(case, i < self.compiled) for i, case in enumerate(chosen)])
        longest = max(map(len, columns), default=0)
        return [column[i] for i in range(longest) for column in columns if i < len(column)]


@dataclass
class Outcome:
    """What a run did: problems measured, already there, failed; wrong results; whether it came to its end."""

    measured: int = 0
    present: int = 0
    failed: int = 0
    wrong: list[str] = field(default_factory=list)
    complete: bool = True


def run(sweep: Sweep, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> Outcome:
    """Run the sweep, appending to its file. `progress` gets problems done, problems in all, and the next one's name."""
    start = time.monotonic()
    done = {key_of(line) for line in read(sweep.results) if not (sweep.retry and line["error"] is not None)}
    cases = sweep.cases()
    outcome = Outcome()
    todo = [(case, compiled) for case, compiled in cases if _key(case) not in done]
    outcome.present = len(cases) - len(todo)
    if not todo:
        return outcome
    if sweep.compilers > 0 and sweep.device.type == "cuda":
        progress(outcome.present, len(cases), "compiling kernels")
        _compile_all([case for case, _ in todo], sweep.device, sweep.compilers)
    header_written = False
    with _Worker(sweep.device, sweep.dtypes) as worker:
        for i, (case, compiled) in enumerate(todo):
            progress(outcome.present + i, len(cases), case.name)
            if sweep.seconds is not None and time.monotonic() - start > sweep.seconds:
                outcome.complete = False
                break
            line = worker.measure(case, compiled, sweep.problem_seconds)
            if not header_written and worker.header is not None:
                _append(sweep.results, {**worker.header, "command": sweep.command})
                header_written = True
            _append(sweep.results, line)
            outcome.measured += line["error"] is None
            outcome.failed += line["error"] is not None
            outcome.wrong += [f"{case.name}: {s}" for s, r in line["systems"].items() if r["status"] == "wrong"]
        else:
            progress(len(cases), len(cases), "")
    return outcome


def read(path: Path) -> list[dict[str, Any]]:
    """The problems in a file of results, the last of each; a line cut off by an interruption is left out."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in _lines(path):
        if line.get("kind") == "problem":
            found[key_of(line)] = line
    return list(found.values())


def headers(path: Path) -> list[dict[str, Any]]:
    """One object per run of a file of results: machine, versions, date, command."""
    return [line for line in _lines(path) if line.get("kind") == KIND]


def key_of(line: dict[str, Any]) -> tuple[str, str]:
    """What identifies a problem: its name and dtype."""
    return line["name"], line["dtype"]


def measure_problem(case: Case, compiled: bool, device: torch.device) -> dict[str, Any]:
    """Check and time every system on one problem; the object for the file (see the module)."""
    start = time.perf_counter()
    problem = case.problem(device)
    line = _line(case, problem)
    try:
        with _stream(device):
            line["systems"] = _measure(case, problem, systems(device, compiled))
        line["fused"] = fused_backend(problem)
    except Exception as error:
        line["error"] = _words(error)
    line["seconds"] = time.perf_counter() - start
    return line


# One problem ------------------------------------------------------------------------------------------------------


def _measure(case: Case, problem: Problem, every: Sequence[System]) -> dict[str, dict[str, Any]]:
    inputs = random_inputs(problem)
    generator = torch.Generator(problem.device).manual_seed(1)
    grad = torch.randn(inputs.query.shape, generator=generator, device=problem.device).to(problem.dtype)
    targets = {"neighborhood": problem, "self attention": case.self_attention().problem(problem.device)}
    truths: dict[str, Expected] = {}
    results: dict[str, dict[str, Any]] = {}
    calls: dict[Pass, dict[str, Callable[[], object]]] = {p: {} for p in case.passes}
    for system in every:
        result: dict[str, Any] = {"status": "ok", "reason": None, "errors": {}, "eager": {}, "kernel": {}}
        results[system.name] = result
        reason = system.unsupported(problem)
        if reason is not None:
            result |= {"status": "skipped", "reason": reason}
            continue
        try:
            if system.computes not in truths:
                truths[system.computes] = expected(targets[system.computes], inputs, grad)
            truth = truths[system.computes]
            made, tensors, result["peak_bytes"] = _prepare(system, case, problem, inputs, grad)
            result["errors"] = truth.errors(tensors)
            del tensors
            faults = truth.faults(result["errors"], system.name in (NAIVE, GEMM, PLAIN), problem.dtype)
        except Exception as error:
            result |= {"status": "failed", "reason": _words(error)}
            continue
        if faults:
            result |= {"status": "wrong", "reason": "; ".join(faults)}
            continue
        for p, call in made.items():
            calls[p][system.name] = call
    for p in case.passes:
        for name, (eager, kernel) in _time(calls[p], problem.device).items():
            results[name]["eager"][p] = eager
            results[name]["kernel"][p] = kernel
    return results


def _prepare(
    system: System, case: Case, problem: Problem, inputs: Inputs, grad: Tensor
) -> tuple[dict[Pass, Callable[[], object]], dict[str, Tensor], int | None]:
    """The calls to time; the heads-last results of a first run; the memory that run took beyond its inputs."""
    first = system.layout == "heads-first"
    leaves = [_heads_first(t) if first else t for t in inputs[:3]]
    upstream = _heads_first(grad) if first else grad
    attend = system.prepare(problem)
    made: dict[Pass, Callable[[], object]] = {}
    cuda = problem.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with torch.no_grad():
        found = {"output": attend(*leaves)}
    if "forward" in case.passes:
        made["forward"] = partial(_without_grad, attend, leaves)
    if "forward+backward" in case.passes and system.no_backward(problem) is None:
        leaves = [t.detach().requires_grad_() for t in leaves]
        found |= dict(zip(("dq", "dk", "dv"), _both(attend, leaves, upstream)))
        made["forward+backward"] = partial(_both, attend, leaves, upstream)
    if first:
        found = {name: t.transpose(1, 2).unflatten(1, problem.lengths) for name, t in found.items()}
    peak = None
    if cuda:
        torch.cuda.synchronize()  # an error of this system's kernels shows here, not at the next one's
        peak = torch.cuda.max_memory_allocated() - before
    return made, {name: t.detach() for name, t in found.items()}, peak


def _time(calls: dict[str, Callable[[], object]], device: torch.device) -> dict[str, tuple[float, float | None]]:
    """Seconds per call, eager, and replayed from a CUDA graph where host time may show in the first."""
    eager = {name: t.median for name, t in time_calls(calls, device, EFFORT).items()}
    kernel: dict[str, float | None] = dict.fromkeys(calls)
    if device.type == "cuda":
        short = {name: call for name, call in calls.items() if eager[name] < HOST_BOUND_SECONDS}
        replayed = time_kernels(short, device, EFFORT) if short else {}
        for name in calls:
            timing = replayed.get(name)
            kernel[name] = eager[name] if name not in short else None if isinstance(timing, str) else timing.median  # type: ignore[union-attr]
    return {name: (eager[name], kernel[name]) for name in calls}


def _line(case: Case, problem: Problem) -> dict[str, Any]:
    return {
        "kind": "problem",
        "name": case.name,
        "rank": len(case.lengths),
        "dtype": info.dtype_name(case.dtype),
        "lengths": list(case.lengths),
        "window": list(case.neighborhood.window),
        "dilation": list(case.neighborhood.dilation),
        "batch": case.batch,
        "heads": case.heads,
        "head_dim": case.head_dim,
        "useful_scores": problem.useful_scores,
        "fused": None,
        "seconds": None,
        "error": None,
        "systems": {},
    }


def _heads_first(t: Tensor) -> Tensor:
    return t.flatten(1, -3).transpose(1, 2).contiguous()


def _without_grad(attend: Callable[..., Tensor], leaves: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return attend(*leaves)


def _both(attend: Callable[..., Tensor], leaves: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attend(*leaves), leaves, grad)


@contextmanager
def _stream(device: torch.device) -> Iterator[None]:
    """A CUDA stream of its own, which capture into graphs needs."""
    with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
        yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _words(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


# Compiling ahead --------------------------------------------------------------------------------------------------


def _compile_all(cases: Sequence[Case], device: torch.device, processes: int, seconds: float = 120.0) -> None:
    """Run the smallest problem of every kind once, in parallel, so that Triton's disk cache has the kernels.

    Problems with the same rank, dtype, head dim and whether dilated share kernels. What fails here will fail, and be
    recorded, where it is measured; what hangs is ended after `seconds`.
    """
    smallest: dict[tuple[object, ...], Case] = {}
    for case in cases:
        dilated = max(case.neighborhood.dilation) > 1
        kind = (len(case.lengths), case.dtype, case.head_dim, dilated)
        if kind not in smallest or case.tokens * case.batch < smallest[kind].tokens * smallest[kind].batch:
            smallest[kind] = case
    with multiprocessing.get_context("spawn").Pool(min(processes, len(smallest))) as pool:
        waiting = pool.map_async(partial(_compile, device), list(smallest.values()), chunksize=1)
        waiting.wait(seconds)


def _compile(device: torch.device, case: Case) -> None:
    problem = case.problem(device)
    inputs = random_inputs(problem)
    for system in systems(device):
        if system.computes == "neighborhood" and system.unsupported(problem) is None:
            with suppress(Exception):
                _prepare(system, case, problem, inputs, torch.ones_like(inputs.query))


# The process that measures ----------------------------------------------------------------------------------------


class _Worker:
    """A process that measures problems; started anew when it dies or hangs."""

    def __init__(self, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> None:
        self.device = device
        self.dtypes = dtypes
        self.header: dict[str, Any] | None = None
        self.process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection | None = None

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def measure(self, case: Case, compiled: bool, seconds: float) -> dict[str, Any]:
        """The object of one problem; with an error where the process did not give it."""
        line = _line(case, case.problem("cpu"))
        try:
            if self.process is None:
                self._start()
            assert self.connection is not None
            self.connection.send((case, compiled))
            if not self.connection.poll(seconds):
                self._stop()
                return {**line, "error": f"took longer than {seconds:g} s", "seconds": seconds}
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            code = None if self.process is None else self.process.exitcode
            self._stop()
            return {**line, "error": f"the measuring process died ({_words(error)}, exit status {code})"}
        if answer["context_broken"]:
            self._stop()
        return answer["line"]

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.device, self.dtypes), daemon=True)
        self.process.start()
        theirs.close()
        header = self.connection.recv()
        self.header = header if self.header is None else self.header

    def _stop(self) -> None:
        if self.process is not None:
            if self.process.is_alive():
                self.process.terminate()
                self.process.join(5)
            if self.process.is_alive():
                self.process.kill()
            self.process.join()
        if self.connection is not None:
            self.connection.close()
        self.process = self.connection = None


def _serve(connection: Connection, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> None:
    """The measuring process: a header first, then a line for every case it is sent."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    limited = dtypes if device.type == "cuda" else ()  # a CPU's would take longer than its problems
    connection.send(
        {
            "kind": KIND,
            "schema": SCHEMA,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": info.machine(device),
            "versions": info.versions(),
            "effort": asdict(EFFORT),
            "limits": {info.dtype_name(dtype): asdict(measure_limits(device, dtype)) for dtype in limited},
        }
    )
    while True:
        try:
            case, compiled = connection.recv()
        except EOFError:
            return
        line = measure_problem(case, compiled, device)
        connection.send({"line": line, "context_broken": not _usable(device)})


def _usable(device: torch.device) -> bool:
    """Whether the CUDA context still works; frees cached memory."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
    except Exception:
        return False
    return True


# The file ---------------------------------------------------------------------------------------------------------


def _key(case: Case) -> tuple[str, str]:
    return case.name, info.dtype_name(case.dtype)


def _append(path: Path, line: dict[str, Any]) -> None:
    """Add a line and flush it, after completing one that an interruption cut off."""
    cut = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write(("\n" if cut else "") + json.dumps(line) + "\n")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            yield line
