"""Triton's cache of compiled kernels on disk, made to be found again."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

PACKAGES = tuple(f"vicinal.backends.{name}.kernels" for name in ("gpu", "triton", "unfused", "hopper"))


@cache
def settle_keys() -> None:
    """Make the keys of our kernels in the cache the same in every process; to be called before the first is compiled.

    Triton 3.6 leaves a callee's constants out of its caller's key where the callee's own key has not been computed yet,
    so that keys depend on which kernel a process compiles first, and a kernel that is there may be compiled anew. So
    all keys are computed, in one order. Takes about 0.1 s, once.
    """
    from triton.runtime.jit import JITFunction

    for package in PACKAGES:
        for name in sorted(module.name for module in iter_modules(import_module(package).__path__)):
            with suppress(Exception):  # a Triton without this Gluon, whatever it raises
                for _, value in sorted(vars(import_module(f"{package}.{name}")).items()):
                    if isinstance(value, JITFunction):
                        value.cache_key  # noqa: B018 - computed, and kept by Triton
