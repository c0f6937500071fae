"""What launches of Triton and Gluon kernels have in common."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from vicinal.backends.gpu.launch import plain


class Pair(NamedTuple):
    a: object
    b: object


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (Pair(7, None), (7, None)),
        (Pair(Pair(1, 2), (3, 4)), ((1, 2), (3, 4))),
        ((Pair(1, 2), Pair(3, 4)), ((1, 2), (3, 4))),
        ((), ()),
    ],
)
def test_no_tuple_is_named(argument, expected):
    assert repr(plain((argument, 5))) == repr((expected, 5))
