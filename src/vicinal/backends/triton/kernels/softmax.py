"""Scores and the online softmax, in base 2: `exp2` is what the hardware computes, so log2(e) joins the scale.

Source: the running maximum and sum of FlashAttention-2 (arXiv 2307.08691, algorithm 1), and its recomputation of the
weights from the log-sum-exp in the backward pass (algorithm 2).
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.0e38)  # the first maximum: finite, so that a row without keys yet makes no NaN


@triton.jit
def attend(scores, value, maximum, total, accumulated, scale, SCALED: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the online softmax: `scores` of some keys, still to be multiplied by `scale` unless `SCALED`.

    Returns the running maximum (of scaled scores, base 2), sum and weighted values.
    """
    if SCALED:
        new = tl.maximum(maximum, tl.max(scores, 1))
        p = tl.exp2(scores - new[:, None])
    else:
        new = tl.maximum(maximum, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - new[:, None])
    fade = tl.exp2(maximum - new)
    total = total * fade + tl.sum(p, 1)
    accumulated = accumulated * fade[:, None]
    accumulated = tl.dot(p.to(value.dtype), value, accumulated, input_precision=PRECISION)
    return new, total, accumulated


@triton.jit
def biased(scores, mask, rpb, key_part, query_part, scale):
    """Scaled scores plus the relative positional bias at `key_part - query_part`, where `mask`; `-inf` elsewhere."""
    bias = tl.load(rpb + (key_part - query_part), mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, scores * scale + bias * LOG2E, float("-inf"))
