"""The record of a benchmark run: what ran where, as JSON. Written after every case, so an interruption keeps the rest.

Schema 1, one object:
    kind: "vicinal bench"; schema: 1; date (UTC, ISO 8601); command; complete (false while running or interrupted);
    suite: its name or null; machine: device, cpu, cores, threads, load, platform; versions: of vicinal, torch, triton,
    python, and the commit; effort: see `measure.Effort`;
    limits: by dtype, measured: bandwidth in bytes/s, flops in FLOP/s; see `roofline.Limits`;
    cases: a list of objects, sizes as in `cases.Case` (window, stride, dilation, causal, boundary per axis), and
        useful_scores; least_bytes by pass; measurements: a list of `measure.Measurement` with all times in seconds
        ("pass" for the pass; eager and kernel are null or objects of median, lower, upper, samples, calls).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from vicinal.bench.cases import Case
from vicinal.bench.measure import Effort, Measurement, Timing
from vicinal.bench.roofline import Limits, least_bytes
from vicinal.files import write_text
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.machine import machine, versions
from vicinal.problem import DTYPES, Problem, dtype_name

SCHEMA = 1
KIND = "vicinal bench"


class Record:
    """A run in the making: add cases to it; `document` is the JSON object, `save` writes it."""

    def __init__(self, command: str, suite: str | None, device: torch.device, effort: Effort) -> None:
        self.document: dict[str, Any] = {
            "kind": KIND,
            "schema": SCHEMA,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": command,
            "complete": False,
            "suite": suite,
            "machine": machine(device),
            "versions": versions(),
            "effort": asdict(effort),
            "limits": {},
            "cases": [],
        }
        self.device = device

    def add_limits(self, dtype: torch.dtype, limits: Limits) -> None:
        self.document["limits"][dtype_name(dtype)] = asdict(limits)

    def add(self, case: Case, measurements: list[Measurement]) -> None:
        problem = case.problem(self.device)
        axes = case.neighborhood
        self.document["cases"].append(
            {
                "name": case.name,
                "lengths": list(case.lengths),
                "window": list(axes.window),
                "stride": list(axes.stride),
                "dilation": list(axes.dilation),
                "causal": list(axes.causal),
                "boundary": [axis.boundary for axis in axes.axes],
                "batch": problem.batch,
                "heads": problem.heads,
                "kv_heads": problem.kv_heads,
                "head_dim": problem.head_dim,
                "value_dim": problem.value_dim,
                "dtype": dtype_name(case.dtype),
                "useful_scores": problem.useful_scores,
                "least_bytes": {p: least_bytes(problem, p) for p in case.passes},
                "measurements": [_plain(m) for m in measurements],
            }
        )

    def finish(self) -> None:
        self.document["complete"] = True

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        write_text(path, json.dumps(self.document, indent=1) + "\n")


def measurements_of(case: dict[str, Any]) -> list[Measurement]:
    """The measurements of one case of a document."""
    return [
        Measurement(
            **{k: v for k, v in m.items() if k not in ("pass", "eager", "kernel")},
            passed=m["pass"],
            eager=m["eager"] and Timing(**m["eager"]),
            kernel=m["kernel"] and Timing(**m["kernel"]),
        )
        for m in case["measurements"]
    ]


def problem_of(case: dict[str, Any]) -> Problem:
    """The problem of one case of a document, on no device."""
    axes = zip(case["window"], case["stride"], case["dilation"], case["causal"], case["boundary"])
    sizes = {name: case[name] for name in ("batch", "heads", "kv_heads", "head_dim", "value_dim")}
    return Problem(
        **sizes,
        lengths=tuple(case["lengths"]),
        dtype=DTYPES[case["dtype"]],
        device=torch.device("meta"),
        neighborhoods=(Neighborhood(tuple(Axis(*axis) for axis in axes)),),
        scale=case["head_dim"] ** -0.5,
    )


def _plain(measurement: Measurement) -> dict[str, Any]:
    fields = asdict(measurement)
    return {"pass" if name == "passed" else name: value for name, value in fields.items()}
