"""Time and peak memory of a training step against the number of tokens: self attention and windows of several sizes.

The model is a plain transformer over an image's or a video's tokens: `Setting.depth` blocks of neighborhood attention
and an MLP, tokens of 48 numbers (4x4 pixels in colour) in and out. A step is forward, mean squared error, backward and
AdamW, batch 1. Only what computes attention differs. Before a system is timed its output and gradients are held against
the float64 truth.

The record, schema 1, is one JSON object: kind, schema, date, command, machine, versions, complete, `setting` (see
`Setting`), and `points`: kind of data, system, window (null for self attention), lengths, tokens, status and reason,
seconds (see `measure.Timing`), expected (seconds of a step that was not run), peak_bytes (on CUDA of torch's allocator;
on Linux of the process, beyond what it took before the model was made). `status` is "ok"; "memory": it did not fit;
"time": a step would take longer than allowed, by the steps before; "budget": no time was left; "wrong" and "failed",
which end a system.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from math import log, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from vicinal.bench.cases import Case, random_inputs
from vicinal.bench.measure import Effort, Timing, time_calls, words
from vicinal.bench.memory import available, peak, resident, tidy, total
from vicinal.bench.truth import truth
from vicinal.dense import attend
from vicinal.files import write_text
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.machine import machine, versions
from vicinal.problem import Problem, dtype_name
from vicinal.words import by

KIND, SCHEMA = "vicinal bench scaling", 1
NUMBERS = 48  # of a token: 4x4 pixels, three colours
SECOND = 1.0  # what "trains in a second" means
REFINED = 8  # sides are multiples of so many tokens where the largest is looked for
SELF_ATTENTION = "self attention"
SHARE = 0.85  # of the memory that a host has left: a step that would take more by the last one is not run

EFFORT = Effort(samples=5, seconds=1.0, sample_seconds=0.0)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # heads-last, see `vicinal.problem`


@dataclass(frozen=True)
class Setting:
    """What is trained, and on what.

    Attributes:
        depth, heads, head_dim: of the model; its width is their product.
        dtype: of autocast; float32 is none.
        checkpointing: whether blocks are computed again in the backward pass instead of kept.
        windows: by kind of data; self attention comes first.
        shapes: by kind of data, in growing order.
        longest: seconds; a step that would take longer is not run.
    """

    depth: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    windows: dict[str, tuple[tuple[int, ...], ...]]
    shapes: dict[str, tuple[tuple[int, ...], ...]]
    checkpointing: bool = False
    longest: float = 5.0

    def plain(self) -> dict[str, Any]:
        """For the record."""
        return {**asdict(self), "dtype": dtype_name(self.dtype)}


def _videos(*sides: int) -> tuple[tuple[int, ...], ...]:
    return tuple((side // 2, side, side) for side in sides)


def _images(*sides: int) -> tuple[tuple[int, ...], ...]:
    return tuple((side, side) for side in sides)


SETTINGS = {
    "cuda": Setting(
        depth=12,
        heads=12,
        head_dim=64,
        dtype=torch.bfloat16,
        windows={"images": ((7, 7), (15, 15), (31, 31)), "video": ((3, 7, 7), (7, 11, 11), (9, 17, 17))},
        shapes={"images": _images(32, 64, 128, 256, 512, 1024), "video": _videos(20, 32, 48, 64, 96, 128)},
    ),
    "cpu": Setting(
        depth=2,
        heads=4,
        head_dim=64,
        dtype=torch.float32,
        windows={"images": ((7, 7), (15, 15)), "video": ((3, 7, 7), (5, 9, 9))},
        shapes={"images": _images(16, 32, 48, 64, 96, 128, 192, 256), "video": _videos(10, 16, 24, 32, 48, 64)},
    ),
}


@dataclass
class Point:
    """One system at one size."""

    kind: str
    system: str
    window: tuple[int, ...] | None
    lengths: tuple[int, ...]
    status: str
    reason: str | None = None
    seconds: Timing | None = None
    peak_bytes: int | None = None
    expected: float | None = None  # seconds of a step that was not run
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = prod(self.lengths)

    @property
    def step(self) -> float | None:
        """Seconds of a step, measured or expected."""
        return self.expected if self.seconds is None else self.seconds.median


class Model(nn.Module):
    """Tokens `[B, *X, NUMBERS]` to the same, attention by `attend`."""

    def __init__(self, setting: Setting, attend: Attend) -> None:
        super().__init__()
        dim = setting.heads * setting.head_dim
        self.first, self.last = nn.Linear(NUMBERS, dim), nn.Linear(dim, NUMBERS)
        self.blocks = nn.ModuleList(_Block(setting, attend) for _ in range(setting.depth))
        self.norm = nn.LayerNorm(dim)
        self.checkpointing = setting.checkpointing

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        return self.last(self.norm(x))


class _Block(nn.Module):
    def __init__(self, setting: Setting, attend: Attend) -> None:
        super().__init__()
        dim = setting.heads * setting.head_dim
        self.heads, self.attend = setting.heads, attend
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        x = x + self.proj(self.attend(query, key, value).flatten(-2))
        return x + self.mlp(self.norm2(x))


def run(
    setting: Setting,
    device: torch.device,
    command: str,
    path: Path | None = None,
    seconds: float = float("inf"),
    effort: Effort = EFFORT,
    told: Callable[[Point], None] = lambda point: None,
) -> dict[str, Any]:
    """Measure every system at growing sizes, within `seconds` in all; the record, which is written after each point."""
    record: dict[str, Any] = {
        "kind": KIND,
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine(device) | {"memory": total(device)},
        "versions": versions(),
        "complete": False,
        "setting": setting.plain(),
        "points": [],
    }
    end = time.monotonic() + seconds
    with suppress(Exception):  # what a process loads once is no system's memory
        _measured(setting, attend_with(None), min(min(x) for x in setting.shapes.values()), device, effort)
    systems = [(kind, window) for kind in setting.shapes for window in (None, *setting.windows[kind])]
    for i, (kind, window) in enumerate(systems):
        now = time.monotonic()
        share = now + (end - now) / (len(systems) - i)  # what one leaves, the next have
        for point in _system(setting, kind, window, device, effort, share):
            record["points"].append(asdict(point))
            told(point)
            if path is not None:
                write_text(path, json.dumps(record, indent=1) + "\n")
    record["complete"] = True
    if path is not None:
        write_text(path, json.dumps(record, indent=1) + "\n")
    return record


def _system(
    setting: Setting, kind: str, window: tuple[int, ...] | None, device: torch.device, effort: Effort, end: float
) -> Iterator[Point]:
    """Growing sizes until one does not fit or takes too long; then the largest that fits, and that takes a second."""
    name = SELF_ATTENTION if window is None else f"window {by(window)}"
    shapes = [x for x in setting.shapes[kind] if window is None or all(k <= n for k, n in zip(window, x))]
    make = partial(Point, kind, name, window)
    fault = _fault(setting, window, shapes[0], device)
    if fault is not None:
        yield make(shapes[0], *fault)
        return
    done: list[Point] = []
    for lengths in shapes:
        point = _point(make, setting, lengths, done, device, effort, end)
        yield point
        if point.status != "ok":
            break
        done.append(point)
    too_large = [point] if point.status in ("memory", "time") else []
    for wanted in (SECOND, None):
        for _ in range(2):
            between = _between(done, too_large, wanted)
            if between is None:
                break
            point = _point(make, setting, between, done, device, effort, end)
            yield point
            if point.status not in ("ok", "memory"):
                return
            (done if point.status == "ok" else too_large).append(point)
            done.sort(key=lambda p: p.tokens)


def _between(done: Sequence[Point], too_large: Sequence[Point], wanted: float | None) -> tuple[int, ...] | None:
    """A size between those that were run: nearer to a step of `wanted` seconds, or (None) to the largest that fits."""
    below = [p for p in done if wanted is None or (p.seconds is not None and p.seconds.median <= wanted)]
    if not below:
        return None
    low = below[-1]
    ends = ("memory",) if wanted is None else ("memory", "time")
    above = [p for p in (*done, *too_large) if p.tokens > low.tokens and p.status in ("ok", *ends)]
    if not above:
        return None
    high = min(above, key=lambda p: p.tokens)
    share = 0.5
    if wanted is not None and high.step is not None and low.step is not None:
        share = log(wanted / low.step) / log(high.step / low.step)
    side = round(low.lengths[-1] * (high.lengths[-1] / low.lengths[-1]) ** share / REFINED) * REFINED
    if not low.lengths[-1] < side < high.lengths[-1]:
        return None
    return _scaled(low.lengths, side)


def _scaled(lengths: Sequence[int], side: int) -> tuple[int, ...]:
    return tuple(n * side // lengths[-1] for n in lengths)


def _point(
    make: Callable[..., Point],
    setting: Setting,
    lengths: tuple[int, ...],
    done: Sequence[Point],
    device: torch.device,
    effort: Effort,
    end: float,
) -> Point:
    expected = _expected(done, prod(lengths))
    if expected is not None and expected > setting.longest:
        return make(lengths, "time", f"a step would take about {expected:.3g} s", expected=expected)
    if time.monotonic() + 4 * (expected or 0.0) > end:
        return make(lengths, "budget", "no time was left")
    needed = _needed(done, prod(lengths))
    if device.type == "cpu" and needed is not None and needed > SHARE * available():
        return make(lengths, "memory", f"a step would take about {needed / 2**30:.3g} GiB")
    attention = attend_with(make(lengths, "").window)
    try:
        timing, most = _measured(setting, attention, lengths, device, effort)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return make(lengths, "memory", words(error))
    except Exception as error:
        return make(lengths, "failed", words(error))
    return make(lengths, "ok", None, timing, most)


def _expected(done: Sequence[Point], tokens: int) -> float | None:
    """Seconds of a step by the last two, which grow with a power of the tokens between 1 and 2."""
    timed = [(p.tokens, p.seconds.median) for p in done if p.seconds is not None and p.tokens < tokens]
    if not timed:
        return None
    (n, t) = timed[-1]
    power = 1.0
    if len(timed) > 1:
        m, s = timed[-2]
        power = min(2.0, max(1.0, log(t / s) / log(n / m)))
    return t * (tokens / n) ** power


def _needed(done: Sequence[Point], tokens: int) -> float | None:
    known = [p for p in done if p.peak_bytes is not None and p.tokens < tokens]
    return known[-1].peak_bytes * tokens / known[-1].tokens if known and known[-1].peak_bytes is not None else None


def attend_with(window: tuple[int, ...] | None) -> Attend:
    """Neighborhood attention of a window, or the fastest self attention that torch has."""
    if window is None:
        return _self_attention
    neighborhood = Neighborhood.of(len(window), window)

    def windows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return neighborhood_attention(query, key, value, neighborhood)

    return windows


def _self_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (t.flatten(1, -3) for t in (query, key, value))
    fastest = sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True)
    with fastest if query.device.type == "cuda" else nullcontext():
        output, _ = attend(q, k, v, False, query.shape[-1] ** -0.5, False)
    return output.unflatten(1, query.shape[1:-2])


def _fault(
    setting: Setting, window: tuple[int, ...] | None, lengths: tuple[int, ...], device: torch.device
) -> tuple[str, str] | None:
    """Whether a system's attention fails or is wrong, with its gradients, on the smallest problem: status and why."""
    problem = _case(setting, window, lengths).problem(device)
    try:
        inputs = random_inputs(problem)
        leaves = [t.requires_grad_() for t in inputs[:3]]
        output = attend_with(window)(*leaves)
        grad = torch.randn_like(output)
        got = dict(zip(("output", "dq", "dk", "dv"), (output.detach(), *torch.autograd.grad(output, leaves, grad))))
        inputs = inputs._replace(**{n: t.detach() for n, t in zip(("query", "key", "value"), leaves)})
        expected = truth(problem, inputs, grad)
        faults = expected.faults(expected.errors(got))
    except Exception as error:
        return "failed", words(error)
    return ("wrong", "; ".join(faults)) if faults else None


