"""Packed sequences: several, of any lengths, one after the other along the token axis of one batch element."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """The arguments of `vicinal.attention` that say where sequences begin, by its names; None where not given."""

    seqlens_Q: Tensor | None
    seqlens_KV: Tensor | None
    cumulative_seqlen_Q: Tensor | None
    cumulative_seqlen_KV: Tensor | None
    max_seqlen_Q: int | None
    max_seqlen_KV: int | None

    def spans(self, query: Tensor, key: Tensor) -> list[tuple[slice, slice]] | None:
        """Where each sequence's queries and keys are; None where no argument says that tokens are packed.

        The lengths are read on the host: where they are on a GPU, this waits for it.

        Args:
            query, key: `[B, N, H, D]` and `[B, M, Hkv, D]`.

        Raises:
            TypeError: lengths are no integer tensors, or maxima no integers.
            ValueError: they do not fit each other or the tokens, or more than one batch element is given.
        """
        for name, value in zip(self._fields[4:], self[4:]):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
        given = [name for name, value in zip(self._fields, self) if isinstance(value, Tensor) or value]
        if not given:  # a maximum of 0 says nothing, as in NATTEN
            return None
        lengths, cumulative = self[:2], self[2:4]
        pair, other = (cumulative, lengths) if lengths == (None, None) else (lengths, cumulative)
        if None in pair or other != (None, None):
            raise ValueError(
                "packed sequences need seqlens_Q and seqlens_KV, or cumulative_seqlen_Q and cumulative_seqlen_KV, "
                f"and not both, got {', '.join(given)}"
            )
        if query.shape[0] != 1:
            raise ValueError(f"query must have a batch of 1 where sequences are packed, got shape {list(query.shape)}")
        queries = _offsets("Q", lengths[0], cumulative[0], self.max_seqlen_Q, query)
        keys = _offsets("KV", lengths[1], cumulative[1], self.max_seqlen_KV, key)
        if len(queries) != len(keys):
            kind = "seqlens" if cumulative == (None, None) else "cumulative_seqlen"
            counts = f"{len(queries) - 1} and {len(keys) - 1}"
            raise ValueError(f"{kind}_Q and {kind}_KV must be of as many sequences, got {counts}")
        return [(slice(*q), slice(*k)) for q, k in zip(pairwise(queries), pairwise(keys))]


def _offsets(
    side: str, lengths: Tensor | None, cumulative: Tensor | None, longest: int | None, tokens: Tensor
) -> list[int]:
    """Where sequences begin, and where the last ends, from their lengths or already added up."""
    total = tokens.shape[1]
    if cumulative is None:
        name = f"seqlens_{side}"
        counts = _integers(name, lengths, tokens)
        offsets = [0, *accumulate(counts)]
    else:
        name = f"cumulative_seqlen_{side}"
        offsets = _integers(name, cumulative, tokens)
        counts = [stop - start for start, stop in pairwise(offsets)]
        if not counts or offsets[0] != 0:
            raise ValueError(f"{name} must start with 0 and have another element per sequence, got {offsets}")
    if not counts or min(counts) < 0:
        raise ValueError(f"{name} must be of at least one sequence, none with a length below 0, got lengths {counts}")
    if offsets[-1] != total:
        raise ValueError(f"{name} must add up to all {total} tokens, got {offsets[-1]}")
    if longest and not max(counts) <= longest <= total:
        raise ValueError(
            f"max_seqlen_{side} must be from {max(counts)}, the longest sequence, to {total}, all tokens, got {longest}"
        )
    return offsets


def _integers(name: str, values: Tensor | None, tokens: Tensor) -> list[int]:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(values).__name__}")
    if values.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be of dtype torch.int32 or torch.int64, got {values.dtype}")
    if values.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {list(values.shape)}")
    if values.is_meta or values.device not in (tokens.device, torch.device("cpu")):
        raise ValueError(f"{name} must be on the CPU or on {tokens.device} with query and key, got {values.device}")
    return values.tolist()
