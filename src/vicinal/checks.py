"""Checks of what the public functions are given: each error names the argument, what came and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import inf
from numbers import Real
from typing import get_args

import torch
from torch import Tensor

from vicinal.backends.protocol import Direction
from vicinal.dispatch import BACKENDS
from vicinal.geometry.neighborhood import MAX_RANK, Neighborhood
from vicinal.geometry.tiles import check_span
from vicinal.problem import DTYPES, Inputs, Problem, Wanted
from vicinal.torch_internals import shape_of
from vicinal.warning import warn

PER_TOKEN = "kernel_size per token (window_sizes)"  # as `na2d` and as `neighborhood_attention` call it
SIZES = (torch.int32, torch.int64, torch.int16, torch.uint8)
LSE_DTYPES = (torch.float32, torch.float64)

# Numbers and switches ---------------------------------------------------------------------------------------------


def check_scale(name: str, scale: float) -> float:
    """A factor of the scores as a float: any real Python number.

    Raises:
        TypeError: it is no such number, or not a finite one.
    """
    if type(scale) is float and -inf < scale < inf:
        return scale
    if isinstance(scale, Tensor):
        raise TypeError(f"{name} must be a real number, got a Tensor: multiply the query by it, that carries gradients")
    if isinstance(scale, Real) and not isinstance(scale, bool):
        with suppress(OverflowError):  # of an integer beyond floats
            value = float(scale)
            if -inf < value < inf:
                return value
    raise TypeError(f"{name} must be a finite real number, got {scale!r} of type {type(scale).__name__}")


def check_fraction(name: str, value: float) -> float:
    """A probability.

    Raises:
        TypeError, ValueError: it is no real number, or not from 0 to 1.
    """
    value = check_scale(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value}")
    return value


def check_count(name: str, value: int) -> int:
    """How many there are of something of which there is at least one.

    Raises:
        TypeError, ValueError: it is no integer, or less than 1.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def check_device(name: str, device: torch.device | str | int | None) -> None:
    """A device that torch knows.

    Raises:
        ValueError: it does not.
    """
    try:
        torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"{name} must be a device as torch has them, such as 'cpu' or 'cuda:0', got {device!r}"
        ) from None


def check_switch(name: str, value: bool) -> bool:
    """True or False.

    Raises:
        TypeError: it is neither.
    """
    if value is not True and value is not False:
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
    return value


# Neighborhood attention -------------------------------------------------------------------------------------------


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
    check_inputs(inputs, rank, neighborhoods[0])
    _doubt_layout(inputs.query, inputs.key)
    if inputs.window_sizes is not None and any(s > 1 for n in neighborhoods for s in n.stride):
        raise ValueError(f"stride must be 1 with a {PER_TOKEN}, got {neighborhoods[0].stride}")
    *lengths, heads, _ = shape_of(inputs.query)[1:]
    check_neighborhoods(neighborhoods, inputs.rpb, lengths, heads)
    if backend is not None and (not isinstance(backend, str) or backend not in BACKENDS):
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def check_inputs(inputs: Inputs, rank: int, neighborhood: Neighborhood | None = None) -> None:
    """That the tensors of a call fit each other and have `rank` spatial axes; and `neighborhood`'s spans, if any.

    Raises:
        TypeError: not a dense tensor, or not of a supported float dtype, or dtypes that differ.
        ValueError: ranks, shapes or devices that do not fit.
    """
    query, key, value, additional_keys, additional_values, _, key_mask, window_sizes = inputs
    for name, t in zip(Wanted._fields, inputs):  # `inputs.numbers`, as torch 2.10 traces it
        if t is not None or name in ("query", "key", "value"):
            check_tensor(name, t, None if name == "query" else query)
    for name, t in (("query", query), ("key", key), ("value", value)):
        check_spatial(name, t, rank)
    check_key(query, key, None if neighborhood is None else neighborhood.key_lengths(query.shape[1:-2]))
    _check_value(key, value)
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
    if key_mask is not None:
        check_key_mask(key_mask, key)
    if window_sizes is not None:
        _check_window_sizes(window_sizes, query)


