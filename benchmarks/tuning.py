"""What tuning gains: the choice without a table against the fastest candidate, on the suite `gpu` and random problems.

NAT's problems of the suite with a relative positional bias, too.

    PYTHONPATH=src python3 benchmarks/tuning.py compile DONE SEED SECONDS PROCESSES
    PYTHONPATH=src python3 benchmarks/tuning.py measure FOLDER DONE SEED SECONDS
    PYTHONPATH=src python3 benchmarks/tuning.py gains FILE.jsonl
    PYTHONPATH=src python3 benchmarks/tuning.py table TABLE.json TIMINGS.jsonl.gz GAINS.jsonl...
    PYTHONPATH=src python3 benchmarks/tuning.py prune TABLE.json TIMINGS.jsonl.gz
    PYTHONPATH=src python3 benchmarks/tuning.py choose TABLE.json SEED > CHOICES.json

The first compiles what the second measures, in processes side by side, and adds to the file DONE which problems are
done; SEED is that of the random ones. The second, beside it or later, tunes these (`vicinal.tune`, which checks
results): the raw timings come to FOLDER/timings.jsonl.gz, the table to FOLDER/tuning/. Then, for each pass, what is
chosen without a table, by the shipped table, and the fastest candidate are timed in turns once more, since the
fastest of many is so by chance too: FOLDER/gains.jsonl. The third prints what that says. The fourth makes of such
files the table that is shipped for their device, or adds to it: of every class the three fastest, first what was
fastest in turns. The last, which needs no GPU, says what the estimate would choose on an H100 or H200 with the
constants of a table; where VICINAL_CHOICES names its file, these are timed too, as "other". VICINAL_EARLIER names
files of gains, separated by colons: what they have of the device that is here is not measured again. VICINAL_ONLY:
parts of names, separated by colons, of the only problems there are then.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from math import exp, log, prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import torch

from vicinal import dispatch
from vicinal.backends.gpu.hardware import Gpu, standing_for
from vicinal.backends.protocol import Direction, settings
from vicinal.bench.cases import SUITES
from vicinal.bench.cold import time_cold
from vicinal.bench.graphs import give_back, own_stream
from vicinal.bench.measure import Effort
from vicinal.bench.planning import CARD, random_problem
from vicinal.files import write_text
from vicinal.machine import device_name, machine, versions
from vicinal.problem import Problem, Wanted, stand_ins
from vicinal.tuning import search
from vicinal.tuning.cache import VARIABLE
from vicinal.tuning.command import EXPORTED
from vicinal.tuning.fit import CONFIGS
from vicinal.tuning.search import Candidate, Task, candidates
from vicinal.tuning.table import Entry, ProblemClass, Settings, Table, Timed, Versions, fastest_first
from vicinal.tuning.timings import Measured, read

RANDOM = 120
LARGEST = 1 << 28  # bytes of a random problem's query
MOST = 4e12  # FLOPs of both passes of a random problem; suites' problems that have more come later
AGAIN = Effort(samples=15, seconds=0.2)
SHORT = {False: 4, True: 2}  # candidates of a backend: of a suite's problem, of a random one
END = "all are compiled"
CHANGED = "changed"  # in a file of choices: the names of problems that are chosen for otherwise


@cache
def problems(device: torch.device, seed: int) -> list[tuple[str, Problem]]:
    """By name: the suite's and random ones, then those that take long; what the file of choices lists comes first.

    But those that were measured earlier on the device.
    """
    suite = [(case.name, case.problem(device)) for case in SUITES["gpu"].cases]
    suite += [(f"{name}, bias", replace(problem, has_rpb=True)) for name, problem in suite if name.startswith("NAT")]
    rng, found = random.Random(seed), []
    while len(found) < RANDOM:
        drawn = random_problem(rng, (torch.bfloat16,))
        problem = Problem(**{**drawn.__getstate__(), "device": device})
        size = prod(problem.lengths) * problem.batch * problem.heads * problem.head_dim * 2
        if size <= LARGEST and flops(problem) <= MOST:
            found.append((f"random {len(found)}: {problem.in_words()}", problem))
    changed = _file().get(CHANGED, ())
    ordered = sorted(suite + found, key=lambda each: flops(each[1]) > MOST)
    known, only = measured_earlier(device), os.environ.get("VICINAL_ONLY", "").split(":")
    ordered = [each for each in ordered if each[0] not in known and any(part in each[0] for part in only)]
    return sorted(ordered, key=lambda each: each[0] not in changed)


def measured_earlier(device: torch.device) -> set[str]:
    """The names of problems both of whose passes the files of `VICINAL_EARLIER` have, of this device."""
    found: list[str] = []
    for path in filter(None, os.environ.get("VICINAL_EARLIER", "").split(":")):
        about, *rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        if about["machine"]["device"] == device_name(device):
            found += [row["problem"] for row in rows if "error" not in row]
    return {name for name in found if found.count(name) == len(get_args(Direction))}


def is_random(name: str) -> bool:
    """Whether a problem is no suite's."""
    return name.startswith("random")


