"""`SplitMap`: a module of a neural network on a map that ranks hold together, through `parallelize_module`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_module
from torch.distributed.tensor.parallel import ParallelStyle

from vicinal.geometry.neighborhood import MAX_RANK


class SplitMap(ParallelStyle):
    """Runs a module on this rank's shard of a map `[B, *X, C]` that is split evenly along a spatial axis.

    What the module computes token by token needs nobody else; its neighborhood attention exchanges halos. Parameters
    are the same on every rank, and so are their gradients. Before `fully_shard`, as any parallel style:

        parallelize_module(model, mesh["cp"], {"blocks.*.attn": SplitMap(axis=0)})
        fully_shard(model, mesh=mesh["dp"])

    Args:
        axis: the spatial axis that ranks split, from 0; its length on every rank is the same.

    Raises:
        ValueError: there is no such axis.
    """

    def __init__(self, axis: int = 0) -> None:
        super().__init__()
        if axis not in range(MAX_RANK):
            raise ValueError(f"axis must be a spatial axis, from 0 to {MAX_RANK - 1}, got {axis!r}")
        self.axis = axis

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def split(_: nn.Module, inputs: Any, mesh: DeviceMesh) -> tuple[Any, ...]:
            return tuple(
                DTensor.from_local(x, mesh, [Shard(1 + self.axis)], run_check=False)
                if isinstance(x, Tensor) and not isinstance(x, DTensor)
                else x
                for x in inputs
            )

        def own(_: nn.Module, output: Any, mesh: DeviceMesh) -> Any:
            return output.to_local() if isinstance(output, DTensor) else output

        return distribute_module(module, device_mesh, None, split, own)  # type: ignore[arg-type]
