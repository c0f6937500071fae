"""Checks of what the public functions are given: each error names the argument, what came and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vicinal.dispatch import BACKENDS
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_call(inputs: Inputs, neighborhoods: tuple[Neighborhood, ...], backend: str | None) -> None:
    """That a call of `neighborhood_attention` is right.

    Raises:
        TypeError: an argument of the wrong type, or not of a supported float dtype, or dtypes that differ.
        ValueError: shapes, devices or windows that do not fit, or an unknown backend.
    """
    for n in neighborhoods:
        if not isinstance(n, Neighborhood):
            raise TypeError(f"neighborhood must be a Neighborhood or a sequence of them, got {type(n).__name__}")
    if not neighborhoods:
        raise ValueError("neighborhood must not be an empty sequence")
    rank = neighborhoods[0].rank
    if any(n.rank != rank for n in neighborhoods):
        raise ValueError(f"neighborhood must have one rank for all heads, got {[n.rank for n in neighborhoods]}")
    check_inputs(inputs, rank)
    check_neighborhoods(neighborhoods, inputs.rpb, inputs.query.shape[1:-2], inputs.query.shape[-2])
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def check_inputs(inputs: Inputs, rank: int) -> None:
    """That the tensors of a call fit each other and have `rank` spatial axes.

    Raises:
        TypeError: not a tensor, or not a supported float dtype, or dtypes that differ.
        ValueError: ranks, shapes or devices that do not fit.
    """
    query, key, value, additional_keys, additional_values, _ = inputs
    layout = f"[batch, {', '.join(f'X{i}' for i in range(rank))}, heads, head_dim]"
    for name, t in zip(inputs._fields, inputs):
        if t is not None or name in ("query", "key", "value"):
            check_tensor(name, t, query)
    for name, t in (("query", query), ("key", key), ("value", value)):
        if t.ndim != rank + 3:
            raise ValueError(f"{name} must have {rank + 3} dimensions {layout}, got shape {_shape(t)}")
        if t.shape[-1] < 1 or t.shape[-2] < 1:
            raise ValueError(f"{name} must have at least one head and a head_dim of at least 1, got shape {_shape(t)}")
    check_key(query, key)
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"value must have key's batch, spatial lengths and heads, {_shape(key)}, got shape {_shape(value)}"
        )
    if (additional_keys is None) != (additional_values is None):
        missing = "additional_keys" if additional_keys is None else "additional_values"
        raise ValueError(f"additional_keys and additional_values must be given together, {missing} is None")
    if additional_keys is not None and additional_values is not None:
        check_additional("additional_keys", additional_keys, key)
        check_additional("additional_values", additional_values, value)
        if additional_keys.shape[1] != additional_values.shape[1]:
            raise ValueError(
                f"additional_keys and additional_values must have the same number of tokens, got "
                f"{additional_keys.shape[1]} and {additional_values.shape[1]}"
            )


def check_tensor(name: str, t: object, query: Tensor) -> None:
    """That it is a tensor of a supported dtype, which is query's, on query's device.

    Raises:
        TypeError, ValueError: as `check_inputs`.
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype not in DTYPES:
        raise TypeError(f"{name} must be of one of the dtypes {', '.join(map(str, DTYPES))}, got {t.dtype}")
    if t.dtype != query.dtype:
        raise TypeError(f"{name} must have query's dtype {query.dtype}, got {t.dtype}")
    if t.device != query.device:
        raise ValueError(f"{name} must be on query's device {query.device}, got {t.device}")


def check_key(query: Tensor, key: Tensor) -> None:
    """That key has query's batch, spatial lengths and head_dim, and heads that query's are a multiple of.

    Raises:
        ValueError: it has not.
    """
    if key.shape[:-2] != query.shape[:-2]:
        raise ValueError(
            f"key must have the batch and spatial lengths of query, {_shape(query)}, got shape {_shape(key)}"
        )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key must have query's head_dim {query.shape[-1]}, got shape {_shape(key)}")
    _check_heads(query, key)


def check_additional(name: str, t: Tensor, like: Tensor) -> None:
    """That additional keys (or values) have the batch, heads and dim of `like`, the keys (or values).

    Raises:
        ValueError: they have not, or there are none.
    """
    if t.ndim != 4 or t.shape[0] != like.shape[0] or t.shape[2:] != like.shape[-2:] or t.shape[1] < 1:
        raise ValueError(
            f"{name} must have shape [batch, M, heads, head_dim] = "
            f"[{like.shape[0]}, M, {like.shape[-2]}, {like.shape[-1]}] with M at least 1, got {_shape(t)}"
        )


def check_rpb(rpb: Tensor, heads: int, neighborhood: Neighborhood) -> None:
    """That a bias table has a place for every relative position in a resolved neighborhood's window.

    Raises:
        ValueError: it has not.
    """
    expected = [heads, *(2 * k - 1 for k in neighborhood.window if k is not None)]
    if _shape(rpb) != expected:
        raise ValueError(f"rpb must have shape [heads, 2*kernel_size-1, ...] = {expected}, got {_shape(rpb)}")


def check_neighborhoods(
    neighborhoods: Sequence[Neighborhood], rpb: Tensor | None, lengths: Sequence[int], heads: int
) -> None:
    """That every window fits the tokens, that there is one for all heads or one per head, and that rpb fits them.

    Raises:
        ValueError: a window does not fit its axis, or counts or the bias table's shape do not match.
    """
    if len(neighborhoods) not in (1, heads):
        raise ValueError(
            f"neighborhood must be one for all heads or one for each of the {heads} query heads, "
            f"got {len(neighborhoods)}"
        )
    resolved = [n.resolve(lengths) for n in neighborhoods]
    if rpb is None:
        return
    windows = {n.window for n in resolved}
    if len(windows) > 1:
        raise ValueError(f"rpb needs one kernel_size for all heads, got {sorted(map(str, windows))}")
    check_rpb(rpb, heads, resolved[0])


def check_attention_inputs(query: Tensor, key: Tensor, value: Tensor) -> None:
    """That tensors fit plain attention: `[B, N, H, D]`, `[B, M, Hkv, D]`, `[B, M, Hkv, Dv]`.

    Raises:
        TypeError, ValueError: as `check_inputs`.
    """
    for name, t in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, t, query)
        if t.ndim != 4:
            raise ValueError(f"{name} must have 4 dimensions [batch, tokens, heads, head_dim], got shape {_shape(t)}")
    if key.shape[0] != query.shape[0] or key.shape[-1] != query.shape[-1] or key.shape[1] < 1:
        raise ValueError(
            f"key must have query's batch and head_dim and at least one token, query is {_shape(query)}, "
            f"got shape {_shape(key)}"
        )
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(f"value must have key's batch, tokens and heads, {_shape(key)}, got shape {_shape(value)}")
    _check_heads(query, key)


def _check_heads(query: Tensor, key: Tensor) -> None:
    if query.shape[-2] % key.shape[-2] != 0:
        raise ValueError(f"query's heads must be a multiple of key's heads, got {query.shape[-2]} and {key.shape[-2]}")


def _shape(t: Tensor) -> list[int]:
    return list(t.shape)