def check_key_mask(mask: object, key: Tensor) -> None:
    """That a mask is `[batch, *lengths]` of the keys, of booleans, on their device.

    Raises:
        TypeError, ValueError: it is not.
    """
    check_tensor("key_mask", mask, allowed=(torch.bool,))
    assert isinstance(mask, Tensor)
    if mask.device != key.device:
        raise ValueError(f"key_mask must be on key's device {key.device}, got {mask.device}")
    if mask.shape != key.shape[:-2]:
        lengths = list(key.shape[1:-2])
        raise ValueError(f"key_mask must have shape {lengths} or {[key.shape[0], *lengths]}, got {_shape(mask)}")


def _check_window_sizes(sizes: object, query: Tensor) -> None:
    check_tensor(PER_TOKEN, sizes, allowed=SIZES)
    assert isinstance(sizes, Tensor)
    if sizes.device != query.device:
        raise ValueError(f"{PER_TOKEN} must be on query's device {query.device}, got {sizes.device}")
    if sizes.shape != query.shape[:-1]:
        tokens = list(query.shape[:-2])
        raise ValueError(f"{PER_TOKEN} must have shape {tokens} or {[*tokens, query.shape[-2]]}, got {_shape(sizes)}")


def check_sizes(sizes: Tensor, most: int) -> None:
    """That windows per token are odd and from 1 to `most`: on a GPU the next wait for it raises, as for an index.

    And that 32 bits hold them, which is what kernels take.

    Raises:
        ValueError: one is not.
    """
    most = min(most, 2**31 - 1)
    wrong = (sizes < 1) | (sizes > most) | (sizes % 2 == 0)
    rule = f"{PER_TOKEN} must be odd and from 1 to {most}, the largest window"
    if sizes.device.type == "cpu":
        if wrong.any():
            raise ValueError(f"{rule}, got {sizes[wrong][0].item()}")
    else:
        torch._assert_async(~wrong.any(), rule)


def check_tensor(
    name: str,
    t: object,
    like: Tensor | None = None,
    of: str = "query",
    allowed: Sequence[torch.dtype] = tuple(DTYPES.values()),
) -> None:
    """That it is a dense tensor of an allowed dtype, and of the dtype and device of `like`, the argument `of`.

    Raises:
        TypeError, ValueError: as `check_inputs`.
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.is_nested or t.layout is not torch.strided:
        kind = "nested" if t.is_nested else str(t.layout).removeprefix("torch.")
        raise TypeError(f"{name} must be a dense (strided) tensor, got a {kind} one")
    if t.dtype not in allowed:
        raise TypeError(f"{name} must be of one of the dtypes {', '.join(map(str, allowed))}, got {t.dtype}")
    if like is None:
        return
    if t.dtype != like.dtype:
        raise TypeError(f"{name} must have {of}'s dtype {like.dtype}, got {t.dtype}")
    if t.device != like.device:
        raise ValueError(f"{name} must be on {of}'s device {like.device}, got {t.device}")


def check_rank(name: str, t: Tensor) -> int:
    """How many spatial lengths a tensor `[batch, *lengths, heads, head_dim]` has, from 1 to 3.

    Raises:
        ValueError: it has more or fewer.
    """
    if not 1 <= t.ndim - 3 <= MAX_RANK:
        raise ValueError(f"{name} must be [batch, 1 to {MAX_RANK} lengths, heads, head_dim], got {_shape(t)}")
    return t.ndim - 3


def check_spatial(name: str, t: Tensor, rank: int) -> None:
    """That it is `[batch, *lengths, heads, head_dim]` with `rank` lengths, and has heads and dimensions.

    Raises:
        ValueError: it is not, or has none.
    """
    if t.ndim != rank + 3:
        axes = ", ".join(f"X{i}" for i in range(rank))
        raise ValueError(f"{name} must have {rank + 3} dimensions [batch, {axes}, heads, head_dim], got {_shape(t)}")
    _check_not_empty(name, t)


def _doubt_layout(query: Tensor, key: Tensor) -> None:
    """One warning where tensors look heads-first, as torch's own attention takes them; none where sizes are traced."""
    global _doubted
    heads, length = key.shape[-2], query.shape[1]
    if _doubted or torch.compiler.is_compiling() or not (isinstance(heads, int) and isinstance(length, int)):
        return
    if heads >= 4 * length and heads > (_MANY_HEADS if query.ndim > 4 else _MANY_HEADS_OF_LINES):
        _doubted = True
        warn(
            f"query {_shape(query)} has {heads} heads and {length} tokens along its first axis: is it heads-first? "
            "vicinal takes [batch, *lengths, heads, head_dim]"
        )


