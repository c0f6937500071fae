"""Maps of different sizes, packed one after the other: where each begins, and which are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from math import prod
from typing import Any

from vicinal.geometry.neighborhood import Neighborhood, decode

Lengths = tuple[int, ...]


@dataclass(frozen=True)
class Maps:
    """Each has borders of its own. Tokens of a map are in row-major order.

    Attributes:
        lengths: of every map, along its axes.
        neighborhoods: of every map, resolved.
        starts: the first token of every map, and how many there are.
    """

    lengths: tuple[Lengths, ...]
    neighborhoods: tuple[Neighborhood, ...]
    starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", (0, *accumulate(map(prod, self.lengths))))

    @classmethod
    def of(cls, lengths: Sequence[Lengths], neighborhoods: Sequence[Neighborhood], clamp: bool = False) -> Maps:
        """With one neighborhood for all maps, or one for each.

        Raises:
            ValueError: a window does not fit its map, which is named.
        """
        each = tuple(neighborhoods) * (len(lengths) if len(neighborhoods) == 1 else 1)
        resolved = []
        for i, (own, n) in enumerate(zip(lengths, each)):
            try:
                resolved.append((n.clamp(own) if clamp else n).resolve(own) if prod(own) else n)
            except ValueError as error:
                raise ValueError(f"map {i} of {list(own)} tokens: {error}") from None
        return cls(tuple(lengths), tuple(resolved))

    def __hash__(self) -> int:  # looked up on every call: hash the maps once
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.lengths, self.neighborhoods))

    def __getstate__(self) -> dict[str, Any]:  # without what is cached: another process has other hashes
        return {"lengths": self.lengths, "neighborhoods": self.neighborhoods, "starts": self.starts}

    @property
    def total(self) -> int:
        return self.starts[-1]

    @property
    def alike(self) -> dict[tuple[Lengths, Neighborhood], list[int]]:
        """Maps that are not empty, by their lengths and neighborhoods."""
        found: dict[tuple[Lengths, Neighborhood], list[int]] = {}
        for i, key in enumerate(zip(self.lengths, self.neighborhoods)):
            if prod(key[0]):
                found.setdefault(key, []).append(i)
        return found

    def encode(self) -> list[int]:
        """Integers, for operator schemas. See `decode`."""
        return [n for own, each in zip(self.lengths, self.neighborhoods) for n in (*own, *each.encode())]

    @classmethod
    def decode(cls, code: Sequence[int], rank: int) -> Maps:
        """The inverse of `encode`."""
        return _decode(tuple(code), rank)


@lru_cache(maxsize=256)
def _decode(code: tuple[int, ...], rank: int) -> Maps:
    step = rank + len(Neighborhood.of(rank, 1).encode())
    rows = [code[i : i + step] for i in range(0, len(code), step)]
    return Maps(tuple(row[:rank] for row in rows), tuple(decode(row[rank:], rank)[0] for row in rows))
