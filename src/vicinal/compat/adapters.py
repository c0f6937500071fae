"""Functions and classes with the argument list of one version of NATTEN, over an implementation for all of them.

An argument list is text, as in the table of versions: "query, key, kernel_size, dilation=1". An implementation takes
the arguments of all versions by name, and `rank` where a name has one.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, TypeAlias

Maker: TypeAlias = Callable[..., Any]  # the object from its name, argument list, module and (by keyword) rank
_RENAMED = {  # to the name that implementations have
    "bias": "rpb",
    "rel_pos_bias": "rpb",
    "additional_key": "additional_keys",
    "additional_value": "additional_values",
    "dim": "embed_dim",
}


def function(implementation: Callable[..., Any]) -> Maker:
    """Makes functions that call `implementation`."""

    def make(name: str, arguments: str, home: str, **rank: int) -> Callable[..., Any]:
        own = signature(arguments)
        read = _reader(name, own)

        def call(*args: Any, **kwargs: Any) -> Any:
            return implementation(**rank, **read(args, kwargs))

        call.__name__ = call.__qualname__ = name
        call.__module__ = home
        call.__doc__ = implementation.__doc__
        call.__signature__ = own  # type: ignore[attr-defined]
        return call

    return make


def autograd_function(implementation: Callable[..., Any]) -> Maker:
    """Makes classes with the `apply` of an autograd function."""

    def make(name: str, arguments: str, home: str, **rank: int) -> type:
        apply = function(implementation)("apply", arguments, home, **rank)
        return type(name, (), {"apply": staticmethod(apply), "__module__": home, "__doc__": implementation.__doc__})

    return make


def module_class(base: type, over: Callable[[str], type] | None = None) -> Maker:
    """Makes classes whose constructors have an argument list and which are pickled as `home.name`.

    Args:
        base: has the constructor that is called.
        over: from the argument list the class to be a subclass of, itself a subclass of `base`; by default `base`.
    """

    def make(name: str, arguments: str, home: str, **rank: int) -> type:
        own = signature(arguments)
        read = _reader(name, own)

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            base.__init__(self, **read(args, kwargs))  # type: ignore[misc]

        with_self = [Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), *own.parameters.values()]
        __init__.__signature__ = own.replace(parameters=with_self)  # type: ignore[attr-defined]
        members = {"__init__": __init__, "__module__": home, "__doc__": inspect.getdoc(base), **rank}
        return type(name, (base if over is None else over(arguments),), members)

    return make


def as_it_is(source: Any) -> Maker:
    """Hands out `source`'s attribute of the name: it is the same in all versions."""
    return lambda name, arguments, home, **rank: getattr(source, name)


def signature(arguments: str) -> Signature:
    """An argument list from its text."""
    parameters = []
    for text in filter(None, arguments.split(", ")):
        name, _, default = text.partition("=")
        value = ast.literal_eval(default) if default else Parameter.empty
        parameters.append(Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=value))
    return Signature(parameters)


def _reader(name: str, own: Signature) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """Reads a call's arguments, by the names that implementations have: no trailing underscores, one for one thing."""
    order = list(own.parameters)
    names = {argument: _RENAMED.get(argument.rstrip("_"), argument.rstrip("_")) for argument in order}
    positional = list(names.values())
    defaults = {names[a]: p.default for a, p in own.parameters.items() if p.default is not Parameter.empty}
    required = order[: len(order) - len(defaults)]

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        later, missing = order[len(args) :], required[len(args) :]
        if len(args) > len(order) or not all(a in later for a in kwargs) or not all(a in kwargs for a in missing):
            try:  # only to say what is wrong: this takes as long as a small call
                own.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{name}{own}: {error}") from None
        return {**defaults, **dict(zip(positional, args)), **{names[a]: value for a, value in kwargs.items()}}

    return read