def flops(problem: Problem) -> int:
    """Of both passes."""
    return problem.forward_flops + problem.backward_flops


# --- compiling ---------------------------------------------------------------------------------------------


def compile_all(done: Path, seed: int, seconds: float, processes: int) -> None:
    """What `measure` runs; the names of the problems that are done, as they come."""
    stop, known = time.monotonic() + seconds, compiled(done)
    names = [name for name, _ in problems(torch.device("cuda", 0), seed)]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool, done.open("a") as file:
        running = [pool.submit(compile_one, i, seed, stop) for i, name in enumerate(names) if name not in known]
        for each in as_completed(running):
            if each.result():
                file.write(each.result() + "\n")
                file.flush()
        file.write(END + "\n")


def compiled(done: Path) -> set[str]:
    """The names of problems that are done."""
    return set(done.read_text().splitlines()) - {END} if done.exists() else set()


def compile_one(number: int, seed: int, stop: float) -> str:
    """The name of a problem whose kernels are compiled; empty where time was up."""
    torch.set_num_threads(1)
    name, problem = problems(torch.device("cuda", 0), seed)[number]
    search.SHORT = SHORT[is_random(name)]
    inputs = stand_ins(problem)
    for direction in get_args(Direction):
        for backend, config in choices(name, problem, direction):
            if time.monotonic() > stop:
                return ""
            try:
                if direction == "forward":
                    jobs = backend.forward_kernels(problem, config, inputs)
                else:
                    jobs = backend.backward_kernels(problem, config, inputs, Wanted.of(inputs))
                for job in jobs:
                    job()
            except Exception as error:  # the tuner leaves it out, and says so
                print(f"{name}: {backend.name}, {config}: {type(error).__name__}: {error}", flush=True)
    return name


def choices(name: str, problem: Problem, direction: Direction) -> list[Candidate]:
    """What is measured, and what the shipped table, or another estimate, chooses."""
    found, other = candidates(Task(problem, direction)), by_file(name, problem, direction)
    found = found[:1] if is_brief(name) else [*found, by_plan(problem, direction)]
    return list(dict.fromkeys([*found, *([] if other is None else [other])]))


def is_brief(name: str) -> bool:
    """Whether a problem is only there to compare choices: it is not tuned."""
    return is_random(name) and name in _file().get(CHANGED, ())


def by_plan(problem: Problem, direction: Direction) -> Candidate:
    """What a plan chooses, by the table where it says something."""
    plan = dispatch.plan(problem)
    return (plan.backend, plan.forward) if direction == "forward" else (plan.gradients, plan.backward)


def by_file(name: str, problem: Problem, direction: Direction) -> Candidate | None:
    """What the file of choices says, if there is one."""
    chosen = _file().get(name)
    if chosen is None:
        return None
    backend, config = dispatch.backend(chosen[direction][0]), chosen[direction][1]
    found = backend.configured(problem, direction, config)
    return None if found is None else (backend, found)


@cache
def _file() -> dict[str, Any]:
    path = os.environ.get("VICINAL_CHOICES")
    return json.loads(Path(path).read_text()) if path else {}


def choose(table: Path, seed: int) -> dict[str, Any]:
    """For every problem and pass the backend and the settings that the estimate chooses with a table's constants."""
    fitted, found = Table.from_json(table.read_text()).fitted, {}
    with standing_for(Gpu(CARD.architecture, CARD.processors, tuple(sorted(fitted.items())))):
        for name, problem in problems(torch.device("cpu"), seed):
            plan = dispatch.Plan(problem, tuple(dispatch.backend(each) for each in able(problem)))
            found[name] = {
                "forward": (plan.backend.name, settings(plan.forward)),
                "backward": (plan.gradients.name, settings(plan.backward)),
            }
    return found


