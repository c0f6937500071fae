"""Argument lists of text bind as Python's do."""

import inspect

import pytest

from vicinal.compat.adapters import autograd_function, function, module_class, signature

CALLS = [
    ((1, 2), {}),
    ((1, 2, 3), {"d": 4}),
    ((1, 2, 3, 4), {}),
    ((), {"b": 2, "a": 1}),
    ((1,), {"d": 4, "b": 2}),
    ((1,), {}),
    ((), {"b": 2}),
    ((1, 2, 3, 4, 5), {}),
    ((1, 2), {"b": 2}),
    ((1, 2), {"e": 2}),
]


def real(a, b, c=None, d=0.5):
    return {"a": a, "b": b, "c": c, "d": d}


def outcome(call, args, kwargs):
    try:
        return call(*args, **kwargs)
    except TypeError:
        return TypeError


@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_binds_as_python_does(args, kwargs):
    adapted = function(lambda **given: given)("adapted", "a, b, c=None, d=0.5", "natten.x")
    assert inspect.signature(adapted) == inspect.signature(real)
    assert outcome(adapted, args, kwargs) == outcome(real, args, kwargs)


def test_what_is_wrong_names_the_function_and_its_arguments():
    adapted = function(lambda **given: given)("adapted", "a, b=1", "natten.x")
    with pytest.raises(TypeError, match=r"^adapted\(a, b=1\): missing a required argument: 'a'$"):
        adapted()


def test_arguments_come_by_the_names_of_the_implementation():
    made = autograd_function(lambda rank, **given: (rank, given))(
        "F", "bias, kernel_size_, additional_key", "n", rank=2
    )
    assert made.apply(1, 2, 3) == (2, {"rpb": 1, "kernel_size": 2, "additional_keys": 3})


def test_a_class_has_the_argument_list():
    class Base:
        def __init__(self, embed_dim, rpb):
            self.given = (embed_dim, rpb)

    made = module_class(Base)("Made", "dim, bias=True", "natten.x", rank=3)
    assert str(inspect.signature(made)) == "(dim, bias=True)"
    assert (made(8).given, made.rank, made.__module__) == ((8, True), 3, "natten.x")


def test_an_empty_list_has_no_arguments():
    assert str(signature("")) == "()"
