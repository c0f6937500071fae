"""Which queries have an answer: under a key mask some have none, and those may be no numbers."""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.memory import await_previous, let_next_start


@triton.jit(do_not_specialize=("rows", "heads"))
def answered_kernel(
    lse,  # contiguous `[rows, heads]`
    states,  # written, of each row: 0 where no head has an answer, having no key or no number, 1 where all have, else 2
    rows, heads,
    BLOCK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    await_previous(CHAINED)
    answered = tl.zeros([BLOCK], tl.int32)
    for h in range(heads):
        answered += (tl.load(lse + row * heads + h, mask=inside, other=0.0) != float("-inf")).to(tl.int32)
    let_next_start(CHAINED)
    state = tl.where(answered == heads, 1, tl.where(answered == 0, 0, 2))
    tl.store(states + row, state.to(tl.uint8), mask=inside)
