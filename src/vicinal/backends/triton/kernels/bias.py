"""The relative positional bias of scores, taken from a head's table score by score.

Wherever tiles are of few classes it is laid out beforehand: `vicinal.backends.triton.kernels.starts`.
"""

import triton
import triton.language as tl

from vicinal.backends.triton.kernels.softmax import LOG2E


@triton.jit
def biased(scores, mask, rpb, key_part, query_part, scale):
    """Scaled scores plus the relative positional bias at `key_part - query_part`, where `mask`; `-inf` elsewhere."""
    bias = tl.load(rpb + (key_part - query_part), mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, scores * scale + bias * LOG2E, float("-inf"))
