"""`tune`: measures the candidates for classes of problems on this device, and plans by what it finds from then on.

What is timed starts from an empty cache, candidates take turns, those that are far behind after a few samples are timed
no more, and a candidate whose result differs from that of the estimate's choice is left out. Nothing is timed while
other code runs: `with tune():` notes the problems that it meets, and measures at its end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, get_args, overload

import torch
from torch import Tensor

from vicinal import dispatch
from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.protocol import Backend, Config, Direction, settings
from vicinal.bench.cases import random_inputs
from vicinal.bench.cold import time_cold
from vicinal.bench.graphs import own_stream
from vicinal.bench.measure import Effort, Timing, words
from vicinal.checks import check_directions, check_problems
from vicinal.machine import device_name
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.tuning import cache
from vicinal.tuning.progress import Advance, progress
from vicinal.tuning.ranks import Ranks
from vicinal.tuning.table import Entry, ProblemClass, Timed, fastest_first
from vicinal.tuning.timings import Measured, append

SHORT = 4  # candidates of a backend, unless the search is thorough
FAR = 2.0  # times the estimate of the first: candidates beyond are not measured, unless the search is thorough
ROUGH = Effort(samples=3, seconds=1.0)
EFFORT = Effort(samples=15, seconds=0.5)
NEAR = 1.25  # times the fastest, by a few samples: candidates within it are timed with more effort
AGREE = {  # relative difference of two right results, root mean square; products in TF32 are allowed on GPUs
    torch.float16: 2**-8,
    torch.bfloat16: 2**-5,
    torch.float32: 2**-9,
    torch.float64: 2**-40,
}

Candidate = tuple[Backend[Any], Config]
Call = Callable[[], tuple[Tensor | None, ...]]


class Task(NamedTuple):
    """One pass of a problem that stands for its class."""

    problem: Problem
    direction: Direction


@overload
def tune(
    problems: None = None,
    *,
    thorough: bool = False,
    directions: Sequence[Direction] = ...,
    timings: Path | None = None,
) -> AbstractContextManager[list[Entry]]: ...
@overload
def tune(
    problems: Problem | Iterable[Problem],
    *,
    thorough: bool = False,
    directions: Sequence[Direction] = ...,
    timings: Path | None = None,
) -> list[Entry]: ...


def tune(
    problems: Problem | Iterable[Problem] | None = None,
    *,
    thorough: bool = False,
    directions: Sequence[Direction] = get_args(Direction),
    timings: Path | None = None,
) -> AbstractContextManager[list[Entry]] | list[Entry]:
    """Measure how problems run fastest on this device, for this process and later ones.

    `with vicinal.tune():` measures, at its end, the problems that the code within it met. `vicinal.tune(problem)`
    measures at once. What is found is kept on disk per device, and taken for all problems of a class
    (`vicinal.tuning.table`); what is known already is not measured again. Interrupted, it keeps what it has.

    With `torch.distributed` initialised every rank must call it: candidates are shared out, and all ranks take what
    rank 0 decides. Where deterministic algorithms are on, within the capture of a CUDA graph, and where torch.compile
    traces, nothing is timed, and a warning says so.

    Args:
        problems: one or several `vicinal.problem.Problem`; None for those that the code within `with` meets.
        thorough: measure all candidates that are listed, not only the best few by the estimate.
        directions: which passes, of those that are met.
        timings: a file that what every candidate took is added to (`vicinal.tuning.timings`), as it comes.

    Returns:
        What was found: for `with`, a list that is filled at its end.

    Raises:
        MissingExtra: a library of `vicinal[tune]` is not installed.
        OSError: what is found cannot be kept.
        TypeError: an argument is of the wrong type.
        ValueError: no backend can run a problem, a direction is unknown, or the ranks' devices differ.
    """
    given, directions = check_problems(() if problems is None else problems), check_directions(directions)
    if Ranks.here().rank == 0:
        cache.check_writable()
    if problems is None:
        return _noting(thorough, directions, timings)
    return measure([Task(problem, direction) for problem in given for direction in directions], thorough, timings)


@contextmanager
def _noting(thorough: bool, directions: Sequence[Direction], kept: Path | None) -> Iterator[list[Entry]]:
    met: dict[Task, None] = {}
    found: list[Entry] = []

    def note(plan: dispatch.Plan, direction: Direction) -> None:
        if direction in directions:
            met[Task(plan.problem, direction)] = None

    dispatch.chosen_by.append(note)
    cache.forget_plans()  # so that what was met before is met again
    try:
        yield found
    finally:
        dispatch.chosen_by.remove(note)
    found += measure(list(met), thorough, kept)


def measure(tasks: Sequence[Task], thorough: bool, kept: Path | None = None) -> list[Entry]:
    """Measure the first task of every class, of all ranks', that is not known yet; what is found is kept.

    `kept`: the file of raw timings, of rank 0.
    """
    ranks = Ranks.here()
    everything = ranks.gather((_why_not(), tasks, torch.cuda.is_available() and device_name(_own())))
    reasons = [reason for reason, _, _ in everything if reason is not None]
    if reasons:
        warnings.warn(f"nothing was timed: {reasons[0]}", stacklevel=3)
        return []
    names = {name for _, _, name in everything}
    if len(names) > 1:
        raise ValueError(f"ranks that tune together have the same GPU, these have {sorted(map(str, names))}")
    classes: dict[tuple[ProblemClass, Direction, str], Task] = {}
    for task in (task for _, own, _ in everything for task in own):
        classes.setdefault((ProblemClass.of(task.problem), task.direction, task.problem.device.type), task)
    known = ranks.first([_known(task, thorough) for task in classes.values()])  # ranks may have read other tables
    here = [task if ranks.size == 1 else _moved(task) for task in classes.values()]
    found: list[Entry] = []
    todo = []
    for task, entry in zip(here, known):
        if entry is None:
            todo.append((task, candidates(task, thorough)))
        else:
            cache.publish(task.problem.device, [entry])
    todo = [(task, own) for task, own in todo if len(own) > 1]  # else there is nothing to choose
    steps = sum(len(own[ranks.rank :: ranks.size]) for _, own in todo)
    with progress("tuning", steps, ranks.rank == 0) as advance:
        for task, own in todo:
            rows = _timed(task, own, ranks, advance)
            if kept is not None and ranks.rank == 0:
                append(kept, rows)
            entry = ranks.first(_entry(task, rows))
            if entry is not None:
                found.append(entry)
                cache.publish(task.problem.device, [entry])
                if ranks.rank == 0:
                    cache.save(device_name(task.problem.device), [entry])
    return found


def candidates(task: Task, thorough: bool = False) -> list[Candidate]:
    """Of every backend with kernels for the problem the first configurations; the estimate's choice is the first.

    Without those that are estimated to take far longer; `thorough`: all.
    """
    problem, direction = task
    able = [each for each in dispatch.plan(problem).able if each.name != "torch"]
    if not able:
        return []
    best, config = dispatch.preferred(able, problem, direction)
    most = FAR * (best.seconds(*task, config) or inf)
    return [
        (each, config)
        for each in sorted(able, key=lambda other: other is not best)
        for config in _listed(each, task)[: None if thorough else SHORT]
        if thorough or (each.seconds(*task, config) or 0.0) <= most
    ]


def _listed(backend: Backend[Any], task: Task) -> list[Config]:
    """A backend's configurations, the best guess first, then by their estimates: kinds of kernels mixed."""
    first, *others = backend.configs(*task)
    return [first, *sorted(others, key=lambda config: backend.seconds(*task, config) or 0.0)]


