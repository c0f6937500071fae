"""What a neighborhood is: its parameters, validated here and only here.

An `Axis` holds the parameters of one spatial axis; a `Neighborhood` is one `Axis` per spatial axis. Both are
frozen and hashable, so that whatever is derived from them can be cached. The rule that turns them into windows
of keys is in `vicinal.geometry.window`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar, cast

from vicinal.geometry.span import WHOLE, Span
from vicinal.words import by

Boundary = Literal["shift", "clip", "wrap"]
BOUNDARIES: tuple[Boundary, ...] = ("shift", "clip", "wrap")
MAX_RANK = 3
MOST = 2**62  # keys, queries, tokens apart: what is computed with them fits 64 bits

T = TypeVar("T")
PerAxis: TypeAlias = T | Sequence[T]


@dataclass(frozen=True)
class Axis:
    """The neighborhood along one spatial axis.

    Attributes:
        window: keys per query, at least 1; None means the whole axis.
        stride: queries that share one window, from 1 to `window`.
        dilation: distance between neighboring keys, at least 1. All three are at most `MOST`.
        causal: whether a query sees only keys at or before its own position.
        boundary: at a border, "shift" moves the window inward (it never shrinks), "clip" cuts it; "wrap": there is
            none, the axis is a circle. A causal axis is always cut at its start.
        span: the part of the axis that queries and keys are; None where they are all of it.
    """

    window: int | None
    stride: int = 1
    dilation: int = 1
    causal: bool = False
    boundary: Boundary = "shift"
    span: Span | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            _require_int("kernel_size", self.window)
            if self.window < 1:
                raise ValueError(f"kernel_size must be at least 1 on every axis, got {self.window}")
        _require_int("stride", self.stride)
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1 on every axis, got {self.stride}")
        if self.window is not None and self.stride > self.window:
            raise ValueError(f"stride must not exceed kernel_size, got stride {self.stride} > {self.window}")
        _require_int("dilation", self.dilation)
        if self.dilation < 1:
            raise ValueError(f"dilation must be at least 1 on every axis, got {self.dilation}")
        if not isinstance(self.causal, bool):
            raise TypeError(f"is_causal must be a bool on every axis, got {self.causal!r}")
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"boundary must be one of {BOUNDARIES}, got {self.boundary!r}")
        if self.boundary == "wrap" and self.causal:
            raise ValueError("boundary 'wrap' has no order: is_causal must be False on such an axis, got True")
        if self.span is not None:
            _check_span(self.span, self.boundary == "wrap")

    def check(self, length: int, index: int = 0) -> None:
        """That queries of `length` fit. It makes nothing of it: where torch traces, it may be a symbol, and stays one.

        Raises:
            ValueError: `window * dilation` exceeds the axis where the window shifts at borders or goes around (a causal
                or clipped one always fits), `stride > window`, or `length` is not the span's; around a circle, the
                dilation does not divide the axis.
        """
        if self.span is not None:
            if length != self.span.query_length:
                start, stop = self.span.queries
                raise ValueError(
                    f"spans: queries of axis {index} are [{start}, {stop}), {stop - start} tokens, got {length}"
                )
            length = self.span.length
        if length == 0:
            raise ValueError(f"spatial axis {index} has length 0; every spatial length must be at least 1")
        window = length if self.window is None else self.window
        if self.stride > window:
            raise ValueError(f"stride must not exceed kernel_size, got stride {self.stride} > {window} on axis {index}")
        whole = self.boundary != "clip" and not self.causal
        if whole and window * self.dilation > length:
            raise ValueError(
                f"kernel_size * dilation must not exceed the axis: axis {index} has length {length}, got "
                f"kernel_size {window} * dilation {self.dilation} = {window * self.dilation}"
            )
        if self.boundary == "wrap" and length % self.dilation:
            raise ValueError(
                f"dilation must divide a circular axis (boundary 'wrap'): axis {index} has length {length}, got "
                f"dilation {self.dilation}"
            )

    def resolve(self, length: int, index: int = 0) -> Axis:
        """This axis for queries of `length`: a window of None becomes the axis' length.

        Raises:
            ValueError: see `check`.
        """
        self.check(length, index)
        return self if self.window is not None else replace(self, window=int(self.whole_length(length)))

    def whole_length(self, length: int) -> int:
        """The length of the whole axis, of that of its queries."""
        return length if self.span is None else self.span.length

    @property
    def least(self) -> int:
        """The fewest tokens that the window fits: one where borders cut it."""
        return 1 if self.window is None or self.causal or self.boundary == "clip" else self.window * self.dilation

    def clamp(self, length: int) -> Axis:
        """With the largest window that fits tokens of `length`: `min(window, length // dilation)`, at least one key.

        The dilation is kept, unless it exceeds the length; a stride is cut with its window. What always fits (causal,
        clipped) stays as it is.
        """
        length = self.whole_length(length)
        if self.causal or self.boundary == "clip" or length < 1:
            return self
        window = length if self.window is None else self.window
        if window * self.dilation <= length and self.stride <= window:
            return self
        dilation = int(min(self.dilation, length))
        window = int(min(window, length // dilation))
        return replace(self, window=window, stride=min(self.stride, window), dilation=dilation)


@dataclass(frozen=True, init=False)
class Neighborhood:
    """One `Axis` per spatial axis: a key is a neighbor when it is one along every axis.

    Raises:
        TypeError: `axes` is no sequence of `Axis`.
        ValueError: there are not 1 to 3 of them.
    """

    axes: tuple[Axis, ...]
    # One value per axis. Kept as they are made, by no property: compiled functions and plans ask for them.
    window: tuple[int | None, ...] = field(init=False, repr=False, compare=False)
    stride: tuple[int, ...] = field(init=False, repr=False, compare=False)
    dilation: tuple[int, ...] = field(init=False, repr=False, compare=False)
    causal: tuple[bool, ...] = field(init=False, repr=False, compare=False)
    spans: tuple[Span | None, ...] = field(init=False, repr=False, compare=False)
    is_part: bool = field(init=False, repr=False, compare=False)  # whether queries or keys are parts of an axis

    def __init__(self, axes: Sequence[Axis], *rest: NoReturn) -> None:
        if rest or not isinstance(axes, (tuple, list)) or not all(isinstance(axis, Axis) for axis in axes):
            given = ", ".join(map(repr, (axes, *rest)))
            raise TypeError(
                f"axes must be a tuple of Axis, got {given}: for a window use Neighborhood.of(rank, window)"
            )
        if not 1 <= len(axes) <= MAX_RANK:
            raise ValueError(f"axes must be 1 to {MAX_RANK}, got {len(axes)}")
        object.__setattr__(self, "axes", tuple(axes))  # of a list too: a tuple can be hashed
        object.__setattr__(self, "window", tuple([axis.window for axis in axes]))
        object.__setattr__(self, "stride", tuple([axis.stride for axis in axes]))
        object.__setattr__(self, "dilation", tuple([axis.dilation for axis in axes]))
        object.__setattr__(self, "causal", tuple([axis.causal for axis in axes]))
        object.__setattr__(self, "spans", tuple([axis.span for axis in axes]))
        object.__setattr__(self, "is_part", any(self.spans))

    def __hash__(self) -> int:  # looked up on every call: hash the axes once
        known = self.__dict__.get("_hash")  # by no `cached_property`: before Python 3.12 it has a lock, untraced
        if known is None:
            known = self.__dict__["_hash"] = hash(self.axes)
        return known

    def __reduce__(self) -> tuple[Any, ...]:  # without what is cached: another process has other hashes
        return Neighborhood, (self.axes,)

    @classmethod
    def of(
        cls,
        rank: int,
        kernel_size: PerAxis[int | None],
        stride: PerAxis[int] | None = 1,
        dilation: PerAxis[int] | None = 1,
        is_causal: PerAxis[bool] | None = False,
        boundary: PerAxis[Boundary] = "shift",
    ) -> Neighborhood:
        """A neighborhood of `rank` axes from values given once for all axes, or one per axis.

        A `stride`, `dilation` or `is_causal` of None is the default, as NATTEN has it.

        Raises:
            ValueError: a sequence is not of length `rank`, or a value (or `rank`) is out of range.
            TypeError: a value is of the wrong type.
        """
        if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
            raise ValueError(f"rank must be an integer from 1 to {MAX_RANK}, got {rank!r}")
        values: Iterable[tuple[Any, ...]] = zip(
            per_axis("kernel_size", kernel_size, rank),
            per_axis("stride", 1 if stride is None else stride, rank),
            per_axis("dilation", 1 if dilation is None else dilation, rank),
            per_axis("is_causal", False if is_causal is None else is_causal, rank),
            per_axis("boundary", cast(Any, boundary), rank),
        )
        return cls(tuple(Axis(*axis) for axis in values))

    @property
    def rank(self) -> int:
        return len(self.axes)

    def over(self, spans: Sequence[Span | None]) -> Neighborhood:
        """This neighborhood where queries and keys are parts of the axes; None for a whole axis.

        Raises:
            TypeError, ValueError: there is not one for every axis.
        """
        if not isinstance(spans, (tuple, list)) or len(spans) != self.rank:
            raise ValueError(f"spans must be {self.rank}, one Span or None for every axis, got {spans!r}")
        return Neighborhood(tuple(replace(axis, span=span) for axis, span in zip(self.axes, spans)))

    @property
    def is_circular(self) -> bool:
        """Whether some axis is a circle of which no part is given yet (`vicinal.geometry.unroll`)."""
        return any(axis.boundary == "wrap" and axis.span is None for axis in self.axes)

    @property
    def goes_around(self) -> bool:
        """Whether keys are read around a circular axis, where they are."""
        return self.is_part and any(span is not None and span.circle for span in self.spans)

    def key_lengths(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """The lengths of the keys, of those of the queries."""
        if not self.is_part:
            return tuple(lengths)
        return tuple(n if a.span is None else a.span.key_length for a, n in zip(self.axes, lengths))

    def check(self, lengths: Sequence[int]) -> None:
        """That queries of `lengths` have as many axes, and fit every window (`Axis.check`); else ValueError."""
        if len(lengths) != self.rank:
            raise ValueError(f"the neighborhood has {self.rank} axes, the tokens have {len(lengths)}")
        for index, (axis, length) in enumerate(zip(self.axes, lengths)):
            axis.check(length, index)

    def resolve(self, lengths: Sequence[int]) -> Neighborhood:
        """This neighborhood for queries of `lengths`: no window is None, and every window fits (else ValueError)."""
        if len(lengths) != self.rank:
            raise ValueError(f"the neighborhood has {self.rank} axes, the tokens have {len(lengths)}")
        return Neighborhood(tuple(a.resolve(n, i) for i, (a, n) in enumerate(zip(self.axes, lengths))))

    @property
    def least(self) -> tuple[int, ...]:
        """The fewest tokens along each axis that the window fits."""
        return tuple(axis.least for axis in self.axes)

    def clamp(self, lengths: Sequence[int]) -> Neighborhood:
        """This neighborhood, along axes that are too short for it with the largest window that fits (`Axis.clamp`)."""
        axes = tuple(axis.clamp(n) for axis, n in zip(self.axes, lengths))
        return self if axes == self.axes else Neighborhood(axes)

    def is_whole(self, lengths: Sequence[int]) -> bool:
        """Whether every query sees every key: self attention."""
        return all(
            a.dilation == 1
            and not a.causal
            and a.span is None
            and (a.window is None or (a.window == n and a.boundary == "shift"))
            for a, n in zip(self.axes, lengths)
        )

    def in_words(self) -> list[str]:
        """Its parameters, as `window 7x7`; what is usual is left out."""
        words = ["window " + by(self.window)]
        if set(self.stride) != {1}:
            words.append("stride " + by(self.stride))
        if set(self.dilation) != {1}:
            words.append("dilation " + by(self.dilation))
        if any(self.causal):
            words.append("causal on axis " + ", ".join(str(i) for i, c in enumerate(self.causal) if c))
        if any(axis.boundary != "shift" for axis in self.axes):
            words.append("boundary " + ",".join(axis.boundary for axis in self.axes))
        words += [f"axis {i}: {axis.span.in_words()}" for i, axis in enumerate(self.axes) if axis.span is not None]
        return words

    def encode(self) -> list[int]:
        """Eleven integers per axis, for operator schemas; 0 stands for a window of None. See `decode`."""
        return [
            n
            for a in self.axes
            for n in (
                *(a.window or 0, a.stride, a.dilation, int(a.causal), BOUNDARIES.index(a.boundary)),
                *(WHOLE if a.span is None else a.span.encode()),
            )
        ]


def encode(neighborhoods: Sequence[Neighborhood]) -> list[int]:
    """The integers of several neighborhoods of one rank (one for all heads, or one per head)."""
    return [n for neighborhood in neighborhoods for n in neighborhood.encode()]


def decode(code: Sequence[int], rank: int) -> tuple[Neighborhood, ...]:
    """The inverse of `encode`."""
    return _decode(tuple(code), rank)


def per_axis(name: str, value: PerAxis[T], rank: int) -> tuple[T, ...]:
    """`value` for each of `rank` axes: a sequence must have that length, anything else is repeated."""
    if isinstance(value, (tuple, list)):
        if len(value) != rank:
            raise ValueError(f"{name} must be one value or {rank} (one per axis), got {len(value)}: {value!r}")
        return tuple(value)
    return (value,) * rank  # type: ignore[return-value]


def _check_span(span: object, circular: bool) -> None:
    if not isinstance(span, Span):
        raise TypeError(f"spans must be a Span or None for every axis, got {span!r} of type {type(span).__name__}")
    start, stop = span.keys
    around = span.length if circular else 0
    if not -around <= start < stop <= span.length + around:
        allowed = f"[{-around}, {span.length + around})"
        raise ValueError(f"spans: keys must be some of the axis, {allowed}, got [{start}, {stop})")


def _require_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer on every axis, got {value!r} of type {type(value).__name__}")
    if value > MOST:
        raise ValueError(f"{name} must be at most 2**62 on every axis, got {value}")


@lru_cache(maxsize=4096)
def _decode(code: tuple[int, ...], rank: int) -> tuple[Neighborhood, ...]:
    axes = [
        Axis(k or None, s, d, bool(c), BOUNDARIES[b], Span.decode(span))
        for k, s, d, c, b, *span in zip(*(code[i::11] for i in range(11)))
    ]
    return tuple(Neighborhood(tuple(axes[i : i + rank])) for i in range(0, len(axes), rank))
