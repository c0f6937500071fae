"""Triton's cache of compiled kernels on disk, made to be found again, and to be a help at most.

What is damaged, cannot be written or is full there costs a compilation and a warning: kernels are compiled anew, and
kept in the cache if it takes them, in a folder of this process otherwise.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from triton import knobs
from triton.runtime.cache import FileCacheManager

from vicinal.backends.gpu.triton_key import remember_triton_key, remembered, triton_files
from vicinal.compiling import compiling, one_at_a_time

SHARED = "vicinal.backends.gpu.kernels"
PACKAGES = tuple(f"vicinal.backends.{name}.kernels" for name in ("gpu", "triton", "unfused", "hopper"))
FOLDER = "Triton's cache"  # the lock of what all kernels share


def settle_key(kernel: Any) -> None:
    """Make the key of a kernel in the cache the same in every process; before it is compiled, or looked for there."""
    remember_triton_key()
    if getattr(kernel, "hash", "") is None:  # as Triton keeps it
        package = kernel.__module__.rpartition(".")[0]
        key = keys_of(package).get(_full_name(kernel)) or settle_keys(package)[_full_name(kernel)]
        if kernel.hash is None:
            kernel.hash = key


@cache
def keys_of(package: str) -> dict[str, str]:
    """The keys of a package's kernels, by `_full_name`, remembered in Triton's cache: making them reads all kernels."""
    root = Path(__file__).parents[2]
    ours = (file for pattern in ("backends/*/kernels/**/*.py", "geometry/*.py") for file in root.glob(pattern))
    name = f"vicinal-{package.split('.')[2]}-keys.json"
    return remembered(name, (*ours, *triton_files()), lambda: settle_keys(package))


@cache
def settle_keys(package: str) -> dict[str, str]:
    """Make the keys of all kernels of a package, of this process.

    Triton 3.6 leaves a callee's constants out of its caller's key where the callee's own key has not been computed yet,
    so that keys depend on which kernel a process compiles first, and a kernel that is there may be compiled anew. So
    all keys are computed, in one order: of what packages share, then of this one, which knows no other.
    """
    from triton.runtime.jit import JITFunction

    if package != SHARED:
        settle_keys(SHARED)
    found = {}
    for name in sorted(module.name for module in iter_modules(import_module(package).__path__)):
        with suppress(Exception):  # a Triton without this Gluon, whatever it raises
            for _, value in sorted(vars(import_module(f"{package}.{name}")).items()):
                if isinstance(value, JITFunction):
                    found[_full_name(value)] = value.cache_key  # which Triton keeps
    return found


def _full_name(kernel: Any) -> str:
    return f"{kernel.__module__}.{kernel.__name__}"


def compiled(kernel: Any, arguments: Sequence[Any], grid: tuple[int, ...], options: dict[str, int]) -> Any:
    """The compiled kernel (Triton's `CompiledKernel`) for these arguments; needs no GPU."""
    with one_at_a_time(FOLDER):
        settle_key(kernel)
    with compiling(kernel_name(kernel), kernel_name(kernel)):
        return _or_anew(lambda: kernel.warmup(*arguments, grid=grid, **options))


def kernel_name(kernel: Any) -> str:
    """What a kernel is called: `triton.forward_kernel`."""
    return f"{kernel.__module__.removeprefix('vicinal.backends.').partition('.')[0]}.{kernel.__name__}"


def held() -> dict[str, int]:
    """How many compiled kernels of each source this process holds, by `kernel_name`."""
    found = {}
    for package in PACKAGES:
        for name in sorted(module.name for module in iter_modules(import_module(package).__path__)):
            loaded_module = sys.modules.get(f"{package}.{name}")
            for kernel in vars(loaded_module).values() if loaded_module is not None else ():
                caches = getattr(kernel, "device_caches", None) or {}
                count = sum(len(per_device[0]) for per_device in caches.values())
                if count:
                    found[kernel_name(kernel)] = count
    return found


def loaded(kernel: Any, make: Callable[[], Any], grid: tuple[int, ...]) -> Any:
    """What `make` compiles of `kernel`, in the current device's memory; compiled anew if it cannot be loaded."""

    def try_to() -> Any:
        found = make()
        try:
            found[grid]  # loads it
        except (RuntimeError, OSError):  # a damaged binary, perhaps: it is not to be found again
            _forget(kernel, found)
            raise
        return found

    # The kernel's lock before the folder's, as in `compiled`: in the other order two threads may wait for each other.
    with one_at_a_time(kernel_name(kernel)):
        return _or_anew(try_to)


def _or_anew(make: Callable[[], Any]) -> Any:
    """What `make` returns; if it fails, what it returns when nothing is found in Triton's cache.

    Whatever the failure was: where it was not the cache, the second one is raised.
    """
    try:
        return make()
    except Exception as error:
        with _nothing_found():
            found = make()
        folder = knobs.cache.dir
        warnings.warn(f"a kernel was compiled anew: Triton's cache in {folder} failed with {error!r}", stacklevel=2)
        return found


def _forget(kernel: Any, found: Any) -> None:
    for per_device in kernel.device_caches.values():
        for key, value in list(per_device[0].items()):
            if value is found:
                del per_device[0][key]


@cache
def _own_folder() -> Any:
    """A folder for this process, deleted when it ends."""
    return tempfile.TemporaryDirectory(prefix="vicinal-kernels-")


class _Rewriting(FileCacheManager):  # type: ignore[misc]
    """Finds nothing; writes where Triton does, or to this process's own folder where that fails."""

    def __init__(self, key: str, *arguments: Any, **keywords: Any) -> None:
        try:
            super().__init__(key, *arguments, **keywords)
        except OSError:
            self._move()

    def get_file(self, filename: str) -> None:
        return None

    def get_group(self, filename: str) -> None:
        return None

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        try:
            return super().put(data, filename, binary)
        except OSError:
            self._move()
            return super().put(data, filename, binary)

    def _move(self) -> None:
        self.cache_dir = tempfile.mkdtemp(dir=_own_folder().name)
        self.lock_path = f"{self.cache_dir}/lock"


@contextmanager
def _nothing_found() -> Iterator[None]:
    """A context in which Triton finds no compiled kernel in its cache."""
    settings = vars(knobs.cache)  # set as an attribute, it would be put into the environment
    with one_at_a_time(FOLDER):
        before = settings.get("manager_class")
        settings["manager_class"] = _Rewriting
        try:
            yield
        finally:
            del settings["manager_class"]
            if before is not None:
                settings["manager_class"] = before