def _why_not() -> str | None:
    """Why nothing may be timed now."""
    if torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms are on (torch.use_deterministic_algorithms)"
    if torch.compiler.is_compiling():
        return "torch.compile is tracing"
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    return None


def _known(task: Task, thorough: bool) -> Entry | None:
    """What was measured of the task's class, if that was all of its candidates."""
    found = cache.look_up(task.problem, task.direction)
    if found is None or found.distance or found.entry.versions != cache.versions():
        return None
    entry = found.entry
    return entry if all(entry.covers(each.name, config) for each, config in candidates(task, thorough)) else None


def _own() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def _moved(task: Task) -> Task:
    """The task on this rank's device."""
    return task._replace(problem=replace(task.problem, device=_own())) if task.problem.device.type == "cuda" else task


def _timed(task: Task, own: list[Candidate], ranks: Ranks, advance: Advance) -> list[Measured]:
    """What the candidates took, timed by all ranks together."""
    problem = task.problem
    mine = list(range(len(own)))[ranks.rank :: ranks.size]
    outcomes: dict[int, Timing | str] = {}
    for each in ranks.gather(_outcomes(task, own, mine, advance)):
        outcomes |= each
    about = (device_name(problem.device), _gpu(problem.device), cache.versions(), problem, task.direction)
    rows = []
    for i, (backend, config) in enumerate(own):
        outcome = outcomes[i]
        if isinstance(outcome, Timing):
            seconds = (outcome.lower, outcome.median, outcome.upper)
            rows.append(Measured(*about, backend.name, settings(config), seconds, outcome.samples))
        elif ranks.rank == 0:
            warnings.warn(f"tuning {problem.in_words()}: {backend.name}, {config}: {outcome}", stacklevel=4)
    return rows


