"""The public functions: what they take and return.

`na1d`, `na2d` and `na3d` (`vicinal.na`) take the arguments of NATTEN 0.21 in its order; `neighborhood_attention` is the
same for any rank, from `Neighborhood` objects, also one per head; `attention` has no neighborhoods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, overload

from torch import Tensor

from vicinal import dense
from vicinal.autocast import autocast
from vicinal.calls import Knobs, attend, neighborhood
from vicinal.checks import check_attention_inputs, check_parts, check_rank, check_scale, check_switch, check_tensor
from vicinal.geometry.neighborhood import MAX_RANK, Axis, Neighborhood, PerAxis
from vicinal.geometry.span import Span
from vicinal.na import na1d, na2d, na3d
from vicinal.packing import Packing
from vicinal.problem import Inputs
from vicinal.torch_internals import shape_of
from vicinal.varlen import attend_packed, maps_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["attention", "merge_attentions", "na1d", "na2d", "na3d", "neighborhood_attention"]


class _Options(TypedDict, total=False):
    """What `neighborhood_attention` takes by name, but for `return_lse`."""

    scale: float | None
    additional_keys: Tensor | None
    additional_values: Tensor | None
    rpb: Tensor | None
    backend: str | None
    clamp: bool
    spans: Sequence[Span | None] | None
    key_mask: Tensor | None
    window_sizes: Tensor | None


class _AttentionOptions(TypedDict, total=False):
    """What `attention` takes by name, but for `return_lse`."""

    seqlens_Q: Tensor | None
    seqlens_KV: Tensor | None
    cumulative_seqlen_Q: Tensor | None
    cumulative_seqlen_KV: Tensor | None
    max_seqlen_Q: int | None
    max_seqlen_KV: int | None
    backend: str | None
    q_tile_size: int | None
    kv_tile_size: int | None
    backward_q_tile_size: int | None
    backward_kv_tile_size: int | None
    backward_kv_splits: int | None
    backward_use_pt_reduction: bool
    run_persistent_kernel: bool
    kernel_schedule: str | None
    torch_compile: bool


_Windows: TypeAlias = Neighborhood | Sequence[Neighborhood] | PerAxis[int | None]


@overload
def neighborhood_attention(
    query: Tensor, key: Tensor, value: Tensor, neighborhood: _Windows,
    *, return_lse: Literal[False] = False, **options: Unpack[_Options],
) -> Tensor: ...  # fmt: skip


@overload
def neighborhood_attention(
    query: Tensor, key: Tensor, value: Tensor, neighborhood: _Windows,
    *, return_lse: Literal[True], **options: Unpack[_Options],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def neighborhood_attention(
    query: Tensor, key: Tensor, value: Tensor, neighborhood: _Windows,
    *, return_lse: bool, **options: Unpack[_Options],
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    neighborhood: _Windows,
    *,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
    clamp: bool = False,
    spans: Sequence[Span | None] | None = None,
    key_mask: Tensor | None = None,
    window_sizes: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Neighborhood attention for any rank from 1 to 3, with one neighborhood for all heads or one per head.

    Args:
        query: `[B, *X, H, D]`, float32, float64, bfloat16 or float16; `X` are the spatial lengths.
        key: `[B, *X, Hkv, D]`; `H` is a multiple of `Hkv` (grouped-query attention). With `spans`, its lengths are
            those of the keys that are given. Lengths
            other than query's are else those of another grid over the same extent.
        value: `[B, *X, Hkv, Dv]`, of key's lengths.
        neighborhood: one `Neighborhood` of the tokens' rank; or a sequence of `H` of them, one per query head; or a
            window alone, one value or one per axis.
        scale: factor of the scores, a real number; None means `D ** -0.5`.
        additional_keys: `[B, M, Hkv, D]`, attended by every query next to its window, in the same softmax.
        additional_values: `[B, M, Hkv, Dv]`, given together with `additional_keys`.
        rpb: relative positional bias `[H, 2*K0-1, ...]`, added to the scores at `(key - query) + K - 1` per axis, in
            units of the dilation.
        return_lse: also return the log-sum-exp of the scores.
        backend: a backend's name; None takes the first that can run the problem (see `vicinal explain`).
        clamp: take the largest window that fits where an axis is too short, `min(kernel_size, length // dilation)`, and
            of `rpb` the middle.
        spans: where queries and keys are parts of a larger map, one `Span` for every axis, or None for a whole axis:
            which of its tokens they are. Windows are those of the whole axis, and must lie within the keys given.
        key_mask: `[B, *X]` or `[*X]` of booleans, False for tokens that are not there.
            No query attends to them, and what their key and value hold, NaN too, is never read as a number. A query
            left without keys gets output 0 and log-sum-exp minus infinity; so does the query of a masked token where
            it is not finite.
        window_sizes: `[B, *X]` or `[B, *X, H]`, odd integers: each query's own window, along every axis of
            `min(size, window)` keys of the neighborhood's `window`; `stride` must be 1.

    Returns:
        output `[B, *X, H, Dv]` in the inputs' dtype; with `return_lse` also the log-sum-exp `[B, *X, H]` in float32
        (float64 for float64 inputs). Both carry gradients.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or windows do not fit, or the backend cannot run the problem.
    """
    inputs = Inputs(query, key, value, additional_keys, additional_values, rpb, key_mask, window_sizes)
    neighborhoods = _neighborhoods(inputs, neighborhood)
    if spans is not None:
        neighborhoods = tuple(n.over(spans) if isinstance(n, Neighborhood) else n for n in neighborhoods)
    return attend(inputs, neighborhoods, scale, return_lse, backend, clamp)


