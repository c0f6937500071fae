"""The source of every kernel, found quickly, is what Python finds."""

from __future__ import annotations

import inspect
from importlib import import_module
from pkgutil import iter_modules

import pytest
from triton.runtime import jit

from vicinal.backends.gpu.kernel_cache import PACKAGES
from vicinal.backends.gpu.kernels.sources import source_lines


def functions(package):
    """The functions of a package's modules that Triton decorates."""
    for module in iter_modules(import_module(package).__path__):
        for value in vars(import_module(f"{package}.{module.name}")).values():
            function = getattr(value, "fn", None)
            if inspect.isfunction(function) and function.__module__ == f"{package}.{module.name}":
                yield function


@pytest.mark.parametrize("package", PACKAGES)
def test_the_same_lines_as_pythons(package):
    found = list(functions(package))
    assert len(found) > 8
    for function in found:
        assert source_lines(function) == inspect.getsourcelines(function), function


def test_others_source_is_found_by_python():
    nested = lambda: 0  # noqa: E731
    for function in (nested, inspect.getsource, functions):
        assert source_lines(function) == inspect.getsourcelines(function)


def test_triton_asks_there():
    assert jit.inspect.getsourcelines is source_lines
    assert jit.inspect.signature is inspect.signature
