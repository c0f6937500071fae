"""Attention over strips: gather, torch's fused attention on batches of tiles, scatter. See `cpu_plan`."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from threading import local

import torch
from torch import Tensor
from torch.utils import deterministic

from vicinal.backends.cpu_masks import MaskCache, bias_index, biased
from vicinal.backends.cpu_plan import Copy, InnerGroup, Part, StripPlan, Work
from vicinal.backends.numba.team import each

attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
MASKS = MaskCache()
KEPT_BYTES = 4 << 20  # of one buffer


@dataclass(frozen=True)
class Tokens:
    """Contiguous heads-last tensors of one width and one dtype; `rpb` is `[H, 2*K0-1, ...]` or None."""

    query: Tensor
    key: Tensor
    value: Tensor
    rpb: Tensor | None
    scale: float


@dataclass(frozen=True)
class Results:
    """What a backward pass needs of the forward, and what comes from above; heads-last, contiguous."""

    output: Tensor
    lse: Tensor
    grad_output: Tensor


class Scratch(local):
    """Buffers that the chunks of one call reuse, and small ones later calls too (one set per thread).

    Fresh memory costs more, page by page, than copying into it.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised tensor of `shape`; the last one of that `name` is lost."""
        size = prod(shape)
        found = self._buffers.get((name, like.dtype))
        if found is None or found.numel() < size:
            with torch.inference_mode(False):  # a later call may be outside of it
                found = torch.empty(size, dtype=like.dtype)
            self._buffers[name, like.dtype] = found
        elif torch.are_deterministic_algorithms_enabled() and deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
            found.fill_(float("nan"))  # as torch does to new memory
        return found[:size].view(shape)

    def shrink(self) -> None:
        """Forget large buffers."""
        self._buffers = {name: t for name, t in self._buffers.items() if t.numel() * t.element_size() <= KEPT_BYTES}


SCRATCH = Scratch()


def forward(plan: StripPlan, tokens: Tokens, apart: bool) -> tuple[Tensor, Tensor]:
    """Output `[B, *X, H, width]` and log-sum-exp `[B, *X, H]`; where `apart`, chunks on threads of their own."""
    output, lse = torch.empty_like(tokens.query), tokens.query.new_empty(tokens.query.shape[:-1])

    def attend(task: tuple[Part, InnerGroup, tuple[int, int, int, int]]) -> None:
        part, group, (head, query_at, key_at, lse_at) = task
        scratch = SCRATCH
        boxes = _box_shape(plan, part, group)
        key = _get(tokens.key, group.gather, key_at, scratch.take("key", tokens.key, boxes))
        value = _get(tokens.value, group.gather, key_at, scratch.take("value", tokens.key, boxes))
        for work in group.works:
            query = _tiles(plan, part, group, work, tokens.query, query_at, scratch, "query")
            out, sums = attention(
                query,
                _row_boxes(key, part, group, work),
                _row_boxes(value, part, group, work),
                0.0,
                False,
                attn_mask=_mask(plan, part, group, work, tokens, head),
                scale=tokens.scale,
            )
            _put(out.transpose(1, 2), work.results, output, query_at)
            _put(sums.transpose(1, 2), work.lse_results, lse, lse_at)
        scratch.shrink()

    each(attend, ((p, g, c) for p in plan.parts for c in plan.chunks for g in p.groups), apart)
    return output, lse


def backward(plan: StripPlan, tokens: Tokens, results: Results, apart: bool) -> Tokens:
    """Gradients of `tokens`; where `apart`, chunks on threads of their own."""
    grads = Tokens(
        torch.empty_like(tokens.query),
        torch.empty_like(tokens.key),
        torch.empty_like(tokens.value),
        None if tokens.rpb is None else torch.zeros_like(tokens.rpb),
        tokens.scale,
    )

    def attend(task: tuple[Part, tuple[int, int, int, int]]) -> None:
        part, chunk = task
        scratch = SCRATCH
        if len(part.groups) == 1 and part.groups[0].tiles == 1:
            grad_key, grad_value = _backward_group(plan, part, part.groups[0], chunk, tokens, results, grads, scratch)
        else:
            grad_key, grad_value = _backward_groups(plan, part, chunk, tokens, results, grads, scratch)
        _put(grad_key, (part.keys,), grads.key, chunk[2])
        _put(grad_value, (part.keys,), grads.value, chunk[2])
        scratch.shrink()

    each(attend, ((p, c) for p in plan.parts for c in plan.chunks), apart)
    return grads


def _backward_groups(
    plan: StripPlan,
    part: Part,
    chunk: tuple[int, int, int, int],
    tokens: Tokens,
    results: Results,
    grads: Tokens,
    scratch: Scratch,
) -> tuple[Tensor, Tensor]:
    """Gradients of a chunk's keys and values, heads first, added up over the boxes that they are in."""
    shape = (part.batch, part.tokens, plan.key.width)
    grad_key = scratch.take("chunk_key", tokens.key, shape).zero_()
    grad_value = scratch.take("chunk_value", tokens.key, shape).zero_()
    for group in part.groups:
        strips = _backward_group(plan, part, group, chunk, tokens, results, grads, scratch)
        for into, strip in zip((grad_key, grad_value), strips):
            for copy in group.scatter:
                _token_side(into, copy, 0).add_(_strip_side(strip, copy))
    return grad_key, grad_value