@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, scale: float | None = None,
    *, return_lse: Literal[False] = False, **options: Unpack[_AttentionOptions],
) -> Tensor: ...  # fmt: skip


@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, scale: float | None = None,
    *, return_lse: Literal[True], **options: Unpack[_AttentionOptions],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, scale: float | None = None,
    *, return_lse: bool, **options: Unpack[_AttentionOptions],
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    seqlens_Q: Tensor | None = None,
    seqlens_KV: Tensor | None = None,
    cumulative_seqlen_Q: Tensor | None = None,
    cumulative_seqlen_KV: Tensor | None = None,
    max_seqlen_Q: int | None = None,
    max_seqlen_KV: int | None = None,
    backend: str | None = None,
    q_tile_size: int | None = None,
    kv_tile_size: int | None = None,
    backward_q_tile_size: int | None = None,
    backward_kv_tile_size: int | None = None,
    backward_kv_splits: int | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: str | None = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Plain attention: every query attends to every key, also of another length; causal, and of packed sequences.

    Where queries and keys are as many and not packed, our kernels run; packed, with `return_lse`, too. Elsewhere it is
    torch's own attention, or with `return_lse` its formula, which takes memory for all scores: O(N * M), of packed
    sequences for each its own.

    Args:
        query: `[B, N, H, D]`.
        key: `[B, M, Hkv, D]`; `H` is a multiple of `Hkv`.
        value: `[B, M, Hkv, Dv]`.
        is_causal: whether query `i` attends to keys `j <= i` only, both counted from the start (of their sequence) even
            where there are more keys than queries, as torch's and NATTEN's attention have it.
        scale: factor of the scores, a real number; None means `D ** -0.5`.
        seqlens_Q, seqlens_KV: lengths of sequences packed one after the other, `[sequences]`, int32 or int64, on the
            tensors' device or the CPU; `B` must be 1. They are read on the host, so a GPU is waited for.
        cumulative_seqlen_Q, cumulative_seqlen_KV: the same lengths added up, with a 0 first, `[sequences + 1]`.
        max_seqlen_Q, max_seqlen_KV: not needed; when given, no sequence may be longer.
        backend: as in `neighborhood_attention`; only where our kernels run.
        q_tile_size, kv_tile_size, ..., torch_compile: settings of NATTEN's kernels; ignored, with one warning.
        return_lse: also return the log-sum-exp.

    Returns:
        output `[B, N, H, Dv]`; with `return_lse` also the log-sum-exp `[B, N, H]` in float32 (float64 for float64). A
        query of a sequence without keys has output 0 and log-sum-exp minus infinity.

    Raises:
        TypeError, ValueError: as `neighborhood_attention`, and for lengths that do not fit each other or the tokens.
    """
    _KNOBS.ignore(
        q_tile_size, kv_tile_size, backward_q_tile_size, backward_kv_tile_size, backward_kv_splits,
        backward_use_pt_reduction, run_persistent_kernel, kernel_schedule, torch_compile,
    )  # fmt: skip
    check_switch("is_causal", is_causal)
    check_switch("return_lse", return_lse)
    query, key, value = autocast((query, key, value))
    check_attention_inputs(query, key, value)
    factor = shape_of(query)[-1] ** -0.5 if scale is None else check_scale("scale", scale)
    packing = Packing(seqlens_Q, seqlens_KV, cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q, max_seqlen_KV)
    spans = packing.spans(query, key)
    if spans is None and query.shape[1] == key.shape[1]:
        return attend(Inputs(query, key, value), (_CAUSAL if is_causal else _WHOLE,), factor, return_lse, backend)
    if spans is not None and backend is None and return_lse and all(q == k for q, k in spans):
        lengths = [(q.stop - q.start,) for q, _ in spans]
        maps = maps_of(lengths, (_CAUSAL if is_causal else _WHOLE,))
        found = attend_packed(Inputs(query[0], key[0], value[0]), maps, factor, None)
        return found[0][None], found[1][None]
    if backend is not None:
        raise ValueError(
            f"backend must be None where sequences are packed or query and key have other lengths, got {backend!r} and "
            f"{query.shape[1]} and {key.shape[1]} tokens"
        )
    if spans is None:
        output, lse = dense.attend(query, key, value, is_causal, factor, return_lse)
    else:
        output, lse = dense.attend_packed(query, key, value, spans, is_causal, factor, return_lse)
    return output if lse is None else (output, lse)


def merge_attentions(
    outputs: Sequence[Tensor],
    lse_tensors: Sequence[Tensor],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[Tensor, Tensor]:
    """Merges attentions of the same queries over different keys into the attention over all of them.

    Args:
        outputs: at least one output, each `[B, *X, H, Dv]`.
        lse_tensors: their log-sum-exps, each `[B, *X, H]`, float32 or float64.
        torch_compile, use_autograd_fix: accepted for NATTEN's sake; gradients are exact without them.

    Returns:
        the merged output `[B, *X, H, Dv]` in the outputs' dtype and the merged log-sum-exp `[B, *X, H]` in theirs. With
        weights `w = exp(lse - merged lse)`, the output is their weighted sum. Gradients flow through both. A part whose
        log-sum-exp is minus infinity counts for nothing; where all are, the output is 0 and has no gradient.

    Raises:
        TypeError: no lists of tensors, or dtypes that are not supported or differ.
        ValueError: counts, shapes or devices do not match.
    """
    check_parts(outputs, lse_tensors)
    return dense.merge(outputs, lse_tensors)


_WHOLE, _CAUSAL = Neighborhood((Axis(None),)), Neighborhood((Axis(None, causal=True),))
_KNOBS = Knobs(
    {
        "q_tile_size": None,
        "kv_tile_size": None,
        "backward_q_tile_size": None,
        "backward_kv_tile_size": None,
        "backward_kv_splits": None,
        "backward_use_pt_reduction": False,
        "run_persistent_kernel": True,
        "kernel_schedule": None,
        "torch_compile": False,
    }
)


def _neighborhoods(inputs: Inputs, given: _Windows) -> tuple[Neighborhood, ...]:
    """One neighborhood for all heads, or one per head, from what was given as `neighborhood`."""
    query = inputs.query
    if isinstance(given, Neighborhood):
        _check_axes(inputs, given)
        return (given,)
    if isinstance(given, (list, tuple)) and (not given or any(isinstance(x, Neighborhood) for x in given)):
        if len({x.rank for x in given if isinstance(x, Neighborhood)}) == 1:
            _check_axes(inputs, next(x for x in given if isinstance(x, Neighborhood)))
        return tuple(given)
    check_tensor("query", query)
    try:
        return (neighborhood(check_rank("query", query), given, 1, 1, False, "shift"),)
    except (TypeError, ValueError) as error:
        raise type(error)(f"neighborhood: {error}") from None


def _check_axes(inputs: Inputs, given: Neighborhood) -> None:
    """That it has an axis per spatial length, where the tensors agree on these; else a tensor is to blame."""
    ranks = {t.ndim - 3 if isinstance(t, Tensor) else 0 for t in inputs[:3]}
    if given.rank not in ranks and len(ranks) == 1 and max(ranks) in range(1, MAX_RANK + 1):
        raise ValueError(
            f"neighborhood must have {max(ranks)} axes, as many as query {list(inputs.query.shape)} has spatial "
            f"lengths, got {given.rank}"
        )
