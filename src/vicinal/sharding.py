"""How `torch.distributed.tensor` splits the operators: over batch elements or heads, without communication.

Where a map is split along spatial axes, the way goes to `vicinal.distributed`, which exchanges halos.

Registered when the first `DTensor` comes, since importing it takes longer than all of vicinal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch

from vicinal.geometry.neighborhood import Neighborhood, decode
from vicinal.operators import attend, attend_backward
from vicinal.problem import Inputs
from vicinal.torch_internals import run_when_traced

COUNT = len(Inputs._fields)


def prepare(inputs: Sequence[Any], per_head: bool) -> None:
    """Where the inputs are `DTensor`s: checks how they are split, and registers the strategies.

    Raises:
        ValueError: a tensor is split along its head_dim, or heads are split that cannot be.
    """
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not any(isinstance(t, module.DTensor) for t in inputs):
        return
    _register()
    for name, tensor in zip(("query", "key", "value"), inputs):
        if isinstance(tensor, module.DTensor):
            _check(name, tensor)
    query, key = inputs[:2]
    if isinstance(query, module.DTensor) and not _may_split_heads(query, key, per_head):
        why = "each has a neighborhood of its own" if per_head else f"key has {key.shape[-2]}, no multiple"
        raise ValueError(f"query's heads cannot be split over {_parts(query)} processes, since {why}; shard the batch")


def _check(name: str, tensor: Any) -> None:
    heads = tensor.ndim - 2
    if any(placement.is_shard() and placement.dim > heads for placement in tensor.placements):
        raise ValueError(
            f"{name} is split along its head_dim; neighborhood attention of DTensors is split over the batch, "
            f"Shard(0), over heads, Shard({heads}), or over spatial axes, Shard(1) to Shard({heads - 1})"
        )


def splits_map(inputs: Sequence[Any]) -> bool:
    """Whether the query is a `DTensor` that is split along a spatial axis."""
    module = sys.modules.get("torch.distributed.tensor")
    query = inputs[0]
    if module is None or not isinstance(query, module.DTensor):
        return False
    return any(p.is_shard() and 1 <= p.dim < query.ndim - 2 for p in query.placements)


def attend_split(
    inputs: Inputs, neighborhoods: tuple[Neighborhood, ...], scale: float | None, backend: str | None
) -> tuple[Any, Any]:
    """Output and log-sum-exp of `DTensor`s that are split along spatial axes, by halo exchange; placed as the query is.

    Keys and values are brought to the query's placements, what has no spatial axes to those of its batch and heads.

    Raises:
        TypeError: some input is no DTensor.
        ValueError: see `prepare`, and `vicinal.distributed.context_parallel.attend`.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    from vicinal.distributed.context_parallel import attend as attend_shards
    from vicinal.distributed.layout import Layout

    for name, t in zip(Inputs._fields, inputs):
        if t is not None and not isinstance(t, DTensor):
            raise TypeError(f"{name} must be a DTensor, as query is, got {type(t).__name__}")
    prepare(inputs, len(neighborhoods) > 1)
    query: Any = inputs.query
    mesh, placements, heads = query.device_mesh, query.placements, query.ndim - 2
    if not all(p.is_shard() or p.is_replicate() for p in placements):
        raise ValueError(f"query must be sharded or replicated along every dimension of the mesh, got {placements}")
    axes: dict[str | int, int] = {i: p.dim - 1 for i, p in enumerate(placements) if p.is_shard() and 1 <= p.dim < heads}

    def placed(of_batch: Any, of_heads: Any, otherwise: Any) -> list[Any]:
        """The placements of what has no spatial axes."""
        choice = {0: of_batch, heads: of_heads}
        return [choice.get(p.dim, otherwise) if p.is_shard() else Replicate() for p in placements]

    extra = placed(Shard(0), Shard(2), Replicate()), placed(Shard(0), Shard(2), Partial())
    bias = placed(Replicate(), Shard(0), Replicate()), placed(Partial(), Shard(0), Partial())
    mask = [p if p.is_shard() and p.dim < heads else Replicate() for p in placements]
    each: list[Any] = [(placements, placements)] * 3 + [extra] * 2 + [bias] + [(mask, mask)] * 2
    local = [
        None if t is None else t.redistribute(mesh, own).to_local(grad_placements=grads)  # type: ignore[attr-defined]
        for t, (own, grads) in zip(inputs, each, strict=True)
    ]
    layout = Layout.of(mesh, axes, tuple(query.shape[1:-2]))
    output, lse = attend_shards(Inputs(*local), neighborhoods, scale, layout, backend)  # type: ignore[arg-type]

    def whole(t: Any, shape: tuple[int, ...]) -> Any:
        stride = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
        return DTensor.from_local(t, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)

    return whole(output, (*query.shape[:-1], inputs.value.shape[-1])), whole(lse, tuple(query.shape[:-1]))


