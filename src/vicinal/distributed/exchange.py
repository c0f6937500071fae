"""Halos on their way: what a plan says is sent and received in one all-to-all, of which most ranks are no part.

One message to each rank that needs something, of keys and values together. NCCL and gloo send nothing where there is
nothing to send, so the collective is a batch of sends and receives between neighbors; unlike those it is a functional
operator of torch's, which `torch.compile` sees.

Gradients go home the same way back, and are added in the order of ranks: the same bits every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from vicinal.distributed.halo import Box, Halo, Piece, common
from vicinal.torch_internals import all_to_all


class Pair(NamedTuple):
    """Keys and values, or their gradients, of the same tokens: `[B, *X, Hkv, D]` and `[B, *X, Hkv, Dv]`."""

    key: Tensor
    value: Tensor


class Source(NamedTuple):
    """Tokens that are here, and where they are needed (`Piece.placed`)."""

    tokens: Pair
    placed: Box


@dataclass(frozen=True)
class Exchange:
    """One rank's part of an exchange.

    Attributes:
        halo, rank: the plan, and who we are in it.
        group: the name of the process group whose ranks are the plan's.
    """

    halo: Halo
    rank: int
    group: str

    @cached_property
    def _sends(self) -> list[list[Piece]]:
        return self.halo.sends(self.rank)

    @cached_property
    def _receives(self) -> list[list[Piece]]:
        return self.halo.receives(self.rank)

    @cached_property
    def is_silent(self) -> bool:
        """Whether no rank of the group needs anything of another: all agree on that."""
        return all(self.halo.tokens_received(rank) == 0 for rank in range(len(self.halo.shards)))

    def start(self, held: Pair) -> Tensor:
        """Sends what others need of the shard; what will have come once it is waited for (`torch_internals.wait`)."""
        flat = [t.reshape(-1) for to in self._sends for piece in to for t in self._local(held, piece.box)]
        packed = torch.cat(flat) if flat else held.key.new_empty(0)
        return all_to_all(packed, _sizes(self._receives, held), _sizes(self._sends, held), self.group)

    def start_home(self, gradients: Tensor, held: Pair) -> Tensor:
        """Sends the gradients of what had come, which lie as it did, to who holds it."""
        return all_to_all(gradients, _sizes(self._sends, held), _sizes(self._receives, held), self.group)

    def add_home(self, came: Tensor, into: Pair) -> None:
        """Adds the gradients that others had of our tokens to ours, in the order of ranks."""
        for tokens, box in _unpacked(came, into, [piece.box for to in self._sends for piece in to]):
            for total, more in zip(self._local(into, box), tokens):
                total.add_(more)

    def own(self, held: Pair) -> list[Source]:
        """The shard, and what this rank needs of it in other places, around a circle."""
        shard = self.halo.shards[self.rank]
        around = [p for p in self.halo.pieces(self.rank, self.rank) if p.box != p.placed]
        return [Source(held, shard)] + [Source(self._local(held, p.box), p.placed) for p in around]

    def others(self, came: Tensor, held: Pair) -> list[Source]:
        """What came of other ranks, or gradients that lie as it did, as views."""
        pieces = [piece for of in self._receives for piece in of]
        boxes = _unpacked(came, held, [piece.box for piece in pieces])
        return [Source(tokens, piece.placed) for (tokens, _), piece in zip(boxes, pieces)]

    def _local(self, held: Pair, box: Box) -> Pair:
        return Pair(*(cut(t, box, self.halo.shards[self.rank]) for t in held))


def _unpacked(buffer: Tensor, like: Pair, boxes: Sequence[Box]) -> list[tuple[Pair, Box]]:
    """Views of a buffer that holds the tokens of boxes, one after the other, keys before values."""
    found, at = [], 0
    for box in boxes:
        views = []
        for t in like:
            shape = (t.shape[0], *(stop - start for start, stop in box), *t.shape[-2:])
            views.append(buffer[at : at + prod(shape)].view(shape))
            at += prod(shape)
        found.append((Pair(*views), box))
    return found


def _sizes(pieces: list[list[Piece]], held: Pair) -> list[int]:
    """Elements of the message to (or from) every rank."""
    per_token = sum(t.shape[0] * prod(t.shape[-2:]) for t in held)
    return [per_token * sum(piece.tokens for piece in of) for of in pieces]


def cut(tokens: Tensor, box: Box, origin: Box) -> Tensor:
    """A view of the tokens of a box, of those of the box `origin`."""
    for axis, ((start, stop), (first, _)) in enumerate(zip(box, origin), 1):
        tokens = tokens.narrow(axis, start - first, stop - start)
    return tokens


def gathered(sources: Sequence[Source], box: Box) -> Pair:
    """The tokens of a box, from where they are: a view of one source where that has them all."""
    for tokens, placed in sources:
        if common(placed, box) == box:
            return Pair(*(cut(t, box, placed) for t in tokens))
    sizes = [stop - start for start, stop in box]
    like = sources[0].tokens
    found = Pair(*(t.new_empty((t.shape[0], *sizes, *t.shape[-2:])) for t in like))
    for tokens, placed in sources:
        both = common(placed, box)
        if both is not None:
            for into, t in zip(found, tokens):
                cut(into, both, box).copy_(cut(t, both, placed))
    return found


def scattered(gradients: Pair, box: Box, targets: Sequence[Source]) -> None:
    """Adds the gradients of a box's tokens, as `gathered` took them, to those of where each came from."""
    for tokens, placed in targets:
        both = common(placed, box)
        if both is not None:
            for total, own in zip(tokens, gradients):
                cut(total, both, placed).add_(cut(own, both, box))
