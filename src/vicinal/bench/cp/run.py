"""Strong and weak scaling of context parallelism, measured by all ranks of a job together.

Before a method is timed, its output and gradients on every rank are held against those of one process. Times are of
the slowest rank, medians over calls. The record, schema 1, is one JSON object: kind, schema, date, command, machine,
versions, ranks, complete, and `points`: problem, lengths, mode ("strong": the same map on more ranks; "weak": a map
that grows with them), method ("one process" is the whole map, or a rank's part of it where weak, without
communication), ranks, passed ("forward" or "both"), status ("ok", or why not), seconds, bytes (sent by the rank that
sends most), peak_bytes (of the rank with most, on CUDA: its tensors and what the call allocates), error (largest
difference to one process, over the largest value), and where it overlaps: exchange_seconds, launches_seconds (alone),
hidden (share of the exchange that is).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from vicinal.bench.cp.methods import METHODS, OVERLAPPED, Attend, elements
from vicinal.bench.measure import words
from vicinal.distributed import Halo, Layout
from vicinal.distributed.exchange import Exchange, Pair, gathered
from vicinal.files import write_text
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.machine import machine, versions
from vicinal.torch_internals import wait

KIND, SCHEMA = "vicinal bench cp", 1
ONE = "one process"
ALLOWED = {torch.bfloat16: 0.03, torch.float32: 1e-4}  # of the largest value, against one process
CALLS = 10  # timed, at most
ENOUGH = 1.0  # seconds of a method's calls, where that makes three
FORWARD, BOTH = "forward", "both"


@dataclass(frozen=True)
class Problem:
    """A map, cut along `axis`; where weak, `lengths` are of one rank."""

    name: str
    lengths: tuple[int, ...]
    heads: int
    head_dim: int
    window: Neighborhood
    axis: int
    mode: str = "strong"

    def whole(self, ranks: int) -> tuple[int, ...]:
        """The lengths of the map that so many ranks hold."""
        grown = ranks if self.mode == "weak" else 1
        return tuple(n * grown if i == self.axis else n for i, n in enumerate(self.lengths))


_VIDEO = Neighborhood.of(3, (18, 24, 24))
_CIRCLE = Neighborhood.of(2, 31, boundary=("shift", "wrap"))
PROBLEMS = {
    "cuda": (
        Problem("video in height", (30, 48, 80), 24, 128, _VIDEO, 1),
        Problem("image", (512, 512), 24, 128, Neighborhood.of(2, 80), 0),
        Problem("sequence", (262_144,), 16, 128, Neighborhood.of(1, 2048), 0),
        Problem("weather in longitude", (721, 1440), 16, 48, _CIRCLE, 1),
        Problem("video in time", (30, 48, 80), 24, 128, _VIDEO, 0),
        Problem("video in width", (30, 48, 80), 24, 128, _VIDEO, 2),
        Problem("image", (256, 512), 24, 128, Neighborhood.of(2, 80), 0, "weak"),
        Problem("sequence", (131_072,), 16, 128, Neighborhood.of(1, 2048), 0, "weak"),
    ),
    "cpu": (
        Problem("image", (64, 48), 4, 32, Neighborhood.of(2, 13), 0),
        Problem("weather in longitude", (24, 72), 4, 32, Neighborhood.of(2, 7, boundary=("shift", "wrap")), 1),
        Problem("sequence", (2048,), 4, 32, Neighborhood.of(1, 127), 0, "weak"),
    ),
}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}


@dataclass
class Point:
    """What was measured of one method on one problem."""

    problem: str
    lengths: tuple[int, ...]
    mode: str
    method: str
    ranks: int
    passed: str
    status: str
    seconds: float | None = None
    bytes: int = 0
    peak_bytes: int | None = None
    error: float | None = None
    exchange_seconds: float | None = None
    launches_seconds: float | None = None
    hidden: float | None = None


def run(
    device: torch.device,
    seconds: float,
    command: str,
    path: Path | None,
    told: Callable[[Point], None],
    only: str | None = None,
    methods: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Every method on every problem, on all ranks of the default process group; rank 0 writes and tells.

    Args:
        seconds: begin nothing new after so long.
        only: problems with this in their name.
        methods: of `METHODS`, all if None.
    """
    ranks, first = dist.get_world_size(), dist.get_rank() == 0
    record: dict[str, Any] = {
        "kind": KIND,
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine(device),
        "versions": versions(),
        "ranks": ranks,
        "complete": False,
        "points": [],
    }
    end = time.monotonic() + seconds
    for problem in PROBLEMS[device.type]:
        if only is not None and only not in problem.name:
            continue
        for point in _measured(problem, methods or tuple(METHODS), device, end):
            record["points"].append(asdict(point))
            if first:
                told(point)
                if path is not None:
                    write_text(path, json.dumps(record, indent=1) + "\n")
    record["complete"] = True
    if first and path is not None:
        write_text(path, json.dumps(record, indent=1) + "\n")
    return record