def _parts(query: Any) -> int:
    """Processes that the heads are split over."""
    parts = 1
    for dimension, placement in enumerate(query.placements):
        if placement.is_shard(len(query.shape) - 2):
            parts *= query.device_mesh.size(dimension)
    return parts


def _may_split_heads(query: Any, key: Any, per_head: bool) -> bool:
    parts = _parts(query)
    return parts == 1 or (not per_head and key.shape[-2] % parts == 0)


@run_when_traced
def _register() -> None:
    _register_once()


@cache
def _register_once() -> None:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
    from torch.distributed.tensor.experimental import register_sharding

    register_sharding(attend)(_forward)
    register_sharding(attend_backward)(_backward)
    # What they say depends on neighborhoods and on what is wanted, which must be part of the cache's key.
    known = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    known[attend] = RuntimeSchemaInfo(static_argnum=COUNT)
    known[attend_backward] = RuntimeSchemaInfo(static_argnum=4 + COUNT)


def _forward(*args: Any) -> list[Any]:
    """Acceptable placements of results and of arguments, along one dimension of the mesh."""
    inputs, rest = args[:COUNT], args[COUNT:]
    found = []
    for tokens, additional, table, mask in _splits(inputs, rest[0]):
        given = _of_present(inputs, (tokens, tokens, tokens, additional, additional, table, mask, tokens))
        found.append(([tokens, tokens], [*given, *[None] * len(rest)]))
    return found


def _backward(*args: Any) -> list[Any]:
    """The same of the backward operator."""
    from torch.distributed.tensor import Partial, Replicate

    upstream, inputs, rest = args[:4], args[4 : 4 + COUNT], args[4 + COUNT :]
    found = []
    for tokens, additional, table, mask in _splits(inputs, rest[0]):
        above = _of_present(upstream, (tokens,) * 4)
        given = _of_present(inputs, (tokens, tokens, tokens, additional, additional, table, mask, tokens))
        grads = (tokens, tokens, tokens, additional, additional, Partial() if tokens.is_shard(0) else table)
        # What is not wanted is an empty tensor, the same everywhere.
        results = [grad if is_wanted else Replicate() for grad, is_wanted in zip(grads, rest[-1])]
        found.append((results, [*above, *given, *[None] * len(rest)]))
    return found


def _splits(inputs: Sequence[Any], code: Sequence[int]) -> list[tuple[Any, Any, Any, Any]]:
    """Placements of tokens, additional keys and values, the bias and the key mask: everywhere, by batch, by heads."""
    from torch.distributed.tensor import Replicate, Shard

    query, key = inputs[:2]
    heads = len(query.shape) - 2
    all_of, batch = Replicate(), Shard(0)
    splits: list[tuple[Any, Any, Any, Any]] = [(all_of,) * 4, (batch, batch, all_of, batch)]
    is_split = any(p.is_shard(heads) for p in query.placements)
    if is_split and _may_split_heads(query, key, len(decode(code, heads - 1)) > 1):
        splits.append((Shard(heads), Shard(2), Shard(0), all_of))
    return splits


def _of_present(tensors: Sequence[Any], placements: Sequence[Any]) -> list[Any]:
    return [None if t is None else placement for t, placement in zip(tensors, placements)]
