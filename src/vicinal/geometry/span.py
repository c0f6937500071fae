"""`Span`: the part of an axis that queries and keys are, where they are not all of it."""

from __future__ import annotations

from dataclasses import dataclass

Interval = tuple[int, int]
WHOLE = [0] * 5  # the code of no span


@dataclass(frozen=True)
class Span:
    """Queries and keys that are parts of an axis; windows are those of the whole axis.

    It is what a rank of a context-parallel group holds, or a decoder with cached keys asks for.

    Attributes:
        length: of the whole axis.
        queries: `(start, stop)` of the queries given, in positions of the whole axis.
        keys: likewise of the keys: every query's window must lie within them (`vicinal.geometry.tiles.reach` says
            which it needs). Around a circular axis they may begin before 0 and end beyond `length`.

    Raises:
        TypeError: a value is no integer.
        ValueError: an interval is empty, or queries pass the axis.
    """

    length: int
    queries: Interval
    keys: Interval

    def __post_init__(self) -> None:
        for name in ("queries", "keys"):
            own = getattr(self, name)
            if not isinstance(own, (tuple, list)) or len(own) != 2:
                raise TypeError(f"{name} of a Span must be (start, stop), got {own!r}")
            object.__setattr__(self, name, tuple(own))
        for value in (self.length, *self.queries, *self.keys):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"a Span must be of integers, got {value!r} of type {type(value).__name__}")
        start, stop = self.queries
        if not 0 <= start < stop <= self.length:
            raise ValueError(f"queries of a Span must be some of the axis, [0, {self.length}), got [{start}, {stop})")
        if not self.keys[0] < self.keys[1]:
            raise ValueError(f"keys of a Span must be at least one, got [{self.keys[0]}, {self.keys[1]})")

    @classmethod
    def whole(cls, length: int) -> Span:
        """All of an axis."""
        return cls(length, (0, length), (0, length))

    @property
    def query_length(self) -> int:
        return self.queries[1] - self.queries[0]

    @property
    def key_length(self) -> int:
        return self.keys[1] - self.keys[0]

    def in_words(self) -> str:
        """As `queries 0:8 of 16, keys 0:10`."""
        (first, last), (start, stop) = self.queries, self.keys
        return f"queries {first}:{last} of {self.length}, keys {start}:{stop}"

    def encode(self) -> list[int]:
        """Five integers. See `decode`."""
        return [self.length, *self.queries, *self.keys]

    @classmethod
    def decode(cls, code: list[int]) -> Span | None:
        """The inverse of `encode`; a length of 0 stands for no span."""
        length, *rest = code
        return cls(length, (rest[0], rest[1]), (rest[2], rest[3])) if length else None
