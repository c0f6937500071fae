"""One call of a pass: run, or only compiled, ahead of its use.

A pass is written once: it allocates what it writes, and gives its launches to a `Run`, in order. A `Run` launches them.
`Ahead` is one that keeps what compiles them instead: of tensors on the meta device (`without_memory`), where what is
allocated and what torch computes costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from vicinal.backends.gpu import tables
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.gpu.strides import aligned
from vicinal.compiling import Job
from vicinal.problem import Inputs


class Run:
    """Launches on the current stream of the current device, the tensors'.

    Attributes:
        aligned: whether all tensors that the call is given start at a multiple of 16 bytes.
    """

    def __init__(self, aligned: bool) -> None:
        self.aligned = aligned

    def launch(self, launch: Launch, *tensors: Tensor | None) -> None:
        """Launch a kernel on these tensors."""
        launch(tensors, self.aligned)

    def in_use(self, table: Tensor) -> None:
        """To be called before a launch that reads `table`: see `tables.in_use`."""
        tables.in_use(table)

    def table(self, key: Hashable, device: torch.device, rows: Callable[[], Sequence[int] | Tensor]) -> Tensor:
        """A table made once, by its key: see `tables.table_of`."""
        return tables.table_of(key, device, rows)

    def kept(self, key: Hashable, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """What launches compute once for many calls: see `tables.kept_of`."""
        return tables.kept_of(key, device, make)


class Ahead(Run):
    """Launches nothing.

    Attributes:
        jobs: compilations of what would have been launched, in order.
    """

    def __init__(self, aligned: bool = True) -> None:
        super().__init__(aligned)
        self.jobs: list[Job] = []

    def launch(self, launch: Launch, *tensors: Tensor | None) -> None:
        self.jobs.append(partial(launch.compile, tensors))

    def in_use(self, table: Tensor) -> None:
        pass

    def table(self, key: Hashable, device: torch.device, rows: Callable[[], Sequence[int] | Tensor]) -> Tensor:
        return torch.empty(1, dtype=torch.int32, device="meta")

    def kept(self, key: Hashable, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        return make()


ALIGNED, UNALIGNED = Run(True), Run(False)


def run_of(tensors: Iterable[Tensor | None]) -> Run:
    """What launches kernels on these tensors."""
    return ALIGNED if aligned(tensors) else UNALIGNED


def without_memory(inputs: Inputs) -> Inputs:
    """Tensors of these shapes, strides and dtypes on the meta device."""
    return Inputs(*map(_on_meta, inputs))  # type: ignore[arg-type]


def _on_meta(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
