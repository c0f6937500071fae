"""Small tables in a device's memory, made once and read by many launches.

A bounded cache owns them, so one may be dropped while something still reads it: a kernel queued on another stream, or a
captured CUDA graph, which keeps its address for good. `in_use` tells of the first to torch's allocator, and keeps what
is captured for as long as the process lives: some kilobytes a table.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from ctypes import memmove

import torch
from torch import Tensor

from vicinal.caching import Cache

MAX_BYTES = 1 << 26

_tables: Cache[Tensor] = Cache(size=MAX_BYTES, size_of=lambda table: table.nbytes)
_captured: dict[int, Tensor] = {}


def table_of(
    key: Hashable, device: torch.device, rows: Callable[[], Sequence[Sequence[int]] | Sequence[int] | Tensor]
) -> Tensor:
    """The int32 table of `rows` on `device`; `key` says which table it is.

    It is copied there in the current stream's order, and nothing waits for that; `in_use` says so to other streams.
    """

    def make() -> Tensor:
        table = torch.as_tensor(rows(), dtype=torch.int32, device="cpu" if device.type == "cuda" else device)
        if device.type != "cuda":
            return table
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():  # its memory would be gone at replay: this raises
                return table.to(device)
            pinned = torch.empty(table.shape, dtype=table.dtype, device="cpu", pin_memory=True)
            # By one thread: torch copies large tensors with several, which may wait for busy cores, for milliseconds.
            memmove(pinned.data_ptr(), table.data_ptr(), table.nbytes)
            table = pinned.to(device, non_blocking=True)
            return _written(table, torch.cuda.current_stream())

    return _tables.get((key, device), make)


def kept_of(key: Hashable, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
    """What `make` computes on the current stream of `device`, made once; `key` says what it is.

    To be read by a launch on that stream, next. Nothing waits for it but other streams that read it (`in_use`). What a
    graph that is being captured makes is not kept: it is there only once the graph has run.
    """
    found = _tables.find((key, device))
    if found is None:
        made = make()
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return made
            made = _written(made, torch.cuda.current_stream(device))
        found = _tables.get((key, device), lambda: made)
    in_use(found)
    return found


def _written(table: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """The table, with the event that what is queued on `stream`, which writes it, is done."""
    table.written = stream.record_event()  # type: ignore[attr-defined]
    return table


def in_use(table: Tensor) -> None:
    """To be called before a launch that reads `table` on the current stream of the current device.

    A graph does not wait for what wrote the table: `torch.cuda.graph` awaits the device before it captures.
    """
    if not table.is_cuda:
        return
    if torch.cuda.is_current_stream_capturing():
        _captured[table.data_ptr()] = table
    else:
        stream = torch.cuda.current_stream(table.device)
        written = getattr(table, "written", None)
        if written is not None and not written.query():
            stream.wait_event(written)
        table.record_stream(stream)