def pruned(table: Table, timings: Path) -> Table:
    """Without the entries of problems for which the estimate prefers tiles of classes that were not timed."""
    timed: dict[tuple[ProblemClass, Direction], dict[Problem, set[tuple[str, str]]]] = {}
    for row in read(timings):
        each = timed.setdefault((ProblemClass.of(row.problem), row.direction), {}).setdefault(row.problem, set())
        each.add((row.backend, repr(as_now(row.backend, row.config))))
    left = dict(table.entries)
    with standing_for(Gpu(CARD.architecture, CARD.processors, tuple(sorted(table.fitted.items())))):
        for key in table.entries:
            for problem, known in timed.get(key[:2], {}).items():
                backends = [dispatch.backend(name) for name in able(problem)]
                chosen, config = dispatch.preferred(backends, problem, key[1])
                newer = (chosen.name, repr(as_now(chosen.name, settings(config)))) not in known
                if newer and "'of_classes': True" in repr(settings(config)):
                    print(f"{key[0].in_words()}, {key[1]}: {chosen.name}, {config}")
                    left.pop(key, None)
    return Table(table.device, left, table.fitted)


def able(problem: Problem) -> list[str]:
    """Of the GPU backends those that can run a problem."""
    return [name for name in ("hopper", "triton") if dispatch.unsupported(name, problem) is None]


# --- measuring ---------------------------------------------------------------------------------------------


def measure(folder: Path, done: Path, seed: int, seconds: float) -> None:
    """Tune, and time the choices against each other, as many problems as fit."""
    stop = time.monotonic() + seconds
    device = torch.device("cuda", 0)
    os.environ[VARIABLE] = str(folder)
    search.EFFORT = Effort(samples=11, seconds=0.15)
    with (folder / "gains.jsonl").open("w") as file:
        file.write(json.dumps({"machine": machine(device), "versions": versions()}) + "\n")
        for name, problem in as_they_come(problems(device, seed), done, stop):
            search.SHORT = SHORT[is_random(name)]
            for direction in get_args(Direction):
                if time.monotonic() > stop:
                    return
                try:
                    row = gain(name, problem, direction, folder / "timings.jsonl.gz")
                except Exception as error:  # the others' figures count
                    row = {"error": f"{type(error).__name__}: {error}"}
                file.write(json.dumps({"problem": name, "direction": direction, **row}) + "\n")
                file.flush()
            give_back(device)


def as_they_come(listed: Sequence[tuple[str, Problem]], done: Path, stop: float) -> Iterator[tuple[str, Problem]]:
    """The first of those that are compiled, again and again until no more come."""
    left = dict(listed)
    while time.monotonic() < stop:
        ended, ready = END in done.read_text().splitlines(), compiled(done)
        name = next((name for name in left if name in ready), None)
        if name is not None:
            yield name, left.pop(name)
        elif ended:
            return
        else:
            time.sleep(0.1)


def gain(name: str, problem: Problem, direction: Direction, timings: Path) -> dict[str, Any]:
    """A row: what is chosen how, and what each takes."""
    without, shipped = candidates(Task(problem, direction))[0], by_plan(problem, direction)
    start = time.monotonic()
    named = {"estimate": without, "table": shipped}
    if is_brief(name):
        named = {"estimate": without}
    else:
        search.tune(problem, directions=(direction,), timings=timings)
        named["tuned"] = by_plan(problem, direction)
    taken = time.monotonic() - start
    other = by_file(name, problem, direction)
    named |= {} if other is None else {"other": other}
    distinct = list(dict.fromkeys(named.values()))
    with own_stream(problem.device), torch.no_grad():
        calls = dict(enumerate(search._calls(Task(problem, direction), distinct)))
        found = time_cold(calls, problem.device, AGAIN) if len(calls) > 1 else {}
    row: dict[str, Any] = {"class": ProblemClass.of(problem).in_words(), "tuning_seconds": taken}
    for how, (backend, config) in named.items():
        timing = found.get(distinct.index((backend, config)))
        row[how] = {"backend": backend.name, "config": settings(config), "seconds": timing and timing.median}
    return row


# --- what it says ------------------------------------------------------------------------------------------


