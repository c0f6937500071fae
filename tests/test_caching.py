"""The one cache: bounds, order, threads, and what happens when making a value fails."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from vicinal.caching import Cache


def kept(cache, keys):
    """Of `keys`, those that the cache holds; each is looked up once, and none is added."""
    absent = object()

    def refuse():
        raise KeyError

    def look_up(key):
        try:
            return cache.get(key, refuse)
        except KeyError:
            return absent

    return [key for key in keys if look_up(key) is not absent]


def test_a_value_is_made_once():
    cache, made = Cache(entries=2), []
    for _ in range(3):
        assert cache.get("a", lambda: made.append(1)) is None
    assert made == [1]


def test_finding_makes_nothing_and_counts_as_a_look_up():
    cache = Cache(entries=2)
    assert cache.find("a") is None
    assert len(cache) == 0
    for key in "ab":
        cache.get(key, lambda key=key: key)
    assert cache.find("a") == "a"
    cache.get("c", lambda: "c")
    assert kept(cache, "abc") == ["a", "c"]
    with pytest.raises(TypeError, match="unhashable"):
        cache.find([])


def test_the_number_of_values_is_bounded_and_the_unused_go_first():
    cache = Cache(entries=3)
    for key in "abc":
        cache.get(key, lambda key=key: key)
    cache.get("a", lambda: "made again")
    cache.get("d", lambda: "d")
    assert len(cache) == 3
    assert kept(cache, "abcd") == ["a", "c", "d"]


def test_the_sum_of_sizes_is_bounded():
    cache = Cache(size=100, size_of=len)
    for n in (40, 50, 30):
        cache.get(n, lambda n=n: bytes(n))
    assert cache.size == 80
    assert kept(cache, (40, 50, 30)) == [50, 30]


def test_a_value_larger_than_the_bound_is_kept_until_the_next():
    cache = Cache(size=100, size_of=len)
    for n in (10, 500):
        cache.get(n, lambda n=n: bytes(n))
    assert kept(cache, (10, 500)) == [500]
    cache.get(20, lambda: bytes(20))
    assert (kept(cache, (500, 20)), cache.size) == ([20], 20)


def test_all_in_use_still_makes_room():
    cache = Cache(entries=2)
    for key in "abcde":
        for _ in range(2):
            cache.get(key, lambda key=key: key)
    assert kept(cache, "abcde") == ["d", "e"]


def test_what_fails_is_not_kept():
    cache = Cache(entries=2)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 / 0)
    assert len(cache) == 0
    assert cache.get("a", lambda: 1) == 1


def test_clear():
    cache = Cache(size=100, size_of=len)
    cache.get("a", lambda: b"123")
    cache.clear()
    assert (len(cache), cache.size) == (0, 0)


def test_memoize_keeps_by_arguments():
    cache, calls = Cache(entries=8), []

    @cache.memoize
    def add(a, b=1):
        """Add."""
        calls.append((a, b))
        return a + b

    assert [add(1), add(1), add(1, 2), add(1, 2)] == [2, 2, 3, 3]
    assert calls == [(1, 1), (1, 2)]
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    with pytest.raises(TypeError, match="positional"):
        add(1, b=2)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [({}, "needs a bound"), ({"size": 3}, "go together"), ({"entries": 3, "size_of": len}, "go together")],
)
def test_bounds_are_needed(bounds, message):
    with pytest.raises(ValueError, match=message):
        Cache(**bounds)


def test_threads_that_miss_together_get_one_value():
    threads = 4
    cache, barrier = Cache(entries=2), Barrier(threads)

    def make():
        barrier.wait(10)  # all have missed
        return object()

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda _: cache.get("a", make), range(threads)))
    assert len(set(map(id, found))) == 1
    assert len(cache) == 1


def test_threads_meet_eviction_and_clearing():
    cache = Cache(entries=7, size=300, size_of=lambda value: value[1])
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def work(seed):
        for i in range(3000):
            key = (i * (seed + 1)) % 19
            assert cache.get(key, lambda: (key, 10 * key)) == (key, 10 * key)  # noqa: B023
            if i % 500 == seed:
                cache.clear()

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(before)
    assert 1 <= len(cache) <= 7
    assert cache.size == sum(10 * key for key in kept(cache, range(19)))
