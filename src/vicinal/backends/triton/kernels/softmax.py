"""Scores and the online softmax, in base 2: `exp2` is what the hardware computes, so log2(e) joins the scale.

Source: the running maximum and sum of FlashAttention-2 (arXiv 2307.08691, algorithm 1), and its recomputation of the
weights from the log-sum-exp in the backward pass (algorithm 2).
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# The first maximum: the least finite number, so that any finite score counts, and a row without any makes no NaN.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def attend(scores, value, maximum, total, accumulated, scale, SCALED: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the online softmax: `scores` of some keys, still to be multiplied by `scale` unless `SCALED`.

    Returns the running maximum (of scores in base 2; of float32 ones before they are scaled), sum and weighted values.
    """
    p, maximum, total, accumulated = weigh(scores, maximum, total, accumulated, scale, SCALED, value.dtype)
    return maximum, total, tl.dot(p, value, accumulated, input_precision=PRECISION)


@triton.jit
def weigh(scores, maximum, total, accumulated, scale, SCALED: tl.constexpr, DTYPE: tl.constexpr):
    """The first half of `attend`: the weights of values of `DTYPE`, the running maximum and sum, what fades.

    In 16 bits the product with the scale and the difference to the maximum are one instruction, exact up to 2**31.
    """
    if SCALED:
        new = tl.maximum(maximum, tl.max(scores, 1))
        p = tl.exp2(scores - new[:, None])
        fade = tl.exp2(maximum - new)
    elif DTYPE == tl.float32:  # the greatest score less itself is 0, however large it is
        new = tl.maximum(maximum, tl.max(scores, 1))
        p = tl.exp2((scores - new[:, None]) * scale)
        fade = tl.exp2((maximum - new) * scale)
    else:
        new = tl.maximum(maximum, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - new[:, None])
        fade = tl.exp2(maximum - new)
    total = total * fade + tl.sum(p, 1)
    return p.to(DTYPE), new, total, accumulated * fade[:, None]


@triton.jit
def finished(maximum, total, accumulated, scale, SCALED: tl.constexpr, DTYPE: tl.constexpr):
    """The outputs and log-sum-exps of rows: 0 and -inf where no score is finite."""
    if not SCALED and DTYPE == tl.float32:
        maximum *= scale
    share = tl.where(total == 0.0, 0.0, 1.0 / total)  # one division a row, not one an element
    return accumulated * share[:, None], (maximum + tl.log2(total)) * LN2


@triton.jit
def in_base_2(lse, MASKED: tl.constexpr):
    """Log-sum-exps to take from scores, such that a score's weight is 0 where none is finite.

    If `MASKED`, also that of a finite score: a query that has no keys is not read, and its scores are 0.
    """
    if MASKED:
        return tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)
    return tl.maximum(lse * LOG2E, LOWEST, propagate_nan=tl.PropagateNan.ALL)
