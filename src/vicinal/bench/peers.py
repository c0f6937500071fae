"""What is timed: vicinal's backends, and what people use today (SDPA, FlexAttention), behind one small interface.

Every system gets its tensors in the layout it likes best, and whatever can be made once per problem (masks, block
masks, compilation) is made outside the timing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vicinal import dispatch
from vicinal.bench import cudnn_flex
from vicinal.bench.masks import dense_mask, flex_block_mask
from vicinal.functional import neighborhood_attention
from vicinal.problem import Problem

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
MASK_BYTES_LIMIT = 4 << 30
OPTIONAL = {"cudnn-flex": cudnn_flex.PACKAGE}  # peers that are there where a package is installed


@dataclass(frozen=True)
class System:
    """Something that attends.

    Attributes:
        name: what reports call it.
        computes: "neighborhood", the case's own problem, or "self attention", the same tensors with no mask.
        layout: of query, key, value and output: heads-last `[B, *X, H, D]`, heads-first `[B, H, N, D]`, or tokens
            `[B, N, H, D]` in an order of its own.
        unsupported: why it cannot run a problem, in words; None when it can.
        prepare: makes the callable to time; may take long (compile, make masks).
        no_backward: why it has no backward on a problem; None when it has.
        order: of the layout "tokens": which token, by its number in raster order, is at each place.
    """

    name: str
    computes: Literal["neighborhood", "self attention"]
    layout: Literal["heads-last", "heads-first", "tokens"]
    unsupported: Callable[[Problem], str | None]
    prepare: Callable[[Problem], Attend]
    no_backward: Callable[[Problem], str | None] = lambda problem: None
    order: Callable[[Problem], Tensor] | None = None

    @property
    def ours(self) -> bool:
        return self.name.startswith("vicinal")

    def arranged(self, t: Tensor, problem: Problem) -> Tensor:
        """A heads-last tensor in the system's layout, contiguous where that is another."""
        if self.order is not None:
            return t.flatten(1, -3)[:, self.order(problem)]
        return t if self.layout == "heads-last" else t.flatten(1, -3).transpose(1, 2).contiguous()

    def heads_last(self, results: Mapping[str, Tensor], problem: Problem) -> dict[str, Tensor]:
        """The system's results, by name, heads-last: `[B, *X, H, D]`."""
        if self.order is not None:
            back = self.order(problem).argsort()
            return {name: t[:, back].unflatten(1, problem.lengths) for name, t in results.items()}
        if self.layout == "heads-last":
            return dict(results)
        return {name: t.transpose(1, 2).unflatten(1, problem.lengths) for name, t in results.items()}


def without_grad(attend: Attend, leaves: Sequence[Tensor]) -> Tensor:
    """A forward pass, nothing kept for a backward pass."""
    with torch.no_grad():
        return attend(*leaves)


