"""`Span`: the part of an axis that queries and keys are, where they are not all of it."""

from __future__ import annotations

from dataclasses import dataclass

Interval = tuple[int, int]
WHOLE = [0] * 6  # the code of no span


@dataclass(frozen=True)
class Span:
    """Queries and keys that are parts of an axis; windows are those of the whole axis.

    It is what a rank of a context-parallel group holds, or a decoder with cached keys asks for.

    Attributes:
        length: of the whole axis.
        queries: `(start, stop)` of the queries given, in positions of the whole axis.
        keys: likewise of the keys: every query's window must lie within them (`vicinal.geometry.tiles.reach` says
            which it needs). Around a circular axis they may begin before 0 and end beyond `length`.
        circle: the keys given are those of the whole axis, a circular one: positions before 0 and beyond `length` are
            those of the other side. Then `keys` is how far windows reach, and of a key its queries, by mirroring.

    Raises:
        TypeError: a value is no integer.
        ValueError: an interval is empty, or queries pass the axis.
    """

    length: int
    queries: Interval
    keys: Interval
    circle: bool = False

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
        return self.length if self.circle else self.keys[1] - self.keys[0]

    def own(self, inverse: bool) -> Interval:
        """Where the tokens are that tiles are of: queries, or keys if `inverse`."""
        return self.keys if inverse and not self.circle else self.queries

    def other(self, inverse: bool) -> Interval:
        """Where the tokens are that tiles walk."""
        return self.queries if inverse and not self.circle else self.keys

    def in_words(self) -> str:
        """As `queries 0:8 of 16, keys 0:10`."""
        (first, last), (start, stop) = self.queries, self.keys
        return f"queries {first}:{last} of {self.length}, keys {start}:{stop}" + " around a circle" * self.circle

    def encode(self) -> list[int]:
        """Six integers. See `decode`."""
        return [self.length, *self.queries, *self.keys, int(self.circle)]

    @classmethod
    def decode(cls, code: list[int]) -> Span | None:
        """The inverse of `encode`; a length of 0 stands for no span."""
        length, *rest = code
        return cls(length, (rest[0], rest[1]), (rest[2], rest[3]), bool(rest[4])) if length else None
