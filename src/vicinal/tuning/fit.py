"""`fit`: refits the constants of the estimates of Triton's and Hopper's kernels to raw timings of a GPU.

Least squares of the logarithms of estimated over measured times, in the logarithms of the constants, so that a
microsecond counts as a second does and constants stay positive: Levenberg-Marquardt with derivatives by differences. A
timing that is far from its estimate counts less (Cauchy's weights): it may be an outlier. A constant that the timings
say nothing of stays what it is: moving away has a price, as much as estimates are off (what a normal prior is to normal
errors of that size).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import exp, log
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vicinal.backends.gpu.hardware import ARCHITECTURES, Gpu, standing_for
from vicinal.backends.hopper import config as hopper_config
from vicinal.backends.hopper import estimate as hopper
from vicinal.backends.triton import config as triton_config
from vicinal.backends.triton import estimate as triton
from vicinal.tuning.timings import Measured

ESTIMATES: dict[str, Any] = {"triton": triton, "hopper": hopper}
CONFIGS: dict[str, Any] = {"triton": triton_config, "hopper": hopper_config}
FAR = 0.15  # logarithm of estimated over measured: a timing so far counts half
PRICE = 0.1  # of a constant's squared logarithm, against the mean squared error of a timing over the median's square
TINY = 1e-12
LEAST = 3  # timings per constant
STEP = 0.01  # of a constant's logarithm, for derivatives
ROUNDS = 40
ENOUGH = 1e-4  # relative gain of a round, below which the fit ends
HELD_OUT = 5  # every so many-th problem is not fitted to, to see what the fit is worth


@dataclass(frozen=True)
class Quality:
    """How close estimates are to timings.

    Attributes:
        timings: how many.
        error: half of the estimates are closer than this, relatively.
        problems: problems and passes of which several configurations were timed.
        lost: how much longer than the fastest of these takes what is estimated to be: geometric mean, and most.
    """

    timings: int
    error: float
    problems: int
    lost: tuple[float, float]

    def in_words(self) -> str:
        """For a report."""
        mean, most = (100 * x for x in self.lost)
        return (
            f"half of {self.timings} timings are met within {100 * self.error:.1f}%, the choice among those of "
            f"{self.problems} passes takes {mean:.1f}% longer than the fastest (at most {most:.0f}%)"
        )


@dataclass(frozen=True)
class Fit:
    """What came of it, of one backend.

    Attributes:
        constants: all of them, by name: "triton.clock".
        before, after: of all timings, with the usual constants and with these.
        held_out: of problems that were left out for it, likewise.
    """

    backend: str
    constants: dict[str, float]
    before: Quality
    after: Quality
    held_out: tuple[Quality, Quality]


def fit(rows: Sequence[Measured], backend: str) -> Fit:
    """Refit a backend's constants to timings of one GPU.

    Args:
        rows: timings; those of other backends are passed over.
        backend: "triton" or "hopper".

    Raises:
        ValueError: the timings are of several devices, or of none that is known, or are too few.
    """
    own = _of_backend(rows, backend)
    usual = ESTIMATES[backend].Constants()._asdict()
    if len(own) < LEAST * len(usual):
        raise ValueError(
            f"{backend} has {len(usual)} constants, which takes {LEAST * len(usual)} timings, got {len(own)}"
        )
    numbers = {problem: i for i, problem in enumerate(dict.fromkeys(row.problem for row in own))}
    aside = [row for row in own if numbers[row.problem] % HELD_OUT == HELD_OUT - 1]
    others = [row for row in own if numbers[row.problem] % HELD_OUT != HELD_OUT - 1]
    tried = _fitted(others, backend, usual) if aside else usual
    found = _fitted(own, backend, usual)
    return Fit(
        backend,
        {f"{backend}.{name}": float(f"{value:.4g}") for name, value in found.items()},
        quality(own, backend, usual),
        quality(own, backend, found),
        (quality(aside, backend, usual), quality(aside, backend, tried)),
    )


def quality(rows: Sequence[Measured], backend: str, constants: Mapping[str, float]) -> Quality:
    """How close the estimates with some constants are."""
    logs = _logs(rows, backend, constants).tolist()
    lost = []

    def of(each: tuple[Measured, float]) -> tuple[str, str]:
        return repr(each[0].problem), each[0].direction

    for _, group in groupby(sorted(zip(rows, logs), key=of), key=of):
        timed = [(row.median * exp(found), row.median) for row, found in group]
        if len(timed) > 1:
            lost.append(min(timed)[1] / min(taken for _, taken in timed))
    mean = exp(sum(map(log, lost)) / len(lost)) if lost else 1.0
    error = median(abs(exp(found) - 1) for found in logs) if logs else 0.0
    return Quality(len(rows), error, len(lost), (mean - 1, max(lost, default=1.0) - 1))


def _of_backend(rows: Sequence[Measured], backend: str) -> list[Measured]:
    if backend not in ESTIMATES:
        raise ValueError(f"backend must be one of {', '.join(ESTIMATES)}, got {backend!r}")
    own = [row for row in rows if row.backend == backend]
    devices = {(row.device, row.gpu) for row in own}
    if len(devices) > 1:
        raise ValueError(f"timings must be of one device, got {sorted({name for name, _ in devices})}")
    for _, gpu in devices:
        if gpu is None or gpu[0] not in ARCHITECTURES:
            raise ValueError(f"timings must be of a GPU of {', '.join(ARCHITECTURES)}, got {gpu}")
    return own


def _fitted(rows: Sequence[Measured], backend: str, start: Mapping[str, float]) -> dict[str, float]:
    """The constants that meet the timings best."""
    names = list(start)
    origin = torch.tensor([log(start[name]) for name in names], dtype=torch.float64, device="cpu")
    units = torch.eye(len(names), dtype=torch.float64, device="cpu")

    def residuals(at: Tensor) -> Tensor:
        return _logs(rows, backend, dict(zip(names, at.exp().tolist())))

    def loss(at: Tensor, found: Tensor, price: float) -> float:
        return float((FAR**2 * torch.log1p((found / FAR) ** 2)).mean() + price * ((at - origin) ** 2).sum())

    at, damping = origin.clone(), 1e-3
    found = residuals(at)
    for _ in range(ROUNDS):
        price = PRICE * float(found.abs().median()) ** 2 + TINY
        best = loss(at, found, price)
        weights = (1 / (1 + (found / FAR) ** 2) / len(rows)).sqrt()
        slopes = torch.stack([(residuals(at + STEP * unit) - found) / STEP for unit in units], 1)
        system = torch.cat([weights[:, None] * slopes, price**0.5 * units])
        rest = torch.cat([-weights * found, price**0.5 * (origin - at)])
        before = best
        while damping < 1e6:
            damped = torch.cat([system, damping**0.5 * system.norm(dim=0).diag()])
            move = torch.linalg.lstsq(damped, torch.cat([rest, torch.zeros_like(at)])).solution
            there = residuals(at + move)
            value = loss(at + move, there, price)
            if value < best:
                at, found, best, damping = at + move, there, value, damping / 4
                break
            damping *= 4
        if before - best <= ENOUGH * before:
            break
    return dict(zip(names, at.exp().tolist()))


def _logs(rows: Sequence[Measured], backend: str, constants: Mapping[str, float]) -> Tensor:
    """Logarithms of estimated over measured times."""
    if not rows:
        return torch.empty(0, dtype=torch.float64, device="cpu")
    assert rows[0].gpu is not None
    architecture, processors = rows[0].gpu
    named = tuple((f"{backend}.{name}", value) for name, value in constants.items())
    estimate, of_settings = ESTIMATES[backend].seconds, CONFIGS[backend].of_settings
    with standing_for(Gpu(ARCHITECTURES[architecture], processors, named)):
        each = [log(estimate(r.problem, r.direction, of_settings(r.config)) / r.median) for r in rows]
    return torch.tensor(each, dtype=torch.float64, device="cpu")