def _backward_group(
    plan: StripPlan,
    part: Part,
    group: InnerGroup,
    chunk: tuple[int, int, int, int],
    tokens: Tokens,
    results: Results,
    grads: Tokens,
    scratch: Scratch,
) -> tuple[Tensor, Tensor]:
    """Gradients of a group's boxes, `[batch, rows * box, width]`; writes those of the queries."""
    head, query_at, key_at, lse_at = chunk
    boxes = _box_shape(plan, part, group)
    key = _get(tokens.key, group.gather, key_at, scratch.take("key", tokens.key, boxes))
    value = _get(tokens.value, group.gather, key_at, scratch.take("value", tokens.key, boxes))
    # One tile: its gradients are the strip's.
    single = len(group.works) == 1 and group.works[0].run.tiles == 1 and group.works[0].run.keys == part.rows
    grad_key = None if single else scratch.take("grad_key", tokens.key, boxes).zero_()
    grad_value = None if single else scratch.take("grad_value", tokens.key, boxes).zero_()
    for work in group.works:
        run = work.run
        query = _tiles(plan, part, group, work, tokens.query, query_at, scratch, "query")
        above = _tiles(plan, part, group, work, results.grad_output, query_at, scratch, "above")
        output = _tiles(plan, part, group, work, results.output, query_at, scratch, "output")
        sums = _lse_tiles(part, group, work, results.lse, lse_at)
        mask = _mask(plan, part, group, work, tokens, head)
        bias_grad = None
        grad_query = []
        for i in range(run.tiles):
            first, count = (run.first_key + i * run.rows) * group.box, run.keys * group.box
            own = slice(i, i + 1)
            k, v = key.narrow(1, first, count).unsqueeze(1), value.narrow(1, first, count).unsqueeze(1)
            if tokens.rpb is None:
                dq, dk, dv = attention_backward(
                    above[:, own], query[:, own], k, v, output[:, own], sums[:, own], 0.0, False,
                    attn_mask=mask, scale=tokens.scale,
                )  # fmt: skip
            else:
                assert mask is not None
                dq, dk, dv, ds = _explicit(
                    above[:, i], query[:, i], k[:, 0], v[:, 0], output[:, i], sums[:, i], mask[:, 0], tokens.scale
                )
                bias_grad = ds if bias_grad is None else bias_grad.add_(ds)
            grad_query.append(dq)
            if grad_key is None or grad_value is None:
                grad_key, grad_value = dk.squeeze(1), dv.squeeze(1)
            else:
                grad_key.narrow(1, first, count).add_(dk.squeeze(1))
                grad_value.narrow(1, first, count).add_(dv.squeeze(1))
        dq = grad_query[0] if len(grad_query) == 1 else torch.cat(grad_query, 1)
        _put(dq, work.tiles, grads.query, query_at)
        if bias_grad is not None and tokens.rpb is not None and grads.rpb is not None:
            _add_bias_grad(plan, part, group, work, bias_grad, tokens.rpb, grads.rpb, head)
    assert grad_key is not None
    assert grad_value is not None
    return grad_key.contiguous(), grad_value.contiguous()


