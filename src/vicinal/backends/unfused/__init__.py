"""The unfused backend: scores, softmax, weighted sum as separate launches, the attention weights in memory.

What the paper compares fused attention with ("Faster Neighborhood Attention", arXiv 2403.04690). An `UnfusedConfig`
names the kernels: "naive" or "gemm", or "torch", which is plain torch, for CPU. Attention weights have the inputs'
dtype, as the paper's do, so in half precision this backend is less exact than fused ones. Memory grows with the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from vicinal.backends.protocol import Backend, Direction
from vicinal.backends.unfused import launch
from vicinal.backends.unfused.config import UnfusedConfig
from vicinal.backends.unfused.tilings import gemm_tile, too_large
from vicinal.geometry.slots import Slots
from vicinal.problem import Inputs, Problem, Upstream, Wanted, lse_dtype


class UnfusedBackend(Backend[UnfusedConfig]):
    """QK, softmax and AV one after the other; see `vicinal.backends.protocol.Backend`."""

    name = "unfused"

    def unsupported(self, problem: Problem) -> str | None:
        """Only one neighborhood for all heads, and all keys."""
        if problem.per_head:
            return "unfused kernels take one neighborhood for all heads"
        if problem.is_part:
            return "unfused kernels take whole axes, no spans"
        if problem.has_key_mask:
            return "unfused kernels take no key mask"
        if problem.has_window_sizes:
            return "unfused kernels take no windows per token"
        return None

    def configs(self, problem: Problem, direction: Direction) -> Sequence[UnfusedConfig]:
        """One tiling per variant that can run: the GEMM kernels' tiles have 64 tokens, as in the paper."""
        one = (1,) * problem.rank
        tile, unfolded = gemm_tile(problem.neighborhoods[0], problem.lengths)
        best = launch.choose(problem.dtype, problem.device, None)
        variants = sorted(launch.VARIANTS, key=lambda v: v != best)
        return [
            UnfusedConfig(v, tile, unfolded) if v == "gemm" else UnfusedConfig(v, one)
            for v in variants
            if launch.unsupported(v, problem.dtype, problem.device) is None
            and (v == "torch" or too_large(v, _slots(problem), problem.batch * problem.heads) is None)
        ]

    def forward(self, problem: Problem, config: UnfusedConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        slots = _slots(problem)
        scores = _scores(problem, slots, config, inputs)
        lse = scores.to(lse_dtype(problem.dtype)).logsumexp(-1)
        weights = scores.softmax(-1, dtype=problem.dtype)  # said, since autocast has a dtype of its own
        output = _weighted(problem, slots, config, inputs, weights)
        return output.masked_fill_(lse[..., None] == -inf, 0).contiguous(), lse.contiguous()

    def backward(
        self,
        problem: Problem,
        config: UnfusedConfig,
        inputs: Inputs,
        upstream: Upstream,
        wanted: Wanted,
    ) -> Inputs:
        """Gradients, from recomputed scores."""
        slots, scale, variant = _slots(problem), problem.scale, config.variant
        query, key, _, extra_keys, extra_values, rpb = inputs[:6]
        lse, grad_output = upstream.lse, upstream.grad_output
        total = lse.masked_fill(lse == -inf, inf)  # no score is finite: no weight at all
        weights = (_scores(problem, slots, config, inputs).to(lse.dtype) - total[..., None]).exp_()
        d_scores = weights  # not looked at where only values' gradients are wanted
        if wanted.query or wanted.key or wanted.additional_keys or wanted.rpb:
            d_scores = _score_gradients(slots, config, inputs, upstream, weights).to(problem.dtype)
        weights = weights.to(problem.dtype)

        d_window, w_window = d_scores[..., : slots.count], weights[..., : slots.count]
        kv_heads = problem.kv_heads
        d_query = d_key = d_value = d_extra_keys = d_extra_values = d_rpb = None
        if wanted.query:
            d_query = launch.nn(d_window, key, slots, scale, variant)
        if wanted.key:
            d_key = launch.inverse(d_window, query, kv_heads, slots, scale, variant).contiguous()
        if wanted.value:
            d_value = launch.inverse(w_window, grad_output, kv_heads, slots, 1.0, variant).contiguous()
        if wanted.rpb and rpb is not None:
            d_rpb = launch.bias_sum(d_window, slots, variant).to(rpb.dtype).contiguous()
        if extra_keys is not None and extra_values is not None:
            d_extra, w_extra = d_scores[..., slots.count :], weights[..., slots.count :]
            if d_query is not None:
                d_query = d_query + scale * launch.dense_av(d_extra, extra_keys)
            if wanted.additional_keys:
                d_extra_keys = (scale * _dense_inverse(d_extra, query, extra_keys)).contiguous()
            if wanted.additional_values:
                d_extra_values = _dense_inverse(w_extra, grad_output, extra_values).contiguous()
        d_query = None if d_query is None else d_query.contiguous()
        return Inputs(d_query, d_key, d_value, d_extra_keys, d_extra_values, d_rpb)  # type: ignore[arg-type]


BACKEND = UnfusedBackend()


def _score_gradients(
    slots: Slots, config: UnfusedConfig, inputs: Inputs, upstream: Upstream, weights: Tensor
) -> Tensor:
    """`[B, *X, H, slots + M]`, in the log-sum-exp's dtype."""
    output, lse, grad_output, grad_lse = upstream
    products = launch.pn(grad_output, inputs.value, None, slots, 1.0, 0.0, config.variant)
    if inputs.additional_values is not None:
        products = torch.cat([products, launch.dense_qk(grad_output, inputs.additional_values)], -1)
    delta = (grad_output.to(lse.dtype) * output.to(lse.dtype)).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse
    return weights * (products.to(lse.dtype) - delta[..., None])


def _slots(problem: Problem) -> Slots:
    return Slots(problem.neighborhood, problem.lengths)


def _scores(problem: Problem, slots: Slots, config: UnfusedConfig, inputs: Inputs) -> Tensor:
    """`[B, *X, H, slots + M]`."""
    rpb = None if inputs.rpb is None else inputs.rpb.to(problem.dtype)
    scores = launch.pn(inputs.query, inputs.key, rpb, slots, problem.scale, -inf, config.variant)
    if inputs.additional_keys is None:
        return scores
    return torch.cat([scores, problem.scale * launch.dense_qk(inputs.query, inputs.additional_keys)], -1)


def _weighted(problem: Problem, slots: Slots, config: UnfusedConfig, inputs: Inputs, attn: Tensor) -> Tensor:
    output = launch.nn(attn[..., : slots.count], inputs.value, slots, 1.0, config.variant)
    if inputs.additional_values is None:
        return output
    return output + launch.dense_av(attn[..., slots.count :], inputs.additional_values)


@launch.in_their_dtypes
def _dense_inverse(attn: Tensor, query: Tensor, like: Tensor) -> Tensor:
    """For each additional key the sum over all queries of `attn * query`: `[B, M, Hkv, D]`."""
    kv_heads = like.shape[2]
    grouped_attn = attn.flatten(1, -3).unflatten(2, (kv_heads, -1))
    grouped_query = query.flatten(1, -3).unflatten(2, (kv_heads, -1))
    return torch.einsum("bnhgm,bnhgd->bmhd", grouped_attn, grouped_query)
