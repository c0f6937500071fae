"""Arguments of the same kinds are of one compiled kernel: kinds are as fine as what Triton specialises on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicinal.backends.gpu import kernel_cache, specialised
from vicinal.backends.gpu.specialised import kinds_of


class Pair(NamedTuple):
    a: object
    b: object


def parameter(constexpr=False, any_value=False, any_alignment=False):
    return SimpleNamespace(
        is_constexpr=constexpr, do_not_specialize=any_value, do_not_specialize_on_alignment=any_alignment
    )


WIDE, EXACT, FREE = parameter(any_value=True), parameter(), parameter(any_alignment=True)
NUMBERS = st.one_of(st.integers(0, 70), st.integers(2**31 - 3, 2**31 + 3), st.integers(2**63 - 3, 2**63 + 3))


def triton_key(argument, specialize, align):
    """What Triton's own specialisation says of an argument, types and values it is compiled for."""
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime import jit

    if not hasattr(jit, "native_specialize_impl"):
        pytest.skip("this Triton specialises elsewhere")
    return jit.native_specialize_impl(CUDABackend, argument, False, specialize, align)


@pytest.mark.parametrize(
    ("of", "specialize", "align"), [(WIDE, False, False), (EXACT, True, True), (FREE, True, False)]
)
@given(NUMBERS, NUMBERS)
def test_numbers_of_one_kind_are_the_same_to_triton(of, specialize, align, one, other):
    pytest.importorskip("triton.backends.nvidia.compiler")
    same = kinds_of([of], [one]) == kinds_of([of], [other])
    assert same == (triton_key(one, specialize, align) == triton_key(other, specialize, align))


def test_tuples_are_of_the_kinds_of_what_is_in_them():
    assert kinds_of([EXACT], [(32, (7, None))]) == kinds_of([EXACT], [(48, (9, None))])
    assert kinds_of([EXACT], [(32, (7, None))]) != kinds_of([EXACT], [(33, (7, None))])
    assert kinds_of([EXACT], [(32, (7, None))]) != kinds_of([EXACT], [(32, (7, 1.0))])
    assert kinds_of([EXACT], [(32, 7)]) != kinds_of([EXACT], [Pair(32, 7)])
    assert kinds_of([FREE], [(1, 33)]) == kinds_of([FREE], [(1, 32)]) != kinds_of([FREE], [(2, 32)])


def test_a_tuple_that_launches_share_is_looked_at_once(monkeypatch):
    looked, kind = [], specialised._kind
    monkeypatch.setattr(specialised, "_kind", lambda argument, of: looked.append(argument) or kind(argument, of))
    shared = Pair(32, 7)
    assert kinds_of([EXACT, EXACT], [shared, shared]) == kinds_of([EXACT, EXACT], [Pair(48, 9), shared])
    assert len(looked) == 2


def test_tuples_that_are_gone_leave_their_numbers_only():
    numbers = [7, 2**31] * specialised.KEPT
    found = [kinds_of([WIDE], [(number, None)]) for number in numbers]
    assert found == found[:2] * specialised.KEPT
    assert found[0] != found[1]


def test_tuples_may_be_alike_whatever_the_decorator_says():
    assert kinds_of([EXACT], [(1, 16)], tuples_alike=True) == kinds_of([EXACT], [(3, 5)], tuples_alike=True)
    assert kinds_of([EXACT], [(1, 2**31)], tuples_alike=True) != kinds_of([EXACT], [(3, 5)], tuples_alike=True)
    assert kinds_of([EXACT], [1], tuples_alike=True) != kinds_of([EXACT], [3], tuples_alike=True)


def test_constants_count_by_their_values():
    assert kinds_of([parameter(constexpr=True)], [(3, 5)]) != kinds_of([parameter(constexpr=True)], [(3, 7)])
    assert kinds_of([EXACT], [0.5]) == kinds_of([EXACT], [0.25])


@pytest.mark.parametrize("of", [WIDE, EXACT, FREE, parameter(constexpr=True)])
def test_truth_is_no_number(of):
    assert kinds_of([of], [True]) != kinds_of([of], [1])
    assert kinds_of([of], [False]) != kinds_of([of], [0])


@pytest.mark.parametrize("of", [WIDE, EXACT, FREE])
def test_truth_in_a_tuple_is_no_number(of):
    assert kinds_of([of], [(True, 1)]) != kinds_of([of], [(1, 1)])


def test_a_kernel_is_made_once_for_a_kind_and_device(monkeypatch):
    made = []
    monkeypatch.setattr(kernel_cache, "loaded", lambda kernel, make, grid: made.append(grid) or make())
    kernel, other = object(), object()
    found = [
        specialised.loaded(k, device, kinds, object, (1, 1, 1))
        for k, device, kinds in [
            (kernel, 0, "a"),
            (kernel, 0, "a"),
            (kernel, 1, "a"),
            (kernel, 0, "b"),
            (other, 0, "a"),
        ]
    ]
    assert found[0] is found[1]
    assert len(set(map(id, found))) == len(made) == 4
