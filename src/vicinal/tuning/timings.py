"""Raw timings: what every candidate took on which problem, one JSON object a line, compressed. What `fit` reads.

Schema 1, an object: schema, device (its name), gpu (`[architecture, multiprocessors]`, null where it is none),
versions, problem (the fields of `Problem`; neighborhoods as their code, `Neighborhood.encode`), direction, backend,
config (as in a table), seconds (`[lower quartile, median, upper quartile]`), samples.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from vicinal.backends.protocol import Direction
from vicinal.geometry.neighborhood import decode
from vicinal.problem import DTYPES, Problem, dtype_name
from vicinal.tuning.table import Settings, Versions

SCHEMA = 1


@dataclass(frozen=True)
class Measured:
    """How long one configuration took on one problem; seconds are the quartiles of so many samples."""

    device: str
    gpu: tuple[str, int] | None
    versions: Versions
    problem: Problem
    direction: Direction
    backend: str
    config: Settings
    seconds: tuple[float, float, float]
    samples: int

    @property
    def median(self) -> float:
        return self.seconds[1]

    def to_json(self) -> dict[str, Any]:
        """A line's object."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"schema": SCHEMA, **found, "versions": asdict(self.versions), "problem": _encoded(self.problem)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Measured:
        """The inverse; the problem's tensors are on the CPU."""
        if row["schema"] != SCHEMA:
            raise ValueError(f"schema {row['schema']!r}")
        given = {f.name: row[f.name] for f in fields(cls)}
        gpu = None if row["gpu"] is None else (str(row["gpu"][0]), int(row["gpu"][1]))
        lower, median, upper = map(float, row["seconds"])
        given |= {"gpu": gpu, "versions": Versions(**row["versions"]), "problem": _decoded(row["problem"])}
        return cls(**{**given, "seconds": (lower, median, upper)})


def append(path: Path, rows: Iterable[Measured]) -> None:
    """Add lines to a file, as a member of its own: what was there stays whatever happens.

    Raises:
        OSError: it cannot be written.
    """
    lines = [json.dumps(row.to_json()) + "\n" for row in rows]
    if lines:
        with path.open("ab") as file:
            file.write(gzip.compress("".join(lines).encode()))


def read(path: Path) -> list[Measured]:
    """What was appended.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [Measured.from_json(json.loads(line)) for line in file]
    except (gzip.BadGzipFile, EOFError, KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is no file of timings: {error!r}") from error


def _encoded(problem: Problem) -> dict[str, Any]:
    found = {f.name: getattr(problem, f.name) for f in fields(problem) if f.name != "device"}
    return {**found, "dtype": dtype_name(problem.dtype), "neighborhoods": [n.encode() for n in problem.neighborhoods]}


def _decoded(row: dict[str, Any]) -> Problem:
    lengths = tuple(row["lengths"])
    neighborhoods = tuple(n for code in row["neighborhoods"] for n in decode(code, len(lengths)))
    more = {"lengths": lengths, "neighborhoods": neighborhoods, "dtype": DTYPES[row["dtype"]]}
    return Problem(**{**row, **more, "device": torch.device("cpu")})