def _gpu(device: torch.device) -> tuple[str, int] | None:
    if device.type != "cuda":
        return None
    gpu = gpu_of(device)
    return gpu.architecture.name, gpu.processors


def _entry(task: Task, rows: Sequence[Measured]) -> Entry | None:
    """What is kept of them; None where all failed."""
    found = fastest_first(Timed(row.backend, row.config, row.median) for row in rows)
    about = (ProblemClass.of(task.problem), task.direction, cache.versions(), task.problem.in_words())
    return Entry(*about, found) if found else None


def _outcomes(task: Task, own: list[Candidate], mine: Sequence[int], advance: Advance) -> dict[int, Timing | str]:
    """What these candidates took, or what is wrong with them; raises nothing that the other ranks would wait for."""
    outcomes: dict[int, Timing | str] = dict.fromkeys(mine, "")
    device = task.problem.device
    try:
        with own_stream(device), torch.no_grad():
            calls = _calls(task, own)
            expected = calls[0]()
            ready: dict[int, Call] = {}
            for i in mine:
                backend, config = own[i]
                advance(f"{task.problem.in_words()}, {task.direction}: {backend.name}, {config}")
                problem = _difference(calls[i], expected)
                if problem is None:
                    ready[i] = calls[i]
                else:
                    outcomes[i] = problem
            outcomes |= _timings(ready, device)
    except Exception as error:
        outcomes = {i: outcome or words(error) for i, outcome in outcomes.items()}
    return outcomes


def _timings(calls: Mapping[int, Call], device: torch.device) -> dict[int, Timing]:
    """Of all calls: of those that a few samples see far behind, these few."""
    rough = time_cold(calls, device, ROUGH)
    fastest = min((timing.median for timing in rough.values()), default=0.0)
    near = {i: call for i, call in calls.items() if rough[i].median <= NEAR * fastest}
    return rough | time_cold(near, device, EFFORT)


def _calls(task: Task, own: Sequence[Candidate]) -> list[Call]:
    """One call of each candidate, all on the same tensors."""
    problem, direction = task
    inputs = random_inputs(problem)
    if direction == "forward":
        return [partial(backend.forward, problem, config, inputs) for backend, config in own]
    upstream = _upstream(problem, inputs, own[0][0])
    wanted = Wanted.of(inputs)
    return [partial(backend.backward, problem, config, inputs, upstream, wanted) for backend, config in own]


def _upstream(problem: Problem, inputs: Inputs, backend: Backend[Any]) -> Upstream:
    output, lse = backend.forward(problem, backend.best(problem, "forward")[0], inputs)
    generator = torch.Generator(problem.device).manual_seed(1)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float32, device=problem.device)
    return Upstream(output, lse, grad.to(problem.dtype))


def _difference(call: Call, expected: tuple[Tensor | None, ...]) -> str | None:
    """What is wrong with a call's results, or None."""
    try:
        for one, other in zip(call(), expected):
            if one is not None and other is not None:
                error = float((one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30))
                if not error <= AGREE[other.dtype]:
                    return f"left out, its result differs by {error:.2g}"
    except Exception as error:
        return f"left out, it fails with {words(error)}"
    return None