def _explicit(
    above: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and scores; everything `[batch, queries or keys, width]`.

    With P = exp(S - lse): dV = P'dO, dS = P * (dO V' - rowsum(dO * O)), dQ = dS K, dK = dS'Q (FlashAttention-2,
    arXiv 2307.08691, section 3.1).
    """
    weights = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scale)
    weights.sub_(lse.unsqueeze(-1)).exp_()
    grad_value = torch.bmm(weights.transpose(1, 2), above)
    grad_scores = torch.bmm(above, value.transpose(1, 2))
    grad_scores.sub_((above * output).sum(-1, keepdim=True)).mul_(weights)
    grad_query = torch.bmm(grad_scores, key).mul_(scale)
    grad_key = torch.bmm(grad_scores.transpose(1, 2), query).mul_(scale)
    return grad_query.unsqueeze(1), grad_key.unsqueeze(1), grad_value.unsqueeze(1), grad_scores


def _add_bias_grad(
    plan: StripPlan,
    part: Part,
    group: InnerGroup,
    work: Work,
    grad_scores: Tensor,
    rpb: Tensor,
    grad_rpb: Tensor,
    head: int,
) -> None:
    """Add a run's gradients of scores, `[batch, group * queries, keys]`, to those of the bias of its heads."""
    heads = plan.key.group
    index = bias_index(part, group, work, _window(plan))
    each = grad_scores.unflatten(0, (part.batch, group.tiles)).sum(0).unflatten(1, (heads, -1))
    if index.shape[0] == 1:
        each = each.sum(0, keepdim=True)
    own = grad_rpb[head * heads : (head + 1) * heads].view(heads, -1)
    own.index_add_(1, index.flatten(), each.transpose(0, 1).reshape(heads, -1))


def _mask(plan: StripPlan, part: Part, group: InnerGroup, work: Work, tokens: Tokens, head: int) -> Tensor | None:
    if tokens.rpb is None:
        return MASKS.get(plan.key, part, group, work, tokens.query.dtype)
    table = tokens.rpb[head * plan.key.group : (head + 1) * plan.key.group].flatten(1)
    return biased(plan.key, part, group, work, table, bias_index(part, group, work, _window(plan)))


def _window(plan: StripPlan) -> tuple[int, ...]:
    return tuple(k for k in plan.key.neighborhood.window if k is not None)


def _box_shape(plan: StripPlan, part: Part, group: InnerGroup) -> tuple[int, ...]:
    """The boxes of a group's inner tiles: `[batch, rows * box, width]`."""
    return part.batch * group.tiles, part.rows * group.box, plan.key.width


def _row_boxes(strip: Tensor, part: Part, group: InnerGroup, work: Work) -> Tensor:
    """The overlapping boxes of a run, a view `[batch, tiles, keys, width]`."""
    run, width = work.run, strip.shape[-1]
    row = group.box * width
    return strip.as_strided(
        (strip.shape[0], run.tiles, run.keys * group.box, width),
        (part.rows * row, run.rows * row, width, 1),
        run.first_key * row,
    )


def _tiles(
    plan: StripPlan,
    part: Part,
    group: InnerGroup,
    work: Work,
    tokens: Tensor,
    at: int,
    scratch: Scratch,
    name: str,
) -> Tensor:
    """The queries of a run, `[batch, tiles, queries, width]`; zero where padded."""
    shape = (part.batch * group.tiles, work.run.tiles, work.size, plan.key.width)
    strip = scratch.take(name, tokens, shape)
    return _get(tokens, work.tiles, at, strip.zero_() if work.padded else strip)


def _lse_tiles(part: Part, group: InnerGroup, work: Work, lse: Tensor, at: int) -> Tensor:
    shape = (part.batch * group.tiles, work.run.tiles, work.size)
    # Where padded, infinity: the weights exp(score - lse) are zero.
    return _get(lse, work.lse_tiles, at, lse.new_full(shape, float("inf")) if work.padded else lse.new_empty(shape))


def _get(tokens: Tensor, copies: tuple[Copy, ...], at: int, strip: Tensor) -> Tensor:
    for copy in copies:
        _strip_side(strip, copy).copy_(_token_side(tokens, copy, at))
    return strip


def _put(strip: Tensor, copies: tuple[Copy, ...], tokens: Tensor, at: int) -> None:
    strip = strip.contiguous()
    for copy in copies:
        _token_side(tokens, copy, at).copy_(_strip_side(strip, copy))


def _token_side(tokens: Tensor, copy: Copy, at: int) -> Tensor:
    return tokens.as_strided(copy.size, copy.token_stride, tokens.storage_offset() + copy.token_offset + at)


def _strip_side(strip: Tensor, copy: Copy) -> Tensor:
    return strip.as_strided(copy.size, copy.strip_stride, strip.storage_offset() + copy.strip_offset)
