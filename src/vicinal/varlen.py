"""`na1d_varlen`, `na2d_varlen`, `na3d_varlen`: maps of different sizes in one call, packed one after the other.

On GPUs of the backend `triton` it is one launch, whatever the sizes. Elsewhere, and where that backend cannot run the
problem, maps that are alike are one call each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vicinal.autocast import autocast
from vicinal.calls import attend, neighborhood
from vicinal.checks import check_inputs, check_scale, check_switch, check_tensor
from vicinal.geometry.maps import Maps
from vicinal.geometry.neighborhood import Boundary, Neighborhood, PerAxis
from vicinal.maps_operators import attend_maps, can_launch
from vicinal.problem import Inputs

Lengths: TypeAlias = Tensor | Sequence[int] | Sequence[Sequence[int]]
Windows: TypeAlias = PerAxis[int | None] | Sequence[Sequence[int | None]] | Tensor


def na1d_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Lengths | None,
    kernel_size: Windows,
    stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1,
    is_causal: PerAxis[bool] | None = False,
    scale: float | None = None,
    *,
    boundary: PerAxis[Boundary] = "shift",
    clamp: bool = False,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """1-D neighborhood attention of lines of different lengths, each with its own borders.

    Args:
        query: `[total, H, D]`, the lines' tokens one after the other; or a `torch.nested` tensor `[N, *, H, D]` with
            the layout `torch.jagged` and no holes, as are then key, value and what comes back.
        key: `[total, Hkv, D]`; `H` is a multiple of `Hkv`.
        value: `[total, Hkv, Dv]`.
        lengths: how many tokens each line has: a sequence of integers, or an integer tensor `[N]` or `[N, 1]`, which is
            read on the host (a GPU is waited for). None for nested tensors, which know.
        kernel_size: as in `na1d`, for all lines; or for each: a sequence of N sequences, or an integer tensor `[N, 1]`.
        stride, dilation, is_causal, scale, boundary: as in `na1d`.
        clamp: lines that are too short for the window take the largest that fits, as in `na1d`.
        rpb: relative positional bias `[H, 2*K0-1]`, for one `kernel_size` of all lines.
        return_lse: also return the log-sum-exp of the scores.
        backend: as in `na1d`.

    Returns:
        output `[total, H, Dv]`; with `return_lse` also the log-sum-exp `[total, H]`.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: lengths do not add up to the tokens, shapes, devices or windows do not fit, or the backend cannot
            run the problem.
    """
    if isinstance(query, Tensor) and query.is_nested:
        rest = (boundary, clamp, rpb, return_lse, backend)
        return _nested(query, key, value, lengths, kernel_size, stride, dilation, is_causal, scale, *rest)
    geometry = (kernel_size, stride, dilation, is_causal, boundary)
    return _packed(1, query, key, value, lengths, geometry, clamp, rpb, scale, return_lse, backend)


def na2d_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Lengths,
    kernel_size: Windows,
    stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1,
    is_causal: PerAxis[bool] | None = False,
    scale: float | None = None,
    *,
    boundary: PerAxis[Boundary] = "shift",
    clamp: bool = False,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """2-D neighborhood attention of maps of different sizes, each with its own borders.

    Args:
        query: `[total, H, D]`, the maps' tokens one after the other, each map's in row-major order.
        key: `[total, Hkv, D]`; `H` is a multiple of `Hkv`.
        value: `[total, Hkv, Dv]`.
        lengths: of each map: N pairs, or an integer tensor `[N, 2]`, which is read on the host (a GPU is waited for).
        kernel_size: as in `na2d`, for all maps; or for each: a sequence of N pairs, or an integer tensor `[N, 2]`.
        stride, dilation, is_causal, scale, boundary: as in `na2d`.
        clamp: maps that are too small for the window take the largest that fits, as in `na1d`.
        rpb: relative positional bias `[H, 2*K0-1, 2*K1-1]`, for one `kernel_size` of all maps.
        return_lse: also return the log-sum-exp of the scores.
        backend: as in `na2d`.

    Returns:
        output `[total, H, Dv]`; with `return_lse` also the log-sum-exp `[total, H]`.

    Raises:
        TypeError, ValueError: as `na1d_varlen`.
    """
    geometry = (kernel_size, stride, dilation, is_causal, boundary)
    return _packed(2, query, key, value, lengths, geometry, clamp, rpb, scale, return_lse, backend)


def na3d_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Lengths,
    kernel_size: Windows,
    stride: PerAxis[int] | None = 1,
    dilation: PerAxis[int] | None = 1,
    is_causal: PerAxis[bool] | None = False,
    scale: float | None = None,
    *,
    boundary: PerAxis[Boundary] = "shift",
    clamp: bool = False,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """3-D neighborhood attention of clips of different sizes, each with its own borders.

    Args:
        query: `[total, H, D]`, the clips' tokens one after the other, each clip's in row-major order.
        key: `[total, Hkv, D]`; `H` is a multiple of `Hkv`.
        value: `[total, Hkv, Dv]`.
        lengths: of each clip: N triples, or an integer tensor `[N, 3]`, read on the host (a GPU is waited for).
        kernel_size: as in `na3d`, for all clips; or for each: a sequence of N triples, or an integer tensor `[N, 3]`.
        stride, dilation, is_causal, scale, boundary: as in `na3d`.
        clamp: clips that are too small for the window take the largest that fits, as in `na1d`.
        rpb: relative positional bias `[H, 2*K0-1, 2*K1-1, 2*K2-1]`, for one `kernel_size` of all clips.
        return_lse: also return the log-sum-exp of the scores.
        backend: as in `na3d`.

    Returns:
        output `[total, H, Dv]`; with `return_lse` also the log-sum-exp `[total, H]`.

    Raises:
        TypeError, ValueError: as `na1d_varlen`.
    """
    geometry = (kernel_size, stride, dilation, is_causal, boundary)
    return _packed(3, query, key, value, lengths, geometry, clamp, rpb, scale, return_lse, backend)


def attend_packed(
    inputs: Inputs, maps: Maps, scale: float | None, backend: str | None, clamped_from: Neighborhood | None = None
) -> tuple[Tensor, Tensor]:
    """Output `[total, H, Dv]` and log-sum-exp `[total, H]` of checked tensors.

    `clamped_from`: the neighborhood whose windows `rpb` is of, where maps may have smaller ones.
    """
    query, key, value, rpb = inputs.query, inputs.key, inputs.value, inputs.rpb
    if can_launch(inputs, maps, backend):
        return attend_maps(query, key, value, maps, query.shape[-1] ** -0.5 if scale is None else scale)
    outputs: list[Any] = [None] * len(maps.lengths)
    lses: list[Any] = [None] * len(maps.lengths)
    starts = maps.starts
    for (lengths, own), which in maps.alike.items():
        first, count = starts[which[0]], prod(lengths)
        parts = [slice(starts[i], starts[i + 1]) for i in which]
        if which == list(range(which[0], which[0] + len(which))):
            tokens = [t[first : first + count * len(which)] for t in (query, key, value)]
        else:
            tokens = [torch.cat([t[part] for part in parts]) for t in (query, key, value)]
        q, k, v = (t.unflatten(0, (len(which), *lengths)) for t in tokens)
        window = own if clamped_from is None else clamped_from
        output, lse = attend(Inputs(q, k, v, rpb=rpb), (window,), scale, True, backend, clamped_from is not None)
        rank = len(lengths)
        for i, one, other in zip(which, output.flatten(1, rank), lse.flatten(1, rank)):
            outputs[i], lses[i] = one, other
    found = [t for t in outputs if t is not None]
    if not found:
        empty = query.new_empty((0, query.shape[1], value.shape[-1]))
        return empty, query.new_empty((0, query.shape[1]), dtype=torch.promote_types(query.dtype, torch.float32))
    return torch.cat(found), torch.cat([t for t in lses if t is not None])


def maps_of(lengths: Sequence[tuple[int, ...]], neighborhoods: Sequence[Neighborhood], clamp: bool = False) -> Maps:
    """`Maps.of`, made once for the same values in eager calls."""
    if torch.compiler.is_compiling():
        return Maps.of(lengths, neighborhoods, clamp)
    return _known_maps(tuple(lengths), tuple(neighborhoods), clamp)


_known_maps = lru_cache(maxsize=256)(Maps.of)


def _packed(
    rank: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Any,
    geometry: tuple[Any, ...],
    clamp: bool,
    rpb: Tensor | None,
    scale: float | None,
    return_lse: bool,
    backend: str | None,
) -> Any:
    check_switch("return_lse", return_lse)
    check_switch("clamp", clamp)
    if scale is not None:
        scale = check_scale("scale", scale)
    query, key, value, rpb = autocast((query, key, value, rpb))
    for name, t in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, t)
        if t.ndim != 3:
            raise ValueError(f"{name} must be [total, heads, head_dim], got shape {list(t.shape)}")
    check_inputs(Inputs(query[None], key[None], value[None], rpb=rpb), 1)
    sizes = _integers("lengths", lengths, rank, None)
    windows, *rest = geometry
    each = _each_window(windows, rank, len(sizes))
    if rpb is not None and len(each) > 1:
        raise ValueError("rpb needs one kernel_size for all maps, got one for each")
    neighborhoods = [neighborhood(rank, own, *rest) for own in each]
    maps = maps_of(sizes, neighborhoods, clamp)
    if maps.total != query.shape[0]:
        raise ValueError(f"lengths must add up to all {query.shape[0]} tokens of query, got {maps.total}")
    clamped_from = neighborhoods[0] if rpb is not None and clamp else None
    output, lse = attend_packed(Inputs(query, key, value, rpb=rpb), maps, scale, backend, clamped_from)
    return (output, lse) if return_lse else output


def _each_window(given: Any, rank: int, count: int) -> list[Any]:
    """One window for all maps, or one for each."""
    if isinstance(given, Tensor):
        return list(_integers("kernel_size", given, rank, count))
    if isinstance(given, (list, tuple)) and given and all(isinstance(x, (list, tuple)) for x in given):
        if len(given) != count:
            raise ValueError(f"kernel_size must be one for all maps or one for each of {count}, got {len(given)}")
        return list(given)
    return [given]


def _integers(name: str, given: Any, rank: int, count: int | None) -> list[tuple[int, ...]]:
    """`[N, rank]` integers as tuples; of rank 1 also `[N]`."""
    if isinstance(given, Tensor):
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"{name} must be of integers, got a tensor of {given.dtype}")
        if given.is_meta:
            raise ValueError(f"{name} must have values, got a meta tensor")
        given = given.tolist()
    if not isinstance(given, (list, tuple)) or not given:
        raise TypeError(f"{name} must be a tensor or a sequence with an entry for each map, got {given!r}")
    rows = [(row,) if rank == 1 and not isinstance(row, (list, tuple)) else row for row in given]
    if not all(isinstance(row, (list, tuple)) and len(row) == rank for row in rows):
        many = "one integer" if rank == 1 else f"{rank} integers"
        raise ValueError(f"{name} must have {many} for each map, got {given!r}")
    if any(not isinstance(n, int) or isinstance(n, bool) for row in rows for n in row):
        raise TypeError(f"{name} must be of integers, got {given!r}")
    if any(n < 0 for row in rows for n in row):
        raise ValueError(f"{name} must not be negative, got {given!r}")
    if count is not None and len(rows) != count:
        raise ValueError(f"{name} must be one for all maps or one for each of {count}, got {len(rows)}")
    return [tuple(row) for row in rows]


def _nested(query: Tensor, key: Any, value: Any, lengths: Any, *rest: Any) -> Any:
    """Of jagged tensors, by their values."""
    if lengths is not None:
        raise ValueError("lengths must be None where query is a nested tensor, which knows them")
    for name, t in (("query", query), ("key", key), ("value", value)):
        if not isinstance(t, Tensor) or not t.is_nested or t.layout is not torch.jagged:
            raise TypeError(f"{name} must be a nested tensor of the layout torch.jagged, as query is, got {type(t)}")
        own: Any = t
        if own.dim() != 4 or own._ragged_idx != 1:
            raise ValueError(
                f"{name} must be [N, *, heads, head_dim], got {own.dim()} dimensions, of which lengths differ along "
                f"dimension {own._ragged_idx}"
            )
        if own.lengths() is not None:
            raise ValueError(
                f"{name} must have no holes between its lines, as torch.nested.narrow leaves them; without them it is "
                "torch.nested.as_nested_tensor(list(x.unbind()), layout=torch.jagged)"
            )
    offsets: Tensor = query.offsets()  # type: ignore[attr-defined]
    if any(not torch.equal(t.offsets(), offsets) for t in (key, value)):
        raise ValueError("key and value must have as many tokens as query in every line")
    places = offsets.tolist()
    sizes = [stop - start for start, stop in pairwise(places)]
    kernel_size, stride, dilation, is_causal, scale, boundary, clamp, rpb, return_lse, backend = rest
    found = na1d_varlen(
        query.values(), key.values(), value.values(), sizes, kernel_size, stride, dilation, is_causal, scale,
        boundary=boundary, clamp=clamp, rpb=rpb, return_lse=return_lse, backend=backend,
    )  # fmt: skip
    if isinstance(found, tuple):
        return tuple(torch.nested.nested_tensor_from_jagged(t, offsets) for t in found)
    return torch.nested.nested_tensor_from_jagged(found, offsets)
