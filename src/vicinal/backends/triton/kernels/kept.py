"""Which keys of a tile's box are there under a key mask, listed before a kernel of classes takes them.

So it walks them alone, in steps that are full but the last one: keys that are masked are never read, and cost nothing,
in whatever pattern.
"""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import program_of
from vicinal.backends.gpu.kernels.memory import await_previous, let_next_start, rows_at
from vicinal.backends.gpu.kernels.window import shifted, size_of, tile_of, tokens_at
from vicinal.backends.triton.kernels.starts import lines_at, places_of, whole_box

AT_ONCE = tl.constexpr(256)  # tokens
OF_MASKS = tl.constexpr(1 << 16)  # what an entry's row of masks is multiplied by


@triton.jit(do_not_specialize=("programs", "steps"))
def kept_kernel(
    key_mask,  # contiguous `[B, *X]` bytes: 0 where no kernel may read a token
    kept,  # written, of each batch entry and tile: see `kept_of`
    programs,
    steps,  # of a tile, at most
    axes,
    TILE: tl.constexpr, STEP: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    BN: tl.constexpr = size_of(STEP)
    pid = tl.program_id(0)
    index, _, b = program_of(pid, programs, 1)
    tile = tile_of(index, axes, TILE, FLAGS)
    if tile.beyond:
        return
    box = whole_box(tile, axes, TILE, FLAGS, False)
    await_previous(FLAGS.chained)
    row = kept + pid.to(tl.int64) * room_of(steps, BN)
    count = 0
    last = 0
    for first in range(0, box.count, AT_ONCE):
        number = first + tl.arange(0, AT_ONCE)
        places = places_of(lines_at(tl.minimum(number, box.count - 1), box), box)
        tokens = tokens_at(shifted(places, box.begin), tile.group, axes.dilations)
        there = number < box.count
        there = tl.load(key_mask + rows_at(b, tokens, axes, 1, 0, True), mask=there, other=0) != 0
        here = there.to(tl.int32)
        tl.store(row + 1 + count + tl.cumsum(here, 0) - here, number * (OF_MASKS + 1), mask=there)
        count += tl.sum(here, 0)
        last = tl.maximum(last, tl.max(tl.where(there, number, 0), 0))
    let_next_start(FLAGS.chained)
    # The last step's rest: the last key once more, with masks of none.
    rest = count + tl.arange(0, BN)
    tl.store(row + 1 + rest, box.count * OF_MASKS + last, mask=rest < (count + BN - 1) // BN * BN)
    tl.store(row, count)


@triton.jit
def room_of(steps, SIZE: tl.constexpr):
    """Integers of a list: how many keys there are, then an entry for each; a step more is read ahead."""
    return 1 + (steps + 1) * SIZE


@triton.jit
def kept_of(kept, number, steps, SIZE: tl.constexpr):
    """A program's list: where its entries are, and how many steps they take.

    An entry is the number of a key in the box, plus `OF_MASKS` times that of the masks that say who sees it.
    """
    row = kept + number.to(tl.int64) * room_of(steps, SIZE)
    return row + 1, (tl.load(row) + SIZE - 1) // SIZE
