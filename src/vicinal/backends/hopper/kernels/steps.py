"""Which steps of its walk a program takes under a key mask, listed before the kernel that takes them starts.

So steps whose tokens are all masked are neither loaded nor multiplied, and those whose tokens are all there are
computed as if there were no mask. The lists of a program, one after the other in memory, are of 32-bit integers:

- `HEADER` numbers: how many steps the producer takes; of each warpgroup how many it takes, and how many it passes over
  after its last one; from `OWN` on, of each warpgroup's own tokens, which may be read: a bit for each.
- `LISTS` times `Lists.room` entries of `ENTRY` numbers, the producer's, then each warpgroup's: where the step is, in
  the order of the walk's loops; how many of the producer's steps are passed over before it, and whether some of its
  tokens are masked; then of each token whether it may be read, a bit for each, where some may not.

Kernels in one pass walk in step, both warpgroups and the producer: theirs is the producer's list.
"""

from typing import Any, NamedTuple

from vicinal.backends.hopper.kernels import arguments
from vicinal.backends.hopper.kernels.chain import await_previous, let_next_start
from vicinal.backends.hopper.kernels.compat import fence_async_shared, gl, gluon, thread_barrier
from vicinal.backends.hopper.kernels.ring import pass_over_tiles
from vicinal.backends.hopper.kernels.walk import (
    OwnRows,
    beside,
    box,
    in_order,
    locate,
    row_position,
    tokens_at,
    union,
    walk_order,
    work_of,
)

HEADER = gl.constexpr(arguments.HEADER)
OWN = gl.constexpr(8)
ENTRY = gl.constexpr(arguments.ENTRY)
LISTS = gl.constexpr(arguments.LISTS)
BITS = gl.constexpr(4)  # where the bits of an entry's tokens are
MASKED = gl.constexpr(256)  # added to what is passed over
OUTSIDE = gl.constexpr(3)  # the state of a token that does not exist


class Listed(NamedTuple):
    """One list, and what is said of who takes it."""

    entries: Any  # pointer
    count: Any
    after: Any
    own: Any  # bits of a warpgroup's own tokens: two integers


# --- who takes them ----------------------------------------------------------------------------------------


@gluon.jit
def listed_of(work, item, LIST: gl.constexpr, W: gl.constexpr, C: gl.constexpr):
    """List `LIST` of the program that has an item, and the own tokens of warpgroup `W`."""
    tiles = work.grid.tiles
    number = ((item.place * tiles[0] + item.tile[0]) * tiles[1] + item.tile[1]) * tiles[2] + item.tile[2]
    room = work.more.room
    row = work.table + number.to(gl.int64) * (HEADER + LISTS * ENTRY * room)
    own = row + OWN + 2 * W
    after = gl.load(row + 2 + LIST)
    return Listed(row + HEADER + LIST * ENTRY * room, gl.load(row + LIST), after, (gl.load(own), gl.load(own + 1)))


@gluon.jit
def entry_at(listed, i):
    """Entry `i`: where the step is in the order of the walk's loops, and what is said of it."""
    at = listed.entries + i * ENTRY
    return gl.load(at), gl.load(at + 1), gl.load(at + 2), gl.load(at + 3)


@gluon.jit
def on_list(coming, listed, i, t, rings, C: gl.constexpr):
    """As `walk.on_line`: where step `i` of a list is, and its number in `rings`, after the tiles that are passed over.

    It has been read ahead, as `coming`. Also what is said of it, and the next one.
    """
    a, b, w, info = coming
    coming = entry_at(listed, i + 1)
    return a, b, w, pass_over_tiles(rings, t, info % MASKED, C), info, coming


@gluon.jit
def bits_at(listed, i, KEYS: gl.constexpr):
    """The bits of entry `i`: four integers."""
    at = listed.entries + i * ENTRY + BITS
    first = gl.load(at)
    second = gl.load(at + 1)
    if KEYS == 128:
        return first, second, gl.load(at + 2), gl.load(at + 3)
    else:
        return first, second, second, second