def both(attend: Attend, leaves: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward pass: the gradients of query, key and value."""
    return torch.autograd.grad(attend(*leaves), leaves, grad)


def vicinal_system(backend: str) -> System:
    """One backend of this library, through its public function."""
    return System(
        f"vicinal {backend}",
        "neighborhood",
        "heads-last",
        partial(dispatch.unsupported, backend),
        partial(_vicinal, backend),
    )


def vicinal_systems(problem: Problem) -> list[System]:
    """The automatic backends that can run `problem`, best first."""
    return [vicinal_system(name) for name in dispatch.AUTOMATIC if dispatch.unsupported(name, problem) is None]


def peers(device: torch.device | str) -> list[System]:
    """Every peer of a device type."""
    if torch.device(device).type != "cuda":
        return [_masked_sdpa(), _self_sdpa("SDPA", None), _flex()]
    return [
        _self_sdpa("SDPA flash", SDPBackend.FLASH_ATTENTION, _half_only),
        _self_sdpa("SDPA efficient", SDPBackend.EFFICIENT_ATTENTION),
        _self_sdpa("SDPA cuDNN", SDPBackend.CUDNN_ATTENTION, _half_only),
        _masked_sdpa(),
        _flex(),
        *(_cudnn_flex() if cudnn_flex.installed() else ()),
    ]


def compiled_for(problem: Problem, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function under torch.compile, for the shapes of one problem.

    What was compiled for the problem before is kept where that had the same tensors (masks are tensors, too, so that
    another window compiles nothing), else dropped: torch.compile gives up on what it has compiled too often.
    """
    global _compiled_shapes
    shapes = (problem.lengths, problem.batch, problem.heads, problem.kv_heads, problem.head_dim, problem.value_dim)
    if _compiled_shapes != (shapes, problem.dtype, problem.device):
        torch._dynamo.reset()
        _compiled_shapes = (shapes, problem.dtype, problem.device)
    return torch.compile(function, dynamic=False)


_compiled_shapes: object = None


def _vicinal(backend: str, problem: Problem) -> Attend:
    attend = partial(neighborhood_attention, neighborhood=problem.neighborhood, scale=problem.scale, backend=backend)
    return cast(Attend, attend)  # a tensor, since no log-sum-exp is asked for


def _self_sdpa(
    name: str, backend: SDPBackend | None, unsupported: Callable[[Problem], str | None] | None = None
) -> System:
    def prepare(problem: Problem) -> Attend:
        return partial(_sdpa, [] if backend is None else [backend], None, problem)

    return System(f"{name} (self attention)", "self attention", "heads-first", unsupported or _any, prepare)


def _masked_sdpa() -> System:
    def unsupported(problem: Problem) -> str | None:
        size = prod(problem.lengths) ** 2 * (1 + problem.dtype.itemsize)  # torch adds a float copy of a boolean mask
        if size > MASK_BYTES_LIMIT:
            return f"its dense masks would take {size / 2**30:.0f} GiB (limit {MASK_BYTES_LIMIT >> 30})"
        return None

    def prepare(problem: Problem) -> Attend:
        fused = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION] if problem.device.type == "cuda" else []
        return partial(_sdpa, fused, dense_mask(problem), problem)

    return System("SDPA with a mask", "neighborhood", "heads-first", unsupported, prepare)


def _sdpa(
    allowed: Sequence[SDPBackend], mask: Tensor | None, problem: Problem, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    with sdpa_kernel(list(allowed)) if allowed else nullcontext():
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=problem.scale, enable_gqa=problem.group_size > 1
        )


def _flex() -> System:
    def prepare(problem: Problem) -> Attend:
        import torch._functorch.config  # slow to import, like flex_attention: only when asked for
        from torch.nn.attention.flex_attention import flex_attention

        torch._functorch.config.donated_buffer = False  # one graph serves many backward passes
        return partial(
            compiled_for(problem, flex_attention),
            block_mask=flex_block_mask(problem),
            scale=problem.scale,
            enable_gqa=problem.group_size > 1,
        )

    def no_backward(problem: Problem) -> str | None:
        return None if problem.device.type == "cuda" else "FlexAttention has no backward on CPU"

    def unsupported(problem: Problem) -> str | None:
        return "its block masks are written for whole axes without circles" if problem.is_part else None

    return System("FlexAttention", "neighborhood", "heads-first", unsupported, prepare, no_backward)


def _cudnn_flex() -> list[System]:
    """Flex attention of cuDNN: tokens in raster order, permuted into tiles beforehand, and permuted in every call."""
    name, unsupported = "cudnn-flex", cudnn_flex.unsupported
    order = cudnn_flex.tile_order
    return [
        System(name, "neighborhood", "heads-last", unsupported, cudnn_flex.raster),
        System(f"{name}, tiled before", "neighborhood", "tokens", unsupported, cudnn_flex.tiled, order=order),
        System(f"{name}, tiling", "neighborhood", "heads-last", unsupported, cudnn_flex.permuting),
    ]


def _half_only(problem: Problem) -> str | None:
    if problem.dtype in (torch.float16, torch.bfloat16):
        return None
    return f"it takes float16 and bfloat16, not {problem.dtype}"


def _any(problem: Problem) -> str | None:
    return None
