"""Which tokens of a tile's box are there under a key mask, listed before a kernel of classes takes them.

So it walks them alone, in steps that are full but the last one: tokens that are not there are never read, and cost
nothing, in whatever pattern. For tiles of queries those are keys that are not masked; for tiles of keys, in the
backward pass, queries that have an answer (`vicinal.backends.gpu.kernels.answered`), of which those that only some
heads have answered are listed apart: there some heads' are read with care.
"""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import program_of
from vicinal.backends.gpu.kernels.memory import any_of, await_previous, let_next_start, mask_rows, rows_at
from vicinal.backends.gpu.kernels.window import size_of, tile_of, tokens_at
from vicinal.backends.triton.kernels.starts import lines_at, places_of, whole_box

AT_ONCE = tl.constexpr(256)  # tokens
BITS = tl.constexpr(16)  # of an entry, that are a token's number; those above are its row of masks
TOKEN = tl.constexpr((1 << 16) - 1)  # these bits


@triton.jit(do_not_specialize=("programs", "steps"))
def kept_kernel(
    states,  # contiguous `[B, *X]` bytes: of a key mask, or of `answered_kernel`
    kept,  # written, of each batch entry and tile: see `kept_at`
    programs,
    steps,  # of a tile, at most
    axes,
    TILE: tl.constexpr, STEP: tl.constexpr, FLAGS: tl.constexpr,
    INVERSE: tl.constexpr,  # tiles hold keys and walk queries
):  # fmt: skip
    BN: tl.constexpr = size_of(STEP)
    pid = tl.program_id(0)
    index, _, b = program_of(pid, programs, 1)
    tile = tile_of(index, axes, TILE, FLAGS, INVERSE)
    if tile.beyond:
        return
    box = whole_box(tile, axes, TILE, FLAGS, INVERSE)
    await_previous(FLAGS.chained)
    row = kept + pid.to(tl.int64) * room_of(steps, BN)
    listed = row + 2
    end = (steps + 2) * BN - 1
    states += rows_at(b, tokens_at(box.begin, tile.group, axes.dilations), axes, 1, 0, not INVERSE)
    whole = 0
    some = 0
    last = tl.zeros([AT_ONCE], tl.int32)
    last_of_some = tl.zeros([AT_ONCE], tl.int32)
    for first in range(0, box.count, AT_ONCE):
        number = first + tl.arange(0, AT_ONCE)
        places = places_of(lines_at(tl.minimum(number, box.count - 1), box), box)
        state = tl.load(states + mask_rows(places, axes, FLAGS.wide), mask=number < box.count, other=0)
        entry = number << BITS | number
        of_all = state != 0
        if INVERSE:
            of_all = state == 1
            of_some = state > 1
            if any_of(of_some):
                here = of_some.to(tl.int32)
                tl.store(listed + end - (some + tl.cumsum(here, 0) - here), entry, mask=of_some)
                some += tl.sum(here, 0)
                last_of_some = tl.where(of_some, number, last_of_some)
        here = of_all.to(tl.int32)
        tl.store(listed + whole + tl.cumsum(here, 0) - here, entry, mask=of_all)
        whole += tl.sum(here, 0)
        last = tl.where(of_all, number, last)
    let_next_start(FLAGS.chained)
    # The last step's rest: some token of the list once more, with masks of none.
    nothing = box.count << BITS
    rest = tl.arange(0, BN)
    tl.store(listed + whole + rest, nothing + tl.max(last, 0), mask=rest < _left(whole, BN))
    tl.store(row, whole)
    if INVERSE:
        tl.store(listed + end - some - rest, nothing + tl.max(last_of_some, 0), mask=rest < _left(some, BN))
        tl.store(row + 1, some)


@triton.jit
def _left(count, SIZE: tl.constexpr):
    """Of the last step."""
    return (count + SIZE - 1) // SIZE * SIZE - count


@triton.jit
def room_of(steps, SIZE: tl.constexpr):
    """Integers of a list: how many tokens there are, and how many with care; then an entry for each.

    Those with care begin at the end. Both are filled up to whole steps, and a step more is read ahead.
    """
    return 2 + (steps + 2) * SIZE


@triton.jit
def kept_at(kept, number, steps, SIZE: tl.constexpr):
    """Where the entries of a program's list are.

    An entry is the number of a token in the box, and that of the masks that say who sees it: `token_of`, `masks_of`.
    """
    return kept + number.to(tl.int64) * room_of(steps, SIZE) + 2


@triton.jit
def kept_steps(listed, SIZE: tl.constexpr):
    """How many steps they take."""
    return (tl.load(listed - 2) + SIZE - 1) // SIZE


@triton.jit
def token_of(entries):
    """The numbers of tokens in the box."""
    return entries & TOKEN


@triton.jit
def masks_of(entries):
    """The numbers of their rows of masks."""
    return entries >> BITS


@triton.jit
def careful_of(listed, steps, SIZE: tl.constexpr):
    """How many steps of it are with care, and where from `listed` on their first entry is: the next is before it."""
    return (tl.load(listed - 1) + SIZE - 1) // SIZE, (steps + 2) * SIZE - 1