def _measured(problem: Problem, methods: Sequence[str], device: torch.device, end: float) -> Iterator[Point]:
    """The points of one problem."""
    ranks = dist.get_world_size()
    lengths = problem.whole(ranks)
    mesh = init_device_mesh(device.type, (ranks,), mesh_dim_names=("cp",))
    layout = Layout.of(mesh, {"cp": problem.axis}, lengths)
    tensors = _tensors(problem, lengths, device)
    truth = _truth(problem.window, layout, tensors)
    shards = [layout.local(t).contiguous() for t in tensors]

    def window_only(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return neighborhood_attention(query, key, value, problem.window)

    part = tuple(slice(0, n) for n in (1, *problem.lengths))  # all of it, unless weak
    alone = [t[part].contiguous() for t in tensors]
    yield from _points(problem, ONE, window_only, alone, None, lengths, device, end)
    del alone, tensors
    for name in methods:
        if name == "Ulysses" and problem.heads % ranks:
            continue
        points = _points(problem, name, METHODS[name](problem.window, layout), shards, truth, lengths, device, end)
        for point in points:
            sent = [elements(name, problem.window, layout, problem.heads, problem.head_dim, r) for r in range(ranks)]
            point.bytes = max(sent) * shards[0].element_size() * (2 if point.passed == BOTH else 1)
            if name == OVERLAPPED and point.status == "ok":
                _hidden(point, problem.window, layout, shards, device)
            yield point


def _tensors(problem: Problem, lengths: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Query, key, value and the gradient from above, of the whole map, the same on every rank."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, *lengths, problem.heads, problem.head_dim)
    return [torch.randn(shape, generator=generator, device=device, dtype=DTYPES[device.type]) for _ in range(4)]


def _truth(window: Neighborhood, layout: Layout, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Our shards of what one process finds: output and gradients."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return neighborhood_attention(query, key, value, window)

    return [layout.local(t).contiguous() for t in _both(attend, tensors)]


def _both(attend: Attend, tensors: Sequence[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    output = attend(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, tensors[3])]


def _points(
    problem: Problem,
    name: str,
    attend: Attend,
    tensors: Sequence[Tensor],
    truth: Sequence[Tensor] | None,
    lengths: tuple[int, ...],
    device: torch.device,
    end: float,
) -> Iterator[Point]:
    """Of both passes."""

    def forward() -> object:
        with torch.no_grad():
            return attend(*tensors[:3])

    error: float | None = None
    for passed, call in ((FORWARD, forward), (BOTH, lambda: _both(attend, tensors))):
        point = Point(problem.name, lengths, problem.mode, name, dist.get_world_size(), passed, "ok")
        if _most(float(time.monotonic() > end), device):
            point.status = "no time was left"
            yield point
            continue
        try:
            if truth is not None and error is None:
                error = _most(max(_difference(a, b) for a, b in zip(_both(attend, tensors), truth)), device)
            point.error = error
            if error is not None and not error <= ALLOWED[tensors[0].dtype]:
                point.status = f"wrong: differs by {error:.2g}"
            else:
                others = _others_bytes(tensors, device)
                point.seconds = _timed(call, device)
                if device.type == "cuda":
                    point.peak_bytes = int(_most(float(torch.cuda.max_memory_allocated() - others), device))
        except Exception as failure:  # of all ranks, as of memory; where only some fail, torch's timeout ends the rest
            point.status = f"failed: {words(failure)}"
            print(f"rank {dist.get_rank()}, {problem.name}, {name}: {point.status}", file=sys.stderr, flush=True)
        yield point


def _others_bytes(tensors: Sequence[Tensor], device: torch.device) -> int:
    """What is allocated besides these tensors; from here on the peak of all is measured."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() - sum(t.nbytes for t in tensors)


def _difference(found: Tensor, true: Tensor) -> float:
    return float((found - true).abs().max() / true.abs().max())


def _timed(call: Callable[[], object], device: torch.device, least: int = 3) -> float:
    """Seconds of a call on the slowest rank: the median over calls that all ranks make together."""
    for _ in range(2):
        call()
    samples: list[float] = []
    begun = time.monotonic()
    while len(samples) < least or (
        len(samples) < CALLS and not _most(float(time.monotonic() - begun > ENOUGH), device)
    ):
        dist.barrier()
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            call()
            stop.record()
            torch.cuda.synchronize()
            samples.append(start.elapsed_time(stop) / 1e3)
        else:
            before = time.perf_counter()
            call()
            samples.append(time.perf_counter() - before)
    return _most(median(samples), device)


def _most(number: float, device: torch.device) -> float:
    """The largest on any rank."""
    shared = torch.tensor([number], dtype=torch.float64, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return float(shared)


def _hidden(point: Point, window: Neighborhood, layout: Layout, shards: Sequence[Tensor], device: torch.device) -> None:
    """What exchange and launches take alone, and so how much of the exchange is hidden behind them."""
    plan = Halo((window.resolve(layout.lengths),), layout.lengths, layout.shards)
    exchange = Exchange(plan, layout.rank, layout.group.group_name)
    held = Pair(shards[1], shards[2])
    both = point.passed == BOTH

    def exchanged() -> Tensor:
        came = wait(exchange.start(held))
        return wait(exchange.start_home(came, held)) if both else came

    came = wait(exchange.start(held))
    sources = exchange.own(held) + exchange.others(came, held)
    launches = []
    for part in plan.parts(layout.rank):
        box = layout.shard
        cuts = [
            t[(slice(None), *(slice(a - first, b - first) for (a, b), (first, _) in zip(part.queries, box)))]
            for t in (shards[0], shards[3])
        ]
        spans = plan.spans(part)
        query, above = (t.contiguous() for t in cuts)
        launches.append((spans, [query, *gathered(sources, part.keys), above]))

    def launched() -> None:
        for spans, tensors in launches:

            def attend(query: Tensor, key: Tensor, value: Tensor, spans: Any = spans) -> Tensor:
                return neighborhood_attention(query, key, value, window, spans=spans)

            if both:
                _both(attend, tensors)
            else:
                with torch.no_grad():
                    attend(*tensors[:3])

    point.exchange_seconds, point.launches_seconds = _timed(exchanged, device), _timed(launched, device)
    if point.exchange_seconds and point.seconds is not None:
        shown = (point.seconds - point.launches_seconds) / point.exchange_seconds
        point.hidden = min(max(1 - shown, 0.0), 1.0)
