"""Small tables of integers in a device's memory, made once and read by many launches.

A bounded cache owns them, so one may be dropped while something still reads it: a kernel queued on another stream, or a
captured CUDA graph, which keeps its address for good. `in_use` tells of the first to torch's allocator, and keeps what
is captured for as long as the process lives: some kilobytes a table.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from vicinal.caching import Cache

MAX_BYTES = 1 << 26

_tables: Cache[Tensor] = Cache(size=MAX_BYTES, size_of=lambda table: table.nbytes)
_captured: dict[int, Tensor] = {}


def table_of(
    key: Hashable, device: torch.device, rows: Callable[[], Sequence[Sequence[int]] | Sequence[int]]
) -> Tensor:
    """The int32 table of `rows` on `device`; `key` says which table it is."""

    def make() -> Tensor:
        return torch.tensor(rows(), dtype=torch.int32, device=device)

    return _tables.get((key, device), make)


def in_use(table: Tensor) -> None:
    """To be called before a launch that reads `table` on the current stream of the current device."""
    if not table.is_cuda:
        return
    if torch.cuda.is_current_stream_capturing():
        _captured[table.data_ptr()] = table
    else:
        table.record_stream(torch.cuda.current_stream(table.device))
