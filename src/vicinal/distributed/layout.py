"""`Layout`: which tokens of a map each rank of a device mesh holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from vicinal.distributed.exchange import cut
from vicinal.distributed.halo import LEAST_INSIDE, NEAR_INSIDE, Box, chunks
from vicinal.geometry.neighborhood import MAX_RANK


@dataclass(frozen=True, eq=False)
class Layout:
    """Which tokens of a map each rank of a mesh holds: a box, cut along some dimensions of the mesh.

    Along the others, ranks hold the same box, of other batch elements or heads.

    Attributes:
        mesh: the device mesh.
        lengths: of the whole map.
        dims: pairs of a dimension of the mesh and the spatial axis that is split along it, by the mesh's dimensions.
        shards: the box of each rank of `group`, in the order of its ranks.
        rank: ours in `group`.
        group: the process group of the ranks that hold the map together.
        on_one_host: whether these are all of one host, as torchrun numbers them.
    """

    mesh: DeviceMesh
    lengths: tuple[int, ...]
    dims: tuple[tuple[int, int], ...]
    shards: tuple[Box, ...]
    rank: int
    group: dist.ProcessGroup
    on_one_host: bool = True

    @classmethod
    def of(
        cls,
        mesh: DeviceMesh,
        axes: Mapping[str | int, int],
        lengths: Sequence[int],
        sizes: Mapping[int, Sequence[int]] | None = None,
    ) -> Layout:
        """A map cut along some of its axes.

        Args:
            mesh: a device mesh; this process is one of its ranks.
            axes: by dimension of the mesh (its name or number) the spatial axis that is split along it.
            lengths: of the whole map.
            sizes: by spatial axis, how many tokens each rank along it holds, where they are not as `torch.chunk` (and
                `DTensor`) cuts. Only of axes that are split along one dimension.

        Raises:
            ValueError: a dimension or an axis that there is not, sizes that do not fit, or several dimensions of a mesh
                that has no names for them.
        """
        names = mesh.mesh_dim_names or ()
        dims = []
        for name, axis in axes.items():
            dim = names.index(name) if name in names else name
            if not isinstance(dim, int) or not 0 <= dim < mesh.ndim:
                allowed = ", ".join(map(repr, names or range(mesh.ndim)))
                raise ValueError(f"axes must be of dimensions of the mesh, {allowed}, got {name!r}")
            if not isinstance(axis, int) or not 0 <= axis < len(lengths):
                raise ValueError(f"axes must name spatial axes, from 0 to {len(lengths) - 1}, got {axis!r}")
            dims.append((dim, axis))
        if len({dim for dim, _ in dims}) < len(dims):
            raise ValueError(f"axes must name every dimension of the mesh once, got {axes}")
        if not dims or not 1 <= len(lengths) <= MAX_RANK:
            raise ValueError(f"a layout needs axes that are split, and 1 to {MAX_RANK} lengths, got {axes}, {lengths}")
        ordered = tuple(sorted(dims))
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            raise ValueError(f"this process must be of the mesh, which is {mesh}")
        counts = [mesh.size(dim) for dim, _ in ordered]
        places = list(product(*map(range, counts)))
        shards = tuple(_shard(tuple(lengths), ordered, counts, place, sizes or {}) for place in places)
        rank = places.index(tuple(coordinate[dim] for dim, _ in ordered))
        group = _group(mesh, [dim for dim, _ in ordered])
        return cls(
            mesh, tuple(lengths), ordered, shards, rank, group, _on_one_host(dist.get_process_group_ranks(group))
        )

    @property
    def shard(self) -> Box:
        """Ours."""
        return self.shards[self.rank]

    @property
    def own_lengths(self) -> tuple[int, ...]:
        """Of our shard."""
        return tuple(stop - start for start, stop in self.shard)

    @property
    def least_inside(self) -> float:
        """The share of its queries that a rank had better compute while the halo travels (see `Halo.parts`).

        On two H200 of one host, both passes took 3% longer than with one launch after the exchange where 85% of the
        queries were inside, 8% at 54%, as long at 96%, and 8% less at 99%, where next to nothing is copied. Between
        hosts, a halo takes some times as long.
        """
        return NEAR_INSIDE if self.on_one_host else LEAST_INSIDE

    def local(self, tokens: Tensor) -> Tensor:
        """Our part of the whole map's tokens, `[B, *X, ...]`: a view."""
        return cut(tokens, self.shard, tuple((0, n) for n in self.lengths))


def _group(mesh: DeviceMesh, dims: Sequence[int]) -> dist.ProcessGroup:
    """The ranks along these dimensions. Along several, every process of the job makes the group, the first time."""
    if len(dims) == 1:
        return mesh.get_group(dims[0])
    names = mesh.mesh_dim_names
    if names is None:
        raise ValueError("mesh must have names for its dimensions (mesh_dim_names) where several split a map")
    part = mesh if len(dims) == mesh.ndim else mesh[tuple(names[dim] for dim in dims)]
    return part._flatten("_".join(["vicinal", *(names[dim] for dim in dims)])).get_group()


def _on_one_host(ranks: Sequence[int]) -> bool:
    """As torchrun numbers ranks; where it did not start them, they are taken to be."""
    each = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or max(ranks) + 1
    return len({rank // each for rank in ranks}) == 1


def _shard(
    lengths: tuple[int, ...],
    dims: Sequence[tuple[int, int]],
    counts: Sequence[int],
    place: Sequence[int],
    sizes: Mapping[int, Sequence[int]],
) -> Box:
    """The box at a place of the mesh: an axis that is split along several dimensions is cut again and again."""
    box = [(0, n) for n in lengths]
    for (_, axis), parts, at in zip(dims, counts, place):
        if axis in sizes:
            own = tuple(sizes[axis])
            if len(own) != parts or sum(own) != lengths[axis] or box[axis] != (0, lengths[axis]) or min(own) < 0:
                raise ValueError(
                    f"sizes of axis {axis} must be {parts} numbers that add up to {lengths[axis]}, got {own}"
                )
            box[axis] = (sum(own[:at]), sum(own[: at + 1]))
        else:
            box[axis] = chunks(box[axis], parts)[at]
    return tuple(box)