_MANY_HEADS, _MANY_HEADS_OF_LINES = 48, 128  # more are no usual model's; few tokens (a prompt) are usual on one axis
_doubted = False


def check_key(query: Tensor, key: Tensor, lengths: Sequence[int] | None = None) -> None:
    """That key has query's batch, spatial lengths and head_dim, and heads that query's are a multiple of.

    `lengths`: those of the keys, where they are not query's.

    Raises:
        ValueError: it has not.
    """
    if lengths is not None and tuple(lengths) != tuple(query.shape[1:-2]):
        if tuple(key.shape[:-2]) != (query.shape[0], *lengths):
            raise ValueError(
                f"key must have the batch of query, {_shape(query)}, and as many tokens as its spans have keys, "
                f"{list(lengths)}, got {_shape(key)}"
            )
    elif key.shape[:-2] != query.shape[:-2]:
        raise ValueError(f"key must have the batch and spatial lengths of query, {_shape(query)}, got {_shape(key)}")
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key must have query's head_dim {query.shape[-1]}, got {_shape(key)}")
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
    if list(rpb.shape) != expected:
        raise ValueError(f"rpb must have shape [heads, 2*kernel_size-1, ...] = {expected}, got {_shape(rpb)}")


def check_neighborhoods(
    neighborhoods: Sequence[Neighborhood], rpb: Tensor | None, lengths: Sequence[int], heads: int
) -> None:
    """That every window fits the tokens, that there is one for all heads or one per head, and that rpb fits them.

    Raises:
        ValueError: a window does not fit its axis, or counts or the bias table's shape do not match.
    """
    if len(neighborhoods) != 1 and len(neighborhoods) != heads:  # traced, heads may be a symbol: no `in`
        raise ValueError(
            f"neighborhood must be one for all heads or one for each of the {heads} query heads, "
            f"got {len(neighborhoods)}"
        )
    for n in neighborhoods:
        n.check(lengths)
    first = neighborhoods[0]
    if any(n.spans != first.spans for n in neighborhoods):  # compared: symbols have no hash
        raise ValueError("spans must be the same for all heads")
    for n in neighborhoods:
        for index, axis in enumerate(n.axes):
            check_span(axis, index)
    if rpb is None:
        return
    resolved = [n.resolve(lengths) for n in neighborhoods]
    if any(n.window != resolved[0].window for n in resolved):
        windows = sorted({str(n.window) for n in resolved})
        raise ValueError(f"rpb needs one kernel_size for all heads, got {windows}")
    check_rpb(rpb, heads, resolved[0])


def check_weights(attn: Tensor, value: Tensor, slots: int) -> None:
    """That attention weights are `[batch, *lengths, heads, slots]` of value's tokens, and of its dtype.

    Raises:
        TypeError, ValueError: as `check_inputs`.
    """
    check_tensor("attn", attn, value, "value")
    if attn.ndim != value.ndim or attn.shape[:-2] != value.shape[:-2] or attn.shape[-1] != slots:
        raise ValueError(
            f"attn must have shape [batch, *lengths, heads, slots] = {[*value.shape[:-2], 'heads', slots]} "
            f"for value {_shape(value)}, got {_shape(attn)}"
        )
    if attn.shape[-2] < 1 or attn.shape[-2] % value.shape[-2]:
        raise ValueError(f"attn's heads must be a multiple of value's {value.shape[-2]} heads, got {attn.shape[-2]}")


# Tuning and compiling ahead ---------------------------------------------------------------------------------------


def check_problems(problems: Problem | Iterable[Problem]) -> list[Problem]:
    """One or several problems as a list.

    Raises:
        TypeError: they are none.
    """
    if isinstance(problems, Problem):
        return [problems]
    given = list(problems) if isinstance(problems, Iterable) else [problems]
    for each in given:
        if not isinstance(each, Problem):
            raise TypeError(
                f"problems must be one or several vicinal.problem.Problem, got {each!r} of type {type(each).__name__}"
            )
    return given