def gains(path: Path) -> None:
    """Of every choice against the fastest candidate, by pass, of the suite and of random problems."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    compared = [row for row in rows if "other" in row and row["other"] != row["estimate"]]
    ratios = [row["estimate"]["seconds"] / row["other"]["seconds"] for row in compared]
    if ratios:
        mean = exp(sum(map(log, ratios)) / len(ratios))
        most = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"estimate over other: {mean:.4f} in the mean, {most}, of {len(ratios)} passes that differ")
    rows = [row for row in rows if "tuned" in row]
    for direction in get_args(Direction):
        for what, drawn in (("suite", False), ("random", True)):
            own = [r for r in rows if r["direction"] == direction and is_random(r["problem"]) == drawn]
            for how in ("estimate", "other", "table"):
                ratios = list(losses(own, how))
                if ratios:
                    mean, worst = exp(sum(map(log, ratios)) / len(ratios)), max(ratios)
                    words = f"{100 * (mean - 1):6.2f}% longer than tuned in the mean, {100 * (worst - 1):4.0f}% at most"
                    print(f"{what:7} {direction:9} {how:9} {len(ratios):4} problems: {words}")


def losses(rows: list[dict[str, Any]], how: str) -> Iterator[float]:
    """A choice's time over the tuned one's, both timed once more: by chance it may be shorter."""
    for row in rows:
        if how not in row:
            continue
        one, best = row[how]["seconds"], row["tuned"]["seconds"]
        yield 1.0 if one is None else one / best


# --- a table -----------------------------------------------------------------------------------------------


def table_of(before: Path, timings: Path, files: Sequence[Path]) -> Table:
    """What is shipped: the entries of the table that is there, if one is, and those of all passes in files of gains.

    With what these passes' candidates took, by the raw timings: of several versions the last.
    """
    own: dict[tuple[str, Direction], dict[Versions, dict[Problem, list[Measured]]]] = {}
    for row in read(timings):
        versions = own.setdefault((ProblemClass.of(row.problem).in_words(), row.direction), {})
        versions.setdefault(row.versions, {}).setdefault(row.problem, []).append(row)
    device = row.device
    found = Table.from_json(before.read_text()) if before.exists() else Table(device)
    assert found.device == device, f"{device} is not {found.device}"
    for key, again in timed_again(files).items():
        if key in own:
            ((problem, rows), *_) = list(own[key].values())[-1].items()
            timed = {(r.backend, repr(r.config)): Timed(r.backend, as_now(r.backend, r.config), r.median) for r in rows}
            fastest = first_in_turns(fastest_first(timed.values()), again)[:EXPORTED]
            fastest = tuple(replace(each, seconds=float(f"{each.seconds:.4g}")) for each in fastest)
            found.add(Entry(ProblemClass.of(problem), key[1], rows[0].versions, problem.in_words(), fastest))
    return Table(found.device, {entry.key: entry for entry in found.latest().values()}, found.fitted)


def as_now(backend: str, config: Settings) -> Settings:
    """Settings of an earlier day: what there was not then is as it was."""
    return settings(CONFIGS[backend].of_settings(config))


def timed_again(files: Iterable[Path]) -> dict[tuple[str, Direction], dict[str, Any]]:
    """The rows of files of gains by class of problem and pass: of a class the first, by which it was tuned."""
    found: dict[tuple[str, Direction], dict[str, Any]] = {}
    for path in files:
        for row in [json.loads(line) for line in path.read_text().splitlines()][1:]:
            if "tuned" in row:
                found.setdefault((row["class"], row["direction"]), row)
    return found


def first_in_turns(timings: Sequence[Timed], row: dict[str, Any]) -> tuple[Timed, ...]:
    """The timings with what was the fastest in a row of gains first, its time scaled to theirs.

    Timed in turns with few others and more often, it says more than the fastest of many does.
    """
    timed = [row[how] for how in ("estimate", "table", "tuned") if how in row and row[how]["seconds"]]
    if not timed or not row["tuned"]["seconds"]:
        return tuple(timings)
    best = min(timed, key=lambda each: each["seconds"])
    seconds = timings[0].seconds * best["seconds"] / row["tuned"]["seconds"]
    backend, config = best["backend"], as_now(best["backend"], best["config"])
    others = [t for t in timings if (t.backend, t.config) != (backend, config)]
    return Timed(backend, config, min(seconds, timings[0].seconds)), *others


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "compile":
        compile_all(Path(rest[0]), int(rest[1]), float(rest[2]), int(rest[3]))
    elif what == "measure":
        measure(Path(rest[0]), Path(rest[1]), int(rest[2]), float(rest[3]))
    elif what == "table":
        table, timings, *files = map(Path, rest)
        write_text(table, table_of(table, timings, files).to_json())
    elif what == "prune":
        table, timings = map(Path, rest)
        write_text(table, pruned(Table.from_json(table.read_text()), timings).to_json())
    elif what == "choose":
        print(json.dumps(choose(Path(rest[0]), int(rest[1]))))
    else:
        gains(Path(rest[0]))
