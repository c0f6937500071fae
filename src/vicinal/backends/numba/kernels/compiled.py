"""Kernels as C functions of one address, compiled when first asked for and kept on disk by numba.

They are kept next to this file (`__pycache__`), or where that cannot be written in the user's cache directory, or in
`NUMBA_CACHE_DIR`; where none can be written, they are compiled in every process.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from numba import cfunc, types

from vicinal.backends.numba.kernels.backward import backward
from vicinal.backends.numba.kernels.forward import forward

ZEROS = {"float32": np.float32(0), "float64": np.float64(0)}


@cache
def kernel(name: str, dtype: str) -> int:
    """Address of a C function that takes the address of a call (`vicinal.backends.numba.kernels.call`)."""
    return compiled(name, dtype).address


@cache
def compiled(name: str, dtype: str):
    """The compiled function, which must be kept as long as its address is used."""
    entry = _entries(ZEROS[dtype], sources())[name]
    signature = types.void(types.int64)
    try:
        return cfunc(signature, cache=True, error_model="numpy")(entry)
    except RuntimeError:  # nowhere to keep it
        return cfunc(signature, error_model="numpy")(entry)


def _entries(zero, version):
    """The kernels for a dtype. Numba tells them from others that it kept by what they enclose: plain values only."""

    def forward_entry(call):
        version  # noqa: B018
        forward(call, zero)

    def backward_entry(call):
        version  # noqa: B018
        backward(call, zero)

    return {"forward": forward_entry, "backward": backward_entry}


@cache
def sources() -> str:
    """A digest of this package: numba itself looks at the file of the compiled function only."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
