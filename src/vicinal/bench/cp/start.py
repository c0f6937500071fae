"""The processes of `vicinal bench cp`: those of torchrun, or some that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from vicinal.bench.cp import page
from vicinal.bench.cp.run import Point
from vicinal.bench.cp.run import run as measure

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE = timedelta(minutes=2)  # with a rank that has failed, or that compiles


def is_started() -> bool:
    """Whether this is one of torchrun's processes."""
    return "RANK" in os.environ


def is_first() -> bool:
    """Whether this process tells of the results."""
    return os.environ.get("RANK", "0") == "0"


def processes(device: str, count: int | None, arguments: Sequence[str]) -> int:
    """Runs the same command in processes of their own; the exit code."""
    count = count or (torch.cuda.device_count() if device == "cuda" else 2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run([*torchrun, "-m", "vicinal", *arguments], check=False).returncode


def run(
    device: str,
    seconds: float,
    only: str | None,
    methods: Sequence[str] | None,
    json: Path | None,
    command: str,
    console: Console,
) -> bool:
    """Measures on all processes; whether every result is right."""
    rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    on = torch.device(device, rank) if device == "cuda" else torch.device(device)

    def told(point: Point) -> None:
        console.print(page.in_words(point), soft_wrap=True, highlight=False)

    try:
        record = measure(on, seconds, command, json, told, only, methods)
    finally:
        dist.destroy_process_group()
    return not any(point["status"].startswith("wrong") for point in record["points"])
