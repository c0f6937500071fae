"""What computes the attention of a model's layers: ours, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import vicinal.nn
from vicinal.bench.masks import flex_block_mask
from vicinal.calls import clamped
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem
from vicinal.reference import bias_of, neighborhood_mask

FUSED, NONE = "fused", "none"
MASK_BYTES = 4 << 30  # of a layer's dense mask at most

Attend = Callable[..., Tensor]  # of query, key, value and neighborhoods; scale and rpb by name


@dataclass(frozen=True)
class System:
    """One way to run a model.

    Attributes:
        make: what computes its attention, made anew for every row.
        compiled: whether the model is run under `torch.compile`.
        channels_last: whether images and convolutions have channels last in memory.
        checked: whether its outputs must be right.
    """

    make: Callable[[], Attend]
    compiled: bool = False
    channels_last: bool = False
    checked: bool = True


def systems(device: torch.device) -> dict[str, System]:
    """What may run a model on a device, by name."""
    cuda = device.type == "cuda"
    found = {FUSED: System(lambda: neighborhood_attention)}
    found |= {variant: System(partial(unfused, variant)) for variant in (("naive", "gemm") if cuda else ("torch",))}
    found |= {"SDPA with a mask": System(MaskedSDPA)}
    if cuda:
        found |= {"FlexAttention": System(Flex)}
    found |= {
        "fused, channels last": System(lambda: neighborhood_attention, channels_last=True),
        "fused, compiled": System(lambda: neighborhood_attention, compiled=True),
        NONE: System(lambda: _none, checked=False),
    }
    return found


def unfused(variant: str) -> Attend:
    """Our unfused operators."""
    return partial(vicinal.nn.unfused_attention, variant=variant)


class MaskedSDPA:
    """Torch's attention under a dense mask that holds the bias; without gradients it is made once per layer."""

    def __init__(self) -> None:
        self.masks: dict[tuple[Any, ...], tuple[Any, Tensor]] = {}

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        neighborhoods: Sequence[Neighborhood],
        *,
        scale: float,
        rpb: Any,
    ) -> Tensor:
        """As `vicinal.neighborhood_attention`."""
        lengths = tuple(query.shape[1:-2])
        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (query, key, value))
        known = (id(rpb), tuple(neighborhoods), lengths, query.dtype)
        if known in self.masks:
            mask = self.masks[known][1]
        else:
            size = prod(lengths) ** 2 * len(rpb) * 4
            if size > MASK_BYTES:
                raise ValueError(f"a layer's dense mask would take {size / 2**30:.0f} GiB")
            mask = self._mask(neighborhoods, lengths, rpb).to(q.dtype)
            if isinstance(rpb, torch.nn.Parameter) and not torch.is_grad_enabled():  # others are made in every call
                self.masks[known] = rpb, mask
        output = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return output.transpose(1, 2).unflatten(1, lengths)

    def _mask(self, neighborhoods: Sequence[Neighborhood], lengths: tuple[int, ...], rpb: Tensor) -> Tensor:
        each = len(rpb) // len(neighborhoods)
        parts = []
        for table, neighborhood in zip(rpb.split(each), neighborhoods):
            resolved = neighborhood.resolve(lengths)
            allowed = neighborhood_mask(resolved, lengths).to(rpb.device)
            parts.append(bias_of(table, resolved, lengths).masked_fill(~allowed, float("-inf")))
        return torch.cat(parts)[None]


class Flex:
    """FlexAttention with the bias as `score_mod`, compiled where there is CUDA; a launch per neighborhood."""

    def __init__(self) -> None:
        from torch.nn.attention.flex_attention import flex_attention

        self.flex: Any = flex_attention
        self.masks: dict[Problem, Any] = {}
        if torch.cuda.is_available():
            torch._dynamo.reset()
            torch._dynamo.config.recompile_limit = 256  # layers differ in window, dilation and size
            self.flex = torch.compile(flex_attention, dynamic=False)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        neighborhoods: Sequence[Neighborhood],
        *,
        scale: float,
        rpb: Any,
    ) -> Tensor:
        """As `vicinal.neighborhood_attention`."""
        each = query.shape[-2] // len(neighborhoods)
        parts = [t.split(each, -2) for t in (query, key, value)]
        heads = zip(*parts, neighborhoods, rpb.split(each))
        return torch.cat([self._one(q, k, v, scale, n, table) for q, k, v, n, table in heads], -2)

    def _one(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, neighborhood: Neighborhood, rpb: Tensor
    ) -> Tensor:
        problem = Problem.of(Inputs(query, key, value), (neighborhood.resolve(query.shape[1:-2]),), scale)
        if problem not in self.masks:
            self.masks[problem] = flex_block_mask(problem)
        width, (down, along) = problem.lengths[1], problem.neighborhood.axes

        def biased(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            at = [
                (k_at // axis.dilation - q_at // axis.dilation + (axis.window or 0) - 1).clamp(
                    0, 2 * (axis.window or 0) - 2
                )
                for axis, q_at, k_at in ((down, q // width, k // width), (along, q % width, k % width))
            ]
            return score + rpb[h, at[0], at[1]]

        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (query, key, value))
        output = self.flex(q, k, v, score_mod=biased, block_mask=self.masks[problem], scale=scale)
        return output.transpose(1, 2).unflatten(1, problem.lengths)


def _none(query: Tensor, key: Tensor, value: Tensor, neighborhoods: object, **_: object) -> Tensor:
    return value.contiguous()


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Modules' attention computed by `attend`, which is given windows that fit."""
    module: Any = vicinal.nn
    own = module.neighborhood_attention
    module.neighborhood_attention = attend if attend is neighborhood_attention else partial(_fitting, attend)
    try:
        yield
    finally:
        module.neighborhood_attention = own


def _fitting(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    neighborhoods: tuple[Neighborhood, ...],
    *,
    scale: float,
    rpb: Tensor | None,
    clamp: bool = False,
) -> Tensor:
    if clamp:
        inputs, neighborhoods = clamped(Inputs(query, key, value, rpb=rpb), neighborhoods)
        rpb = inputs.rpb
    return attend(query, key, value, neighborhoods, scale=scale, rpb=rpb)
