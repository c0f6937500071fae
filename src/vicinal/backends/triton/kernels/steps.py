"""Which steps a tile takes under a key mask, listed before the kernels that take them start.

So their loops load no mask where all keys of a step are there, as if there were no mask, and pass over steps that have
none. The backward pass of keys and values walks queries instead, of which a mask leaves some without an answer.
"""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import box_of, program_of, rules_of_head, step_at
from vicinal.backends.gpu.kernels.memory import around, await_previous, let_next_start, rows_at
from vicinal.backends.gpu.kernels.window import Axes, positions_in, tile_of, tokens_at

AT_ONCE = tl.constexpr(32)  # steps


@triton.jit(do_not_specialize=("programs", "lists", "room"))
def steps_kernel(
    states,  # contiguous `[B, *X]` bytes: of a token 0 where no kernel may read it, 1 where all may, else 2
    table,  # None, or each head's neighborhood
    steps,  # written, for each batch entry, head (of `lists`) and tile: see `boxes.steps_of`
    programs, lists, room, axes,
    TILE: tl.constexpr, STEP: tl.constexpr, FLAGS: tl.constexpr,
    INVERSE: tl.constexpr,  # tiles hold keys and walk queries
):  # fmt: skip
    RANK: tl.constexpr = len(TILE)
    pid = tl.program_id(0)
    index, h, b = program_of(pid, programs, lists)
    await_previous(FLAGS.chained)
    if table is not None:
        axes = Axes(axes.lengths, *rules_of_head(table, h, len(TILE)), axes.parts)
    tile = tile_of(index, axes, TILE, FLAGS, INVERSE)
    if tile.beyond:
        return
    box = box_of(tile, axes, TILE, STEP, FLAGS, INVERSE)
    columns = positions_in(STEP)
    row = steps + pid.to(tl.int64) * (2 + RANK * room)
    listed = row + 2
    whole = 0
    mixed = 0
    for first in range(0, box.count, AT_ONCE):
        number = first + tl.arange(0, AT_ONCE)
        at = step_at(number, box, STEP)
        there = (number < box.count)[:, None]
        positions = ()
        for axis in tl.static_range(RANK):
            position = at[axis][:, None] + columns[axis][None, :]
            there = there & (position < tile.box_ends[axis])
            positions = positions + (position,)
        tokens = around(tokens_at(positions, tile.group, axes.dilations), axes, FLAGS, not INVERSE)
        tokens = rows_at(b, tokens, axes, 1, 0, not INVERSE)
        state = tl.load(states + tokens, mask=there, other=0).to(tl.int32)
        some = tl.max(state, 1) > 0
        every = tl.max(tl.where(there & (state != 1), 1, 0), 1) == 0
        of_all = (some & every).to(tl.int32)
        of_some = some.to(tl.int32) - of_all
        entry = whole + tl.cumsum(of_all, 0) - 1
        entry = tl.where(every, entry, room - mixed - tl.cumsum(of_some, 0))
        for axis in tl.static_range(RANK):
            tl.store(listed + entry * RANK + axis, at[axis], mask=some)
        whole += tl.sum(of_all, 0)
        mixed += tl.sum(of_some, 0)
    let_next_start(FLAGS.chained)
    tl.store(row, whole)
    tl.store(row + 1, mixed)
