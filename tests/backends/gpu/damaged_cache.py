"""Compiles a kernel with Triton's disk cache in bad states: `python damaged_cache.py FOLDER STATE...`.

Prints a line of JSON for each: after the damage, and once more, how often the kernel was compiled and how many warnings
there were. Every time is like a process of its own: what Triton keeps in memory is dropped.
"""

from __future__ import annotations

import errno
import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import FileCacheManager

from vicinal.backends.gpu import kernel_cache
from vicinal.backends.gpu.absent import AbsentDriver
from vicinal.backends.triton.kernels.backward import delta_kernel

PLAIN = {"num_warps": 4}


class Driver(AbsentDriver):
    """Loads what is whole."""

    whole: bytes | None = None

    def __init__(self) -> None:
        super().__init__(GPUTarget("cuda", 90, 32))
        self.utils = SimpleNamespace(
            load_binary=self.load, get_device_properties=lambda device: {"max_shared_mem": 1 << 20}
        )
        self.launcher_cls = lambda source, metadata: lambda *arguments: None

    def load(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        self.whole = self.whole or binary
        if binary != self.whole:
            raise RuntimeError("Triton Error [CUDA]: device kernel image is invalid")
        return 1, 2, 32, 0, 1024


def load() -> dict[str, int]:
    """As a new process would."""
    compilations = []
    knobs.compilation.listener = lambda cache_hit, **_: None if cache_hit else compilations.append(1)
    delta_kernel.device_caches.clear()
    pointers = [torch.empty(64, 32) for _ in range(2)]
    arguments = (*pointers, None, torch.empty(64), 64, 32, 32, False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        grid = (2, 1, 1)
        kernel_cache.loaded(delta_kernel, lambda: kernel_cache.compiled(delta_kernel, arguments, grid, PLAIN), grid)
    return {"compilations": len(compilations), "warnings": len([w for w in caught if "anew" in str(w.message)])}


def damage(state: str, folder: Path) -> None:
    """Bring the cache into a state: `KIND FILES` damages the files of that ending."""
    if state == "full":
        knobs.cache.dir = str(folder / "full")
    elif state == "unwritable":
        (folder / "file").touch()
        knobs.cache.dir = str(folder / "file" / "below")
    else:
        kind, ending = state.split()
        files = [f for f in folder.rglob("*") if f.is_file() and f.name.endswith(ending)]
        assert files
        for file in files:
            content = file.read_bytes()
            file.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "null": b"null"}[kind])


def put(self: FileCacheManager, *arguments: object) -> str:
    """As ever, but for the folder "full"."""
    if "/full/" in self.cache_dir:
        raise OSError(errno.ENOSPC, "No space left on device")
    return write(self, *arguments)


if __name__ == "__main__":
    write, FileCacheManager.put = FileCacheManager.put, put
    triton.runtime.driver.set_active(Driver())
    for i, state in enumerate(sys.argv[2:]):
        folder = Path(sys.argv[1], str(i))
        folder.mkdir()
        knobs.cache.dir = str(folder)
        load()
        damage(state, folder)
        print(json.dumps([load(), load()]))
