"""What an image of a size never seen costs: its first forward and backward, against the same call again.

For each family of sizes (`FAMILIES`) three calls warm up, then every call has another size. Kernels are compiled into
an empty cache, so that the first calls pay for all of them. The first and the last size are checked: output and
gradients against torch's operations in float32.

The record, schema 1, is one JSON object: kind, schema, date, command, machine, versions, seed, and `families`: for each
its name, the system ("vicinal", or "FlexAttention": dynamic shapes, its block mask made anew), status ("ok", "budget":
time ran out, "failed", "wrong") and reason; `sizes`: a list of lengths with the seconds of the first call and of the
repeated one; `compilations`: by kernel, how many there are in the end; `warm_up`: seconds of the three first calls.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from vicinal.bench.cases import random_inputs
from vicinal.bench.masks import flex_block_mask
from vicinal.bench.measure import words
from vicinal.files import write_text
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.machine import machine, versions
from vicinal.problem import Inputs, Problem
from vicinal.words import by

KIND, SCHEMA = "vicinal bench new-sizes", 1
WARM_UP = 3
REPEATED = 3  # calls of the same size again, of which the median counts
AGREE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative errors, root mean square
OURS, FLEX = "vicinal", "FlexAttention"

Call = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Family:
    """Problems that differ in their lengths only.

    Attributes:
        device: type of device it is meant for.
        spans: least and most tokens along each axis.
    """

    name: str
    device: str
    spans: tuple[tuple[int, int], ...]
    window: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    has_rpb: bool = False

    def problem(self, rng: random.Random, device: torch.device) -> Problem:
        """One of any lengths."""
        lengths = tuple(rng.randint(*span) for span in self.spans)
        neighborhood = (Neighborhood.of(len(lengths), self.window).resolve(lengths),)
        sizes = (self.heads, self.heads, self.head_dim, self.head_dim, self.dtype, device)
        return Problem(1, lengths, *sizes, neighborhood, self.head_dim**-0.5, has_rpb=self.has_rpb)


_BF16 = torch.bfloat16
FAMILIES = (
    Family("2-D 120..200 x 160..333 H2 D32 window 7 rpb", "cuda", ((120, 200), (160, 333)), 7, 2, 32, _BF16, True),
    Family("2-D 30..50 x 40..84 H8 D64 window 7", "cuda", ((30, 50), (40, 84)), 7, 8, 64, _BF16),
    Family("1-D 2000..20000 H8 D64 window 127", "cuda", ((2000, 20_000),), 127, 8, 64, _BF16),
    Family("3-D 8..24 x 20..40 x 20..60 H8 D64 window 5", "cuda", ((8, 24), (20, 40), (20, 60)), 5, 8, 64, _BF16),
    Family("2-D 20..40 x 20..60 H2 D32 window 7", "cpu", ((20, 40), (20, 60)), 7, 2, 32, torch.float32),
)


@dataclass(frozen=True)
class Run:
    """What is measured.

    Attributes:
        sizes: after the three that warm up.
        seconds: of one family and system, at most.
    """

    device: torch.device
    families: tuple[Family, ...]
    sizes: int = 50
    seconds: float = 40.0
    seed: int = 0
    flex: bool = True
    command: str = ""


def measure(run: Run, path: Path | None, tell: Callable[[str], None]) -> dict[str, Any]:
    """The record of a run, written after every family."""
    record: dict[str, Any] = {
        "kind": KIND,
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": run.command,
        "machine": machine(run.device),
        "versions": versions(),
        "seed": run.seed,
        "families": [],
    }
    for family in run.families:
        for system in (OURS, FLEX) if run.flex and not family.has_rpb else (OURS,):
            with _empty_cache():
                found = _family(run, family, system)
            record["families"].append({"name": family.name, "system": system, **found})
            tell(told(record["families"][-1]))
            if path is not None:
                write_text(path, json.dumps(record, indent=1) + "\n")
    return record


def told(found: dict[str, Any]) -> str:
    """A family in one line."""
    what = f"{found['name']}, {found['system']}: "
    if not found["sizes"]:
        return what + f"{found['status']}, {found['reason']}"
    more = [1e3 * (first - again) for _, first, again in found["sizes"]]
    again = median(1e3 * again for _, _, again in found["sizes"])
    counts = found["compilations"]
    kernels = f"; {max(counts.values())} compilations of a kernel at most" if counts else ""
    status = "" if found["status"] == "ok" else f" ({found['status']}: {found['reason']})"
    return what + (
        f"{len(more)} new sizes took {median(more):.2f} ms more (median; {max(more):.0f} at most) "
        f"than the {again:.2f} ms of the call again{kernels}{status}"
    )


def _family(run: Run, family: Family, system: str) -> dict[str, Any]:
    """What calls of any sizes took."""
    rng, start = random.Random(run.seed), time.monotonic()
    found: dict[str, Any] = {"status": "ok", "reason": None, "warm_up": [], "sizes": [], "compilations": {}}
    before = compilations()
    try:
        attend = partial(_flex_of(), run) if system == FLEX else _ours
        for i in range(WARM_UP + run.sizes):
            if time.monotonic() - start > run.seconds:
                found |= {"status": "budget", "reason": f"{run.seconds:.0f} s are over"}
                break
            problem = family.problem(rng, run.device)
            inputs = random_inputs(problem, i)
            first, results = _timed(run.device, partial(attend, problem), inputs)
            if i in (WARM_UP, WARM_UP + run.sizes - 1):
                error = _error(problem, inputs, results)
                if not error <= AGREE[problem.dtype]:
                    return found | {"status": "wrong", "reason": f"{by(problem.lengths)}: error {error:.2g}"}
            if i < WARM_UP:
                found["warm_up"].append(first)
                continue
            again = [_timed(run.device, partial(attend, problem), inputs)[0] for _ in range(REPEATED)]
            found["sizes"].append([list(problem.lengths), first, median(again)])
    except Exception as error:
        found |= {"status": "failed", "reason": words(error)}
    if system == OURS:
        now = compilations()
        found["compilations"] = {name: n - before.get(name, 0) for name, n in now.items() if n > before.get(name, 0)}
    return found


def _timed(device: torch.device, attend: Call, inputs: Inputs) -> tuple[float, list[Tensor]]:
    """Seconds of forward and backward, until the device is done, and the output and gradients."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    _wait(device)
    start = time.perf_counter()
    output = attend(Inputs(*leaves))  # type: ignore[arg-type]
    grads = torch.autograd.grad(output, [t for t in leaves if t is not None], torch.ones_like(output))
    _wait(device)
    return time.perf_counter() - start, [output.detach(), *grads]


