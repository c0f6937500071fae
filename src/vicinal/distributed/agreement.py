"""Whether ranks agree in what they call: checked together, so that a mistake of one is an error on all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vicinal.checks import check_inputs, check_neighborhoods
from vicinal.dispatch import BACKENDS
from vicinal.distributed.layout import Layout
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs

Neighborhoods = tuple[Neighborhood, ...]


def check_together(
    inputs: Inputs, neighborhoods: Neighborhoods, scale: float, layout: Layout, backend: str | None
) -> None:
    """That our call is right; the first of its kind is compared with what the other ranks call.

    In compiled code, where nothing may be sent while it is traced, ours alone is checked.

    Raises:
        TypeError, ValueError: it is not; or that of another rank is not, or differs, with the ranks.
    """
    if torch.compiler.is_compiling():
        check_shard(inputs, neighborhoods, layout, backend)
        return
    told = _signature(inputs, neighborhoods, scale, layout, backend)
    known = (*told.items(), layout.rank, layout.group.group_name)
    if known not in _agreed:
        _agree(layout.group, told, lambda: check_shard(inputs, neighborhoods, layout, backend))
        _agreed.add(known)
    elif tuple(inputs.query.shape[1:-2]) != layout.own_lengths:
        check_shard(inputs, neighborhoods, layout, backend)


_agreed: set[tuple[Any, ...]] = set()  # without a bound: who forgot would wait for ranks that did not


def check_shard(inputs: Inputs, neighborhoods: Neighborhoods, layout: Layout, backend: str | None) -> None:
    """That our call is right: its tensors are those of our shard, and windows fit the whole map."""
    own = layout.own_lengths
    for name, t in zip(("query", "key", "value"), inputs):
        if isinstance(t, Tensor) and t.ndim == len(own) + 3 and tuple(t.shape[1:-2]) != own:
            raise ValueError(
                f"{name} must hold this rank's shard {layout.shard} of {layout.lengths}, {own} tokens, got shape "
                f"{list(t.shape)}"
            )
    for n in neighborhoods:
        if n.rank != len(own):
            raise ValueError(f"neighborhood must have {len(own)} axes, as the layout has lengths, got {n.rank}")
        if any(span is not None for span in n.spans):
            raise ValueError("spans must not be given where ranks hold shards: these say what each rank has")
    check_inputs(inputs, len(own))
    check_neighborhoods(neighborhoods, inputs.rpb, layout.lengths, inputs.query.shape[-2])
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def _signature(
    inputs: Inputs, neighborhoods: Neighborhoods, scale: float, layout: Layout, backend: str | None
) -> dict[str, Any]:
    """What must be the same on every rank."""

    def rest(t: Tensor | None, spatial: int) -> Any:
        """The shape but for spatial lengths, and the dtype."""
        if not isinstance(t, Tensor):
            return None
        return (*(n for i, n in enumerate(t.shape) if not 1 <= i <= spatial), str(t.dtype))

    rank = len(layout.lengths)
    shapes = {
        name: rest(t, rank if name in ("query", "key", "value", "key_mask") else 0)
        for name, t in inputs._asdict().items()
    }
    said = tuple(" ".join(n.in_words()) for n in neighborhoods)
    return {
        "neighborhood": said,
        "lengths": layout.lengths,
        "shards": layout.shards,
        **shapes,
        "scale": scale,
        "backend": backend,
        "gradients": tuple(t is not None and t.requires_grad for t in inputs) if torch.is_grad_enabled() else (),
    }


def _agree(group: dist.ProcessGroup, told: dict[str, Any], check: Callable[[], None]) -> None:
    """Compares with the other ranks; what is wrong on one is an error on all, and none waits for ever.

    Raises:
        TypeError, ValueError: ours; or that of another rank, or what differs, with the ranks.
    """
    error: Exception | None = None
    try:
        check()
    except (TypeError, ValueError) as found:
        error = found
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, (None if error is None else str(error), told), group=group)
    if error is not None:
        raise error
    ranks = dist.get_process_group_ranks(group)
    for rank, (wrong, _) in zip(ranks, every):
        if wrong is not None:
            raise ValueError(f"rank {rank} cannot take part: {wrong}")
    for name in told:
        values = [repr(other[name]) for _, other in every]
        if len(set(values)) > 1:
            differ = next(i for i, value in enumerate(values) if value != values[0])
            raise ValueError(
                f"{name} must be the same on every rank, got {values[0]} on rank {ranks[0]} and {values[differ]} on "
                f"rank {ranks[differ]}"
            )
