"""What is here and what can run: versions, devices, each backend's verdict; and why a problem runs the way it does."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vicinal import dispatch
from vicinal._version import __version__
from vicinal.backends.protocol import Direction
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.work import waste
from vicinal.problem import Problem
from vicinal.tuning.config import TileConfig

if TYPE_CHECKING:
    from rich.console import Console

TILINGS_SHOWN = 3  # of the chosen backend
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def versions() -> dict[str, str]:
    """Versions of what results depend on; the commit where vicinal runs from a git checkout."""
    found = {"vicinal": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for package in ("triton", "numba"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    commit = _commit()
    if commit is not None:
        found["commit"] = commit
    return found


def machine(device: torch.device) -> dict[str, str | int | float]:
    """The device and the host, for records of measurements; `load` is the average of the last minute."""
    return {
        "device": device_name(device),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        "platform": platform.platform(),
    }


def devices() -> list[torch.device]:
    """The CPU and every CUDA (or ROCm) device."""
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]


def device_name(device: torch.device) -> str:
    """What the device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def typical_problem(device: torch.device) -> Problem:
    """An ordinary problem, to ask backends about: 2-D 64x64, 4 heads of 64, window 13; bfloat16 on a GPU."""
    return Problem(
        batch=1,
        lengths=(64, 64),
        heads=4,
        kv_heads=4,
        head_dim=64,
        value_dim=64,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        device=device,
        neighborhoods=(Neighborhood.of(2, 13),),
        scale=64**-0.5,
    )


def in_words(problem: Problem) -> str:
    """A problem in one line; what is usual is left out."""
    words = [
        "x".join(map(str, problem.lengths)),
        f"B{problem.batch} H{problem.heads}" + (f"/{problem.kv_heads}" if problem.kv_heads != problem.heads else ""),
        f"D{problem.head_dim}" + (f"/{problem.value_dim}" if problem.value_dim != problem.head_dim else ""),
        dtype_name(problem.dtype),
    ]
    if not problem.per_head:
        axes = problem.neighborhood
        words.append("window " + "x".join(map(str, axes.window)))
        if set(axes.stride) != {1}:
            words.append("stride " + "x".join(map(str, axes.stride)))
        if set(axes.dilation) != {1}:
            words.append("dilation " + "x".join(map(str, axes.dilation)))
        if any(axes.causal):
            words.append("causal on axis " + ", ".join(str(i) for i, c in enumerate(axes.causal) if c))
        if any(axis.boundary != "shift" for axis in axes.axes):
            words.append("boundary " + ",".join(axis.boundary for axis in axes.axes))
    return " ".join(words)


def print_info(console: Console) -> None:
    """Versions, devices, and for each backend whether it can run a typical problem on each device."""
    from rich.table import Table

    for name, version in versions().items():
        console.print(f"{name:>8}  {version}", highlight=False)
    for device in devices():
        problem = typical_problem(device)
        table = Table(title=f"{device}: {device_name(device)}", title_justify="left")
        table.add_column("backend")
        table.add_column(f"a typical problem here ({in_words(problem)})", overflow="fold")
        for name in dispatch.BACKENDS:
            reason = dispatch.unsupported(name, problem)
            automatic = "runs" if name in dispatch.AUTOMATIC else "runs, when named"
            table.add_row(name, f"[green]{automatic}[/]" if reason is None else f"[yellow]no:[/] {reason}")
        console.print()
        console.print(table)


def print_explanation(console: Console, problem: Problem) -> None:
    """Why `problem` runs on which backend with which tiling: verdicts, waste, FLOPs, bytes, intensity."""
    from rich.table import Table

    from vicinal.bench.roofline import intensity, least_bytes

    console.print(in_words(problem), highlight=False)
    dense = problem.batch * problem.heads * _tokens(problem) ** 2
    console.print(
        f"useful scores {problem.useful_scores:,}, {dense / problem.useful_scores:.3g}x fewer than self attention",
        highlight=False,
    )
    table = Table("pass", "useful GFLOP", "least MB moved", "FLOP per byte")
    for passed, flops in (("forward", problem.forward_flops), ("backward", problem.backward_flops)):
        moved = least_bytes(problem, passed)  # type: ignore[arg-type]
        ratio = intensity(problem, passed)  # type: ignore[arg-type]
        table.add_row(passed, f"{flops / 1e9:.4g}", f"{moved / 1e6:.4g}", f"{ratio:.3g}")
    console.print(table)

    verdicts = dispatch.explain(problem)
    chosen = _chosen(problem)
    table = Table("backend", "verdict")
    table.columns[1].overflow = "fold"
    for verdict in verdicts:
        table.add_row(verdict.name, _words(verdict, [d for d, name in chosen.items() if name == verdict.name]))
    console.print(table)

    table = Table("backend", "pass", "tiling", "query tile", "key tile", "warps, stages", "variant", "waste")
    for verdict in verdicts:
        for direction, configs in verdict.configs.items():
            shown = TILINGS_SHOWN if verdict.name == chosen.get(direction) else 1
            table.add_section()
            for place, config in enumerate(configs[:shown], 1):
                of = f"{place} of {len(configs)}"
                table.add_row(verdict.name, direction, of, *_tiling(problem, config))
    if table.row_count:
        console.print(table)
        console.print(
            "Tilings are in the backend's order; the first is used. Waste: scores of whole tiles over useful ones."
        )


def _chosen(problem: Problem) -> dict[Direction, str]:
    """The automatic choice for each pass; empty where no backend can run it."""
    try:
        plan = dispatch.plan(problem)
    except ValueError:
        return {}
    return {"forward": plan.backend.name, "backward": plan.gradients.name}


def _words(verdict: dispatch.Verdict, chosen: list[Direction]) -> str:
    """A verdict for the table; `chosen`: the passes that this backend runs."""
    if verdict.reason is not None:
        return f"no: {verdict.reason}"
    declined = [f"leaves the {d} pass to another: {why}" for d, why in verdict.declined.items() if why is not None]
    if chosen:
        return "; ".join((f"[green]chosen[/] for {' and '.join(chosen)}", *declined))
    if verdict.name not in dispatch.AUTOMATIC:
        return "could run it; only when named"
    return "; ".join(declined) if declined else "could run it; comes later in order of preference"


def _tiling(problem: Problem, config: TileConfig) -> tuple[str, str, str, str, str]:
    tiles, unfolded = (config.query_tile, config.key_tile), config.unfolded
    each = [waste(n, problem.lengths, *tiles, unfolded) for n in problem.neighborhoods]
    seen = "" if unfolded is None else f"groups of axis {unfolded} side by side"
    return (
        "x".join(map(str, config.query_tile)),
        "x".join(map(str, config.key_tile)),
        f"{config.warps}, {config.stages}" if problem.device.type == "cuda" else "-",
        f"{config.variant} {seen}".strip(),
        f"{sum(each) / len(each):.3g}",
    )


def _tokens(problem: Problem) -> int:
    tokens = 1
    for length in problem.lengths:
        tokens *= length
    return tokens


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    if not (Path(__file__).parents[2] / ".git").exists():  # installed, not a checkout
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
