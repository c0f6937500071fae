"""Kernels as C functions of one address, compiled when first asked for and kept on disk by numba.

They are kept next to this file (`__pycache__`), or where that cannot be written in the user's cache directory, or in
`NUMBA_CACHE_DIR`; where none can be written, they are compiled in every process. A file that cannot be read, or does
not hold what was written, costs a compilation and a warning.
"""

from __future__ import annotations

import pickle
import warnings
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numba import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.ccallback import CFunc
from numba.core.serialize import dumps

from vicinal.backends.numba.kernels.backward import backward
from vicinal.backends.numba.kernels.bias import gather, spread
from vicinal.backends.numba.kernels.forward import forward
from vicinal.caching import Cache
from vicinal.compiling import compiling

ZEROS = {"float32": np.float32(0), "float64": np.float64(0)}
KERNELS: Cache[Any] = Cache(entries=64)  # more than there are: a kernel that runs must not go


@KERNELS.memoize
def compiled(name: str, dtype: str) -> Any:
    """A C function that takes the address of a call (`vicinal.backends.numba.kernels.call`).

    Its `address` is valid while the function is kept, as it is here. `name`: see `_entries`.
    """
    with compiling((name, dtype), f"numba's {name} kernel"):
        return _compile(_entries(ZEROS[dtype], SOURCES)[name])


def _compile(entry: Any) -> Any:
    signature = (types.int64,), types.void
    function: Any = CFunc(entry, signature, {}, {"error_model": "numpy"})
    with suppress(RuntimeError):  # nowhere to keep it
        function._cache = _Kept(entry)
    function.compile()
    return function


class _Stored(CompileResultCacheImpl):  # type: ignore[misc]
    """What is stored of a function, with its digest: numba would run damaged code."""

    def reduce(self, compiled: Any) -> tuple[bytes, bytes]:
        stored = dumps(super().reduce(compiled))
        return sha256(stored).digest(), stored

    def rebuild(self, target_context: Any, payload: tuple[bytes, bytes]) -> Any:
        digest, stored = payload
        if sha256(stored).digest() != digest:
            raise ValueError("it was changed")
        return super().rebuild(target_context, pickle.loads(stored))


class _Kept(FunctionCache):  # type: ignore[misc]
    """Numba's cache on disk of one function, that whatever is wrong with its files cannot stop."""

    _impl_class = _Stored

    def load_overload(self, *args: Any) -> Any:
        try:
            return super().load_overload(*args)
        except Exception as error:  # unpickling raises what it likes
            self._warn("cannot be read", error)
            with suppress(Exception):
                self.flush()  # else nothing could be added
            return None

    def save_overload(self, *args: Any) -> None:
        try:
            super().save_overload(*args)
        except Exception as error:
            self._warn("cannot be written", error)

    def _warn(self, what: str, error: Exception) -> None:
        message = f"the numba backend's kernels in {self.cache_path} {what}, so they are compiled: {error!r}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def _entries(zero: Any, version: str) -> dict[str, Any]:
    """The kernels for a dtype. Numba tells them from others that it kept by what they enclose: plain values only."""

    def forward_entry(call: Any) -> None:
        version  # noqa: B018
        forward(call, None, zero)

    def backward_entry(call: Any) -> None:
        version  # noqa: B018
        backward(call, None, zero)

    def biased_forward_entry(call: Any) -> None:
        version  # noqa: B018
        forward(call, True, zero)

    def biased_backward_entry(call: Any) -> None:
        version  # noqa: B018
        backward(call, True, zero)

    def spread_entry(call: Any) -> None:
        version  # noqa: B018
        spread(call, zero)

    def gather_entry(call: Any) -> None:
        version  # noqa: B018
        gather(call, zero)

    return {
        "forward": forward_entry,
        "backward": backward_entry,
        "biased forward": biased_forward_entry,
        "biased backward": biased_backward_entry,
        "spread": spread_entry,
        "gather": gather_entry,
    }


def _digest() -> str:
    """Of the kernels' files: numba itself looks at the file of the compiled function, this one, only."""
    files = sorted((Path(__file__).parent / "kernels").glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


SOURCES = _digest()  # as they were imported: what changes later is not what is compiled here
