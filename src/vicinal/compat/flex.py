"""`natten.flex` of 0.17.5: masks for torch's FlexAttention, from the definition of a neighborhood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vicinal.geometry.neighborhood import Neighborhood, PerAxis, per_axis
from vicinal.reference import neighborhood_mask

if TYPE_CHECKING:  # it imports torch's compiler, which takes seconds
    from torch.nn.attention.flex_attention import BlockMask


def can_run_flex_attention(input_shape: Sequence[int]) -> bool:
    """True: `flex_na*d` run vicinal's own attention, which takes every shape."""
    return True


def get_flex_attention_compiled() -> Callable[..., Any]:
    """Torch's FlexAttention, compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def get_na_flex_mask(
    na_dim: int,
    input_size: PerAxis[int],
    kernel_size: PerAxis[int],
    dilation: PerAxis[int] | None,
    is_causal: PerAxis[bool] | None,
) -> BlockMask:
    """The neighborhood as a block mask over flattened tokens, on the CUDA device where there is one. O(N^2) memory."""
    from torch.nn.attention.flex_attention import create_block_mask

    lengths = per_axis("input_size", input_size, na_dim)
    neighborhood = Neighborhood.of(na_dim, kernel_size, 1, dilation, is_causal).resolve(lengths)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    allowed = neighborhood_mask(neighborhood, lengths).to(device)

    def neighbors(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed[query, key]

    return create_block_mask(neighbors, None, None, prod(lengths), prod(lengths), device=device)