def check_directions(directions: Sequence[Direction]) -> tuple[Direction, ...]:
    """Passes that there are.

    Raises:
        TypeError, ValueError: no list or tuple, or another pass.
    """
    if not isinstance(directions, (list, tuple)):
        raise TypeError(f"directions must be a list or tuple of {get_args(Direction)}, got {directions!r}")
    for each in directions:
        if each not in get_args(Direction):
            raise ValueError(f"directions must be some of {get_args(Direction)}, got {each!r}")
    return tuple(directions)


# Plain attention --------------------------------------------------------------------------------------------------


def check_attention_inputs(query: Tensor, key: Tensor, value: Tensor) -> None:
    """That tensors fit plain attention: `[B, N, H, D]`, `[B, M, Hkv, D]`, `[B, M, Hkv, Dv]`.

    Raises:
        TypeError, ValueError: as `check_inputs`.
    """
    for name, t in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, t, None if name == "query" else query)
        if t.ndim != 4:
            raise ValueError(f"{name} must have 4 dimensions [batch, tokens, heads, head_dim], got {_shape(t)}")
        _check_not_empty(name, t)
    if key.shape[0] != query.shape[0] or key.shape[-1] != query.shape[-1] or key.shape[1] < 1:
        raise ValueError(
            f"key must have query's batch and head_dim and at least one token, query is {_shape(query)}, "
            f"got {_shape(key)}"
        )
    _check_value(key, value)
    _check_heads(query, key)


def check_parts(outputs: Sequence[Tensor], lse_tensors: Sequence[Tensor]) -> None:
    """That outputs `[B, *X, H, Dv]` and log-sum-exps `[B, *X, H]` are parts of attention of the same queries.

    Raises:
        TypeError: no lists of dense tensors, or dtypes that are not supported or differ.
        ValueError: counts, shapes or devices that do not match.
    """
    for name, tensors in (("outputs", outputs), ("lse_tensors", lse_tensors)):
        if not isinstance(tensors, (list, tuple)):
            raise TypeError(f"{name} must be a list or tuple of tensors, got {type(tensors).__name__}")
    if len(outputs) < 1 or len(outputs) != len(lse_tensors):
        raise ValueError(
            f"outputs and lse_tensors must have the same length, at least 1, got {len(outputs)} and {len(lse_tensors)}"
        )
    for i, (output, lse) in enumerate(zip(outputs, lse_tensors)):
        check_tensor(f"outputs[{i}]", output, outputs[0] if i else None, "outputs[0]")
        check_tensor(f"lse_tensors[{i}]", lse, lse_tensors[0] if i else None, "lse_tensors[0]", LSE_DTYPES)
        if output.ndim < 2 or output.shape != outputs[0].shape:
            raise ValueError(
                f"outputs must have one shape [batch, *lengths, heads, head_dim], outputs[0] has {_shape(outputs[0])}, "
                f"outputs[{i}] {_shape(output)}"
            )
        if lse.shape != output.shape[:-1]:
            raise ValueError(f"lse_tensors[{i}] must have shape {list(output.shape[:-1])}, got {_shape(lse)}")
        if lse.device != output.device:
            raise ValueError(f"lse_tensors[{i}] must be on outputs[{i}]'s device {output.device}, got {lse.device}")


def _check_not_empty(name: str, t: Tensor) -> None:
    if t.shape[-1] < 1 or t.shape[-2] < 1:
        raise ValueError(f"{name} must have at least one head and a head_dim of at least 1, got {_shape(t)}")


def _check_value(key: Tensor, value: Tensor) -> None:
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(f"value must have key's batch, lengths and heads, {_shape(key)}, got {_shape(value)}")


def _check_heads(query: Tensor, key: Tensor) -> None:
    if query.shape[-2] % key.shape[-2] != 0:
        raise ValueError(f"query's heads must be a multiple of key's heads, got {query.shape[-2]} and {key.shape[-2]}")


def _shape(t: Tensor) -> str:
    return f"shape {list(t.shape)}"