def _measured(
    setting: Setting, attend: Attend, lengths: tuple[int, ...], device: torch.device, effort: Effort
) -> tuple[Timing, int | None]:
    """Seconds of a step, and the most memory that one takes."""
    tidy(device)  # of the last model, which an error may have kept until now
    before = resident()
    torch.manual_seed(0)
    model = Model(setting, attend).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randn(1, *lengths, NUMBERS, dtype=torch.float32, device=device)
    half = setting.dtype != torch.float32

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, setting.dtype if half else torch.bfloat16, enabled=half):
            loss = mse_loss(model(tokens), tokens)
        loss.backward()
        optimizer.step()

    step()  # compiles what is new, and makes the optimizer's state
    most = peak(step, device, before)
    return time_calls({"": step}, device, effort)[""], most


def problems(setting: Setting, kind: str, window: tuple[int, ...], device: torch.device) -> list[Problem]:
    """The attention problems of a window at the sizes of the list, for `vicinal.precompile`."""
    return [
        _case(setting, window, x).problem(device)
        for x in setting.shapes[kind]
        if all(k <= n for k, n in zip(window, x))
    ]


def _case(setting: Setting, window: tuple[int, ...] | None, lengths: tuple[int, ...]) -> Case:
    neighborhood = Neighborhood.of(len(lengths), window).resolve(lengths)
    return Case("", lengths, neighborhood, setting.heads, setting.head_dim, dtype=setting.dtype)


def of_kinds(setting: Setting, kinds: Sequence[str]) -> Setting:
    """The setting with these kinds of data only."""
    return replace(
        setting, shapes={k: setting.shapes[k] for k in kinds}, windows={k: setting.windows[k] for k in kinds}
    )
