"""One bounded cache for what is derived from a problem: plans, tables, launch arguments, compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock
from typing import Generic, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Values by key, bounded by their number, by their sizes' sum, or by both; safe to use from several threads.

    When it is full, what has not been looked up for longest goes, but for the newest, which always stays. A value is
    made outside the lock and published once: threads that miss the same key at the same time may each make one, but
    all of them get the one that came first. What `make` raises is raised, and nothing is kept.

    A hit takes no lock: it is one `dict.get` and one attribute set, each of which Python makes atomic, with its
    global lock and without; an entry is complete before it is in the dictionary and its value never changes.

    Args:
        entries: most values.
        size: most of the sum of `size_of` over the values, usually bytes.
        size_of: the size of a value; needed with `size`.
    """

    def __init__(
        self, entries: int | None = None, size: int | None = None, size_of: Callable[[Value], int] | None = None
    ) -> None:
        if entries is None and size is None:
            raise ValueError("a cache needs a bound: entries, size or both")
        if (size is None) != (size_of is None):
            raise ValueError("size and size_of go together")
        self._most_entries, self._most_size, self._size_of = entries, size, size_of
        self._lock = Lock()
        self._entries: dict[Hashable, _Entry[Value]] = {}
        self._size = 0

    def find(self, key: Hashable) -> Value | None:
        """The value of `key` if it is kept, else None; raises TypeError where the key cannot be hashed."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.used = True
        return entry.value

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`: kept, or made now."""
        entry = self._entries.get(key)
        if entry is None:
            return self._publish(key, make())
        entry.used = True
        return entry.value

    def memoize(self, function: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
        """A decorator: keep what `function` returns, by its arguments, which are positional. One function a cache."""

        @wraps(function)
        def look_up(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Value:
            if keywords:
                raise TypeError(f"{function.__name__} is cached by its positional arguments, got {sorted(keywords)}")
            entry = self._entries.get(arguments)
            if entry is None:
                return self._publish(arguments, function(*arguments))  # type: ignore[call-arg]
            entry.used = True
            return entry.value

        return look_up

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """The sum of the values' sizes; 0 where nothing measures them."""
        return self._size

    def _publish(self, key: Hashable, value: Value) -> Value:
        entry = _Entry(value, 0 if self._size_of is None else self._size_of(value))
        with self._lock:
            first = self._entries.setdefault(key, entry)
            if first is not entry:  # another thread was faster
                return first.value
            self._size += entry.size
            while len(self._entries) > 1 and self._is_over():
                self._drop_one(entry)
        return value

    def _is_over(self) -> bool:
        too_many = self._most_entries is not None and len(self._entries) > self._most_entries
        return too_many or (self._most_size is not None and self._size > self._most_size)

    def _drop_one(self, newest: _Entry[Value]) -> None:
        """Drop the oldest entry that was not looked up since it was last passed over (second chance), or the oldest.

        A look-up that meets an entry on its way to the end misses it, and `_publish` finds it again.
        """
        for chances in range(len(self._entries), -1, -1):
            key, entry = next(iter(self._entries.items()))
            del self._entries[key]
            if entry is not newest and not (entry.used and chances):
                self._size -= entry.size
                return
            entry.used = False
            self._entries[key] = entry


class _Entry(Generic[Value]):
    """A value, its size, and whether it was looked up since it was kept or last passed over."""

    __slots__ = ("size", "used", "value")

    def __init__(self, value: Value, size: int) -> None:
        self.value, self.size, self.used = value, size, False
