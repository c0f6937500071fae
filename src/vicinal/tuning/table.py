"""`Table`: for classes of problems, how long their configurations took on one device. Plain data, written as JSON.

Problems of a class have the same head dims, dtype and features, and alike windows and sizes: what is fastest for one is
taken for all. A table's timings are of the candidates that were measured, so that every choice can be read with what
led to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import ceil, prod
from typing import Any, get_args

from vicinal.backends.protocol import Config, Direction, settings
from vicinal.geometry.window import SHIFT, mode
from vicinal.problem import Problem, dtype_name

SHORT = 64  # tokens of a dilation group, from which on groups are alike
MANY = 1 << 20  # queries of all heads, from which on a grid fills any device

Settings = dict[str, Any]  # of a configuration, as JSON


@dataclass(frozen=True)
class ProblemClass:
    """What problems have in common that are tuned together.

    Attributes:
        head_dim, value_dim, dtype: of the tensors.
        features: what makes kernels others, in words.
        window: along each axis, rounded down to a power of two.
        group: tokens of a dilation group along each axis, rounded down to a power of two, `SHORT` at most.
        queries: of all heads and the batch, rounded down to a power of four, `MANY` at most.
    """

    head_dim: int
    value_dim: int
    dtype: str
    features: tuple[str, ...]
    window: tuple[int, ...]
    group: tuple[int, ...]
    queries: int

    @property
    def kin(self) -> tuple[object, ...]:
        """What is the same in classes that are near each other: their kernels are."""
        return self.head_dim, self.value_dim, self.dtype, self.features, len(self.window)

    def distance(self, other: ProblemClass) -> int:
        """From a class of the same kin: octaves of windows and groups, of all axes, and powers of four of queries."""
        pairs = zip((*self.window, *self.group), (*other.window, *other.group))
        apart = sum(abs(a.bit_length() - b.bit_length()) for a, b in pairs)
        return apart + abs(self.queries.bit_length() - other.queries.bit_length()) // 2

    @classmethod
    def of(cls, problem: Problem) -> ProblemClass:
        """The class of a problem; of heads that differ, the first one's window counts."""
        axes = [a for n in problem.neighborhoods for a in n.axes]
        features = {
            "bias": problem.has_rpb,
            "additional keys": problem.additional > 0,
            "a neighborhood per head": problem.per_head,
            "grouped heads": problem.group_size > 1,
            "strided": any(a.stride > 1 for a in axes),
            "dilated": any(a.dilation > 1 for a in axes),
            "causal or clipped": any(mode(a) != SHIFT for a in axes),
            "parts of axes": problem.is_part,
            "key mask": problem.has_key_mask,
            "windows per token": problem.has_window_sizes,
        }
        own = [(a, a.whole_length(n)) for a, n in zip(problem.neighborhoods[0].axes, problem.lengths)]
        queries = max(1, problem.batch * problem.heads * prod(problem.lengths))
        return cls(
            head_dim=problem.head_dim,
            value_dim=problem.value_dim,
            dtype=dtype_name(problem.dtype),
            features=tuple(name for name, has in features.items() if has),
            window=tuple(_octave(min(a.window or length, length)) for a, length in own),
            group=tuple(min(SHORT, _octave(ceil(length / a.dilation))) for a, length in own),
            queries=min(MANY, 4 ** ((queries.bit_length() - 1) // 2)),
        )

    def in_words(self) -> str:
        """In one line."""
        dims = f"D{self.head_dim}" + (f"/{self.value_dim}" if self.value_dim != self.head_dim else "")
        window, group = ("x".join(map(str, sizes)) for sizes in (self.window, self.group))
        return ", ".join([f"{dims} {self.dtype} window {window}+ of {group}+, {self.queries}+ queries", *self.features])


@dataclass(frozen=True)
class Versions:
    """What timings depend on besides the device; `kernels` is a digest of our kernels' source."""

    torch: str
    triton: str
    numba: str
    kernels: str

    def apart(self, installed: Versions) -> str:
        """What is other than what is installed, in words; empty where nothing is."""
        each = [
            f"{name} {own}"
            for name, own in asdict(self).items()
            if name != "kernels" and own != getattr(installed, name)
        ]
        return " and ".join([*each, *["other kernels"] * (self.kernels != installed.kernels)])


@dataclass(frozen=True)
class Timed:
    """How long a configuration took, in seconds: the median of calls that find nothing in the device's cache."""

    backend: str
    config: Settings
    seconds: float


@dataclass(frozen=True)
class Entry:
    """What was measured of a class of problems.

    Attributes:
        measured: the problem that stood for the class, in words.
        timings: the fastest first.
    """

    problems: ProblemClass
    direction: Direction
    versions: Versions
    measured: str
    timings: tuple[Timed, ...]

    @property
    def key(self) -> tuple[ProblemClass, Direction, Versions]:
        return self.problems, self.direction, self.versions

    def covers(self, backend: str, config: Config) -> bool:
        """Whether this configuration was measured."""
        wanted = settings(config)
        return any(t.backend == backend and t.config == wanted for t in self.timings)


@dataclass
class Table:
    """What is known of one device.

    Attributes:
        entries: by class of problem, pass, and versions.
        fitted: constants of estimates, by their names (`vicinal.tuning.fit`).
    """

    device: str
    entries: dict[tuple[ProblemClass, Direction, Versions], Entry] = field(default_factory=dict)
    fitted: dict[str, float] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Add an entry, in place of what was measured before."""
        self.entries[entry.key] = entry

    def of_versions(self, versions: Versions) -> dict[tuple[ProblemClass, Direction], Entry]:
        """The entries that were measured with these."""
        return {key[:2]: entry for key, entry in self.entries.items() if key[2] == versions}

    def latest(self) -> dict[tuple[ProblemClass, Direction], Entry]:
        """The entries of any versions; of several the last."""
        return {key[:2]: entry for key, entry in self.entries.items()}

    def to_json(self) -> str:
        """Readable, the same for the same entries."""
        rows = [json.dumps(asdict(entry), sort_keys=True) for entry in self.entries.values()]
        head = {"device": self.device, "fitted": self.fitted}
        words = ", ".join(f"{json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in head.items())
        return f'{{{words}, "entries": [\n' + ",\n".join(rows) + "\n]}\n"

    @classmethod
    def from_json(cls, text: str) -> Table:
        """What `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            document = json.loads(text)
            fitted = {str(name): float(value) for name, value in document.get("fitted", {}).items()}
            found = cls(str(document["device"]), fitted=fitted)
            for row in document["entries"]:
                found.add(_entry(row))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"it is no table of timings: {error!r}") from error
        return found


def _octave(n: int) -> int:
    return 1 << (max(1, n).bit_length() - 1)


def _entry(row: Mapping[str, Any]) -> Entry:
    kind = row["problems"]
    tuples = {name: tuple(kind[name]) for name in ("features", "window", "group")}
    if row["direction"] not in get_args(Direction):
        raise ValueError(f"direction {row['direction']!r}")
    timings = sorted((_timed(each) for each in row["timings"]), key=lambda t: t.seconds)
    problems, versions = ProblemClass(**{**kind, **tuples}), Versions(**row["versions"])
    return Entry(problems, row["direction"], versions, str(row["measured"]), tuple(timings))


def _timed(row: Mapping[str, Any]) -> Timed:
    if not isinstance(row["config"], dict):
        raise TypeError(f"config {row['config']!r}")
    return Timed(str(row["backend"]), row["config"], float(row["seconds"]))


def fastest_first(timings: Iterable[Timed]) -> tuple[Timed, ...]:
    """In an `Entry`'s order."""
    return tuple(sorted(timings, key=lambda t: t.seconds))