@gluon.jit
def fill_listed(load: gl.constexpr, arguments, listed, t, C: gl.constexpr):
    """A producer's steps, as `walk.fill` does it."""
    a, b, w, _ = entry_at(listed, 0)
    for i in range(listed.count):
        c = in_order(a, b, w, C)
        a, b, w, _ = entry_at(listed, i + 1)  # read ahead: there is room for one more
        load(arguments, c, t, C)
        t += 1
    return t


@gluon.jit
def kept_of(bits, SIZE: gl.constexpr, layout: gl.constexpr):
    """`[SIZE]`: of each token whether it may be read."""
    i = gl.arange(0, SIZE, layout=layout)
    if SIZE == 128:
        word = gl.where(i < 64, gl.where(i < 32, bits[0], bits[1]), gl.where(i < 96, bits[2], bits[3]))
    else:
        word = gl.where(i < 32, bits[0], bits[1])
    return ((word >> (i % 32)) & 1) != 0


@gluon.jit
def hidden(s, listed, i, info, layout: gl.constexpr):
    """Scores of step `i` of a list, minus infinity for keys that are masked."""
    if info >= MASKED:
        KEYS: gl.constexpr = s.shape[1]
        kept = kept_of(bits_at(listed, i, KEYS), KEYS, gl.SliceLayout(0, layout))
        s = gl.where(kept[None, :], s, float("-inf"))
    return s


@gluon.jit
def all_kept(own):
    """Whether all of a warpgroup's own tokens may be read."""
    return (own[0] & own[1]) == -1


@gluon.jit
def without_masked(rows, own, layout: gl.constexpr):
    """The `OwnRows` of keys, of which those that are masked have no queries."""
    kept = kept_of(own, rows.positions[2].shape[0], layout)
    widths = (rows.widths[0], rows.widths[1], gl.where(kept, rows.widths[2], 0))
    high = gl.where(all_kept(own), rows.high[2], rows.low[2])  # else no step is in the interval of all
    return OwnRows(rows.positions, rows.starts, widths, rows.low, (rows.high[0], rows.high[1], high))


