"""Whether queries that need no halo get a launch of their own, which runs while the halo travels: by estimates.

Two launches take longer than one, by the tiles at their common border, and in the backward pass by keys that both
reach. The backends' estimates tell how much; a halo that travels at these rates tells what may be hidden.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import get_args

import torch

from vicinal import dispatch
from vicinal.backends.protocol import Direction
from vicinal.problem import Problem

NEAR = 2.0e11  # bytes a second between GPUs of a host: packed, sent over NVLink and received, on two H200
FAR = 4.0e10  # between hosts, over a link of 400 Gb/s
MEMORY = 2.0e9  # between processes on CPUs
LATENCY = 5e-5  # seconds, of an exchange
CLEARLY = 0.97  # of one launch's time, below which launches apart count as faster: nearer, estimates do not tell


def exchange_seconds(sent: int, device: torch.device, ranks: Sequence[int]) -> float:
    """An estimate for so many bytes of the rank that sends most, between these ranks of all."""
    if device.type != "cuda":
        return LATENCY + sent / MEMORY
    return LATENCY + sent / (NEAR if _on_one_host(ranks) else FAR)


def is_faster(whole: Problem, apart: Sequence[Problem], exchange: float, backend: str | None) -> bool:
    """Whether launches `apart`, the first of which needs no halo, end clearly before an exchange and one launch of all.

    Both passes together; False where no backend that runs them has estimates.
    """
    alone = together = 0.0
    for direction in get_args(Direction):
        one, *parts = (_seconds(problem, direction, backend) for problem in (whole, *apart))
        if one is None or None in parts:
            return False
        inside, *borders = (part or 0.0 for part in parts)
        alone += exchange + one
        together += max(exchange, inside) + sum(borders)
    return together < CLEARLY * alone


def _seconds(problem: Problem, direction: Direction, backend: str | None) -> float | None:
    chosen = dispatch.plan(problem, backend)
    if direction == "forward":
        return chosen.backend.seconds(problem, direction, chosen.forward)
    return chosen.gradients.seconds(problem, direction, chosen.backward)


def _on_one_host(ranks: Sequence[int]) -> bool:
    """As torchrun numbers ranks; where it did not start them, they are taken to be."""
    each = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or max(ranks) + 1
    return len({rank // each for rank in ranks}) == 1
