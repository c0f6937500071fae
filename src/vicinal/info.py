"""`vicinal info`: versions, devices, each backend's verdict. Plain text, so that it runs with torch alone."""

from __future__ import annotations

import shutil

import torch

from vicinal import dispatch
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.machine import device_name, devices, versions
from vicinal.problem import Problem
from vicinal.words import labelled, wrapped


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


def print_info() -> None:
    """Versions, devices, and for each backend whether it can run a typical problem on each device."""
    print(text(shutil.get_terminal_size().columns))


def text(width: int) -> str:
    """What `print_info` prints, in lines of `width` columns."""
    lines = [line for name, version in versions().items() for line in labelled(name, version, width)]
    for device in devices():
        problem = typical_problem(device)
        lines += [
            "",
            f"{device}: {device_name(device)}",
            *wrapped(f"a typical problem here, {problem.in_words()}:", width),
        ]
        for name in dispatch.BACKENDS:
            reason = dispatch.unsupported(name, problem)
            runs = "runs" if name in dispatch.AUTOMATIC else "runs, when named"
            lines += labelled(name, runs if reason is None else f"no: {reason}", width)
    return "\n".join(lines)