@gluon.constexpr_function
def rows_layout(columns):
    """How a warpgroup reads rows of so many columns of 16 bits."""
    return gl.BlockedLayout([1, 8], [32 // (columns // 8), columns // 8], [4, 1], [1, 0])


@gluon.jit
def clean(buffer, first, bits, PIECES: gl.constexpr, ROWS: gl.constexpr):
    """Zeros for the tokens of a tile that may not be read: its pieces are number `first` and those that follow.

    Both warpgroups may do so at once: they write the same.
    """
    WIDE: gl.constexpr = buffer.shape[5]
    layout: gl.constexpr = rows_layout(WIDE)
    kept = kept_of(bits, ROWS, gl.SliceLayout(1, layout))
    for j in gl.static_range(PIECES):
        _select(buffer.index(first + j).reshape([ROWS, WIDE]), kept, layout)
    _written()


@gluon.jit
def clean_queries(walked, t, QP: gl.constexpr, VP: gl.constexpr, C: gl.constexpr):
    """Zeros for the queries of tile `t` that have no answer (`prepare` made it infinite), and for their gradients."""
    q_s, do_s, lse_s, _ = walked.tiles
    slot = t % C.stages
    _clean_answered(q_s, lse_s, slot, QP, C)
    _clean_answered(do_s, lse_s, slot, VP, C)
    _written()


@gluon.jit
def _clean_answered(buffer, lse_s, slot, PIECES: gl.constexpr, C: gl.constexpr):
    ROWS: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    WIDE: gl.constexpr = buffer.shape[5]
    layout: gl.constexpr = rows_layout(WIDE)
    lse = lse_s.index(slot).reshape([ROWS]).load(gl.SliceLayout(1, layout))
    kept = (lse > float("-inf")) & (lse < float("inf"))
    for j in gl.static_range(PIECES):
        _select(buffer.index(slot * PIECES + j).reshape([ROWS, WIDE]), kept, layout)


@gluon.jit
def _select(tile, kept, layout: gl.constexpr):
    found = tile.load(layout)
    tile.store(gl.where(kept[:, None], found, gl.zeros_like(found)))


@gluon.jit
def _written():
    """What a warpgroup has written to shared memory may be multiplied."""
    fence_async_shared()
    thread_barrier()


# --- who writes them ---------------------------------------------------------------------------------------


@gluon.jit(do_not_specialize=["groups", "lists"], do_not_specialize_on_alignment=["scalars"])
def list_steps(
    walked_ptr,  # bytes of tokens that are walked: 0 where a token may not be read, 1 where it may, else 2
    own_ptr,  # of tokens of own tiles: 0 where one may not be read
    lists_ptr,  # written
    scalars, groups, lists,  # of the kernel that takes them, but strides: `TokenStrides` of both; `Lists`
    C: gl.constexpr,  # `Constants` of the kernel that takes them
):  # fmt: skip
    """The lists of one program."""
    STEP: gl.constexpr = walk_order(C.step, C)
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    work = work_of(scalars, groups, lists_ptr, lists)
    axes = work.axes
    walked_strides, own_strides = work.strides
    item = locate(gl.program_id(0), work.grid.tiles, 1, groups, C)
    walk = union(item.tile, axes, C)
    row = lists_ptr + gl.program_id(0).to(gl.int64) * (HEADER + LISTS * ENTRY * lists.room)
    counts = (
        gl.cdiv(walk.outer[1] - walk.outer[0], STEP[0]),
        gl.cdiv(walk.inner[1] - walk.inner[0], STEP[1]),
        gl.cdiv(walk.split[1] - walk.split[0], STEP[2]),
    )
    count = counts[0] * counts[1] * counts[2]
    await_previous(C.chained)
    any_own = _write_own(row, own_ptr, own_strides, item, walk, axes, 0, layout, C)
    start0, stop0, _, _ = box(walk.first[C.split], C.tile[C.split], axes, C.split, C)
    start1 = start0
    stop1 = stop0
    if not C.shared:
        any_own |= _write_own(row, own_ptr, own_strides, item, walk, axes, 1, layout, C)
        start1, stop1, _, _ = box(walk.first[C.split] + C.tile[C.split], C.tile[C.split], axes, C.split, C)
    if C.inverse:  # keys that are all masked take nothing
        count = gl.where(any_own, count, 0)

    all_taken = gl.to_tensor(0)
    taken0 = gl.to_tensor(0)
    taken1 = gl.to_tensor(0)
    passed0 = gl.to_tensor(0)
    passed1 = gl.to_tensor(0)
    last = (walk.outer[0], walk.inner[0], walk.split[0])
    last_info = gl.to_tensor(MASKED)
    state = _states(gl.to_tensor(0), count, walk, counts, walked_ptr, walked_strides, item, axes, layout, C)
    last_bits = _bits(state * 0)
    for n in range(count):
        coming = _states(n + 1, count, walk, counts, walked_ptr, walked_strides, item, axes, layout, C)
        at = _step_at(n, walk, counts, C)
        seen = ((state == 1) | (state == 2)).to(gl.int32)
        hidden = ((state == 0) | (state == 2)).to(gl.int32)
        sums = gl.sum(seen + (hidden << 16), 0)
        some = (sums & 0xFFFF) > 0
        masked = sums > 0xFFFF
        needed0 = (at[2] < stop0) & (at[2] + STEP[2] > start0)
        needed1 = (at[2] < stop1) & (at[2] + STEP[2] > start1)
        if some & (needed0 | needed1):
            info = gl.where(masked, MASKED, 0)
            bits = _bits(seen)
            _write(row, 0, all_taken, at, info, bits, lists.room)
            all_taken += 1
            if not C.aligned:
                taken0, passed0 = _take(row, 1, taken0, passed0, needed0, at, info, bits, lists.room, C)
                taken1, passed1 = _take(row, 2, taken1, passed1, needed1, at, info, bits, lists.room, C)
            last = at
            last_info = info
            last_bits = bits
        state = coming
    if not C.inverse:  # everybody takes a step: the last one, or one whose tokens are all masked
        if all_taken == 0:
            _write(row, 0, all_taken, last, last_info, last_bits, lists.room)
            all_taken += 1
            passed0 += 1
            passed1 += 1
        if taken0 == 0:
            _write(row, 1, taken0, last, last_info + passed0 - 1, last_bits, lists.room)
            taken0 += 1
            passed0 = 0
        if taken1 == 0:
            _write(row, 2, taken1, last, last_info + passed1 - 1, last_bits, lists.room)
            taken1 += 1
            passed1 = 0
    let_next_start(C.chained)
    gl.store(row, all_taken)
    gl.store(row + 1, taken0)
    gl.store(row + 2, taken1)
    gl.store(row + 3, passed0)
    gl.store(row + 4, passed1)


@gluon.jit
def _write_own(row, own_ptr, strides, item, walk, axes, W: gl.constexpr, layout: gl.constexpr, C: gl.constexpr):
    """Write the bits of a warpgroup's own tokens; whether there is any that may be read."""
    TILE: gl.constexpr = C.tile
    x = beside(walk.first, W, C)
    states = _load_states(own_ptr, strides, item, x, True, axes, TILE, layout)
    _store_bits(row + OWN + 2 * W, _bits((states != 0).to(gl.int32)))
    return gl.sum(((states == 1) | (states == 2)).to(gl.int32), 0) > 0


@gluon.jit
def _states(n, count, walk, counts, ptr, strides, item, axes, layout: gl.constexpr, C: gl.constexpr):
    """The states of the tokens of step `n`."""
    BOX: gl.constexpr = C.step
    at = _step_at(n, walk, counts, C)
    c = in_order(at[0], at[1], at[2], C)
    return _load_states(ptr, strides, item, c, n < count, axes, BOX, layout)


@gluon.jit
def _load_states(ptr, strides, item, c, exists, axes, BOX: gl.constexpr, layout: gl.constexpr):
    """Of the tokens of a box at `c`, in a program that has an item."""
    i = gl.arange(0, BOX[0] * BOX[1] * BOX[2], layout=layout)
    x0 = c[0] + row_position(i, 0, BOX)
    x1 = c[1] + row_position(i, 1, BOX)
    x2 = c[2] + row_position(i, 2, BOX)
    inside = (x0 < axes.lengths[0]) & (x1 < axes.lengths[1]) & (x2 < axes.lengths[2]) & exists
    at = tokens_at(item, 0, (x0, x1, x2), strides)
    return gl.load(ptr + at, mask=inside, other=OUTSIDE).to(gl.int32)


@gluon.jit
def _step_at(n, walk, counts, C: gl.constexpr):
    """Where step `n` of a walk is, in the order of its loops."""
    STEP: gl.constexpr = walk_order(C.step, C)
    rest = n // counts[2]
    a = walk.outer[0] + rest // counts[1] * STEP[0]
    b = walk.inner[0] + rest % counts[1] * STEP[1]
    return a, b, walk.split[0] + n % counts[2] * STEP[2]


@gluon.jit
def _take(row, LIST: gl.constexpr, taken, passed, needed, at, info, bits, room, C: gl.constexpr):
    """A warpgroup takes a step, or passes over it: no more than a ring allows (`walk.share_of`)."""
    takes = needed | (passed >= C.stages - 1)
    if takes:
        _write(row, LIST, taken, at, info + passed, bits, room)
    return taken + takes.to(gl.int32), gl.where(takes, 0, passed + 1)


@gluon.jit
def _write(row, LIST: gl.constexpr, number, at, info, bits, room):
    entry = row + HEADER + (LIST * room + number) * ENTRY
    gl.store(entry, at[0])
    gl.store(entry + 1, at[1])
    gl.store(entry + 2, at[2])
    gl.store(entry + 3, info)
    _store_bits(entry + BITS, bits)


@gluon.jit
def _bits(flags):
    """Zeros and ones as the bits of integers, 32 in each."""
    SIZE: gl.constexpr = flags.shape[0]
    i = gl.arange(0, SIZE, layout=flags.type.layout)
    return gl.sum((flags << (i % 32)).reshape([SIZE // 32, 32]), 1)


@gluon.jit
def _store_bits(ptr, bits):
    i = gl.arange(0, bits.shape[0], layout=bits.type.layout)
    gl.store(ptr + i, bits)