def _ours(problem: Problem, inputs: Inputs, backend: str | None = None) -> Tensor:
    query, key, value, rpb = inputs.query, inputs.key, inputs.value, inputs.rpb
    return neighborhood_attention(
        query, key, value, problem.neighborhood, scale=problem.scale, rpb=rpb, backend=backend
    )


def _flex_of() -> Callable[[Run, Problem, Inputs], Tensor]:
    """FlexAttention, compiled once for shapes of any size."""
    import torch._functorch.config
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # one graph serves many backward passes
    compiled = torch.compile(flex_attention, dynamic=True)

    def attend(run: Run, problem: Problem, inputs: Inputs) -> Tensor:
        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (inputs.query, inputs.key, inputs.value))
        output: Tensor = compiled(q, k, v, block_mask=flex_block_mask(problem), scale=problem.scale)
        return output.transpose(1, 2).unflatten(1, problem.lengths)

    return attend


def _error(problem: Problem, inputs: Inputs, results: Sequence[Tensor]) -> float:
    """The largest relative error of the output and the gradients."""
    exact = Inputs(*(None if t is None else t.float() for t in inputs))  # type: ignore[arg-type]
    _, expected = _timed(problem.device, partial(_ours, problem, backend="torch"), exact)
    return max(
        float((found.double() - right.double()).norm() / right.double().norm().clamp_min(1e-30))
        for found, right in zip(results, expected)
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compilations() -> dict[str, int]:
    """How many kernels of each source this process has compiled, or found on disk."""
    try:
        from vicinal.backends.gpu.kernel_cache import held
    except ImportError:  # no Triton
        return {}
    return held()


@contextmanager
def _empty_cache() -> Iterator[None]:
    """Triton finds nothing on disk within it."""
    before = os.environ.get("TRITON_CACHE_DIR")
    with TemporaryDirectory(prefix="vicinal-new-sizes-", ignore_cleanup_errors=True) as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TRITON_CACHE_DIR"]
            else:
                os.environ["TRITON_CACHE_DIR"] = before
