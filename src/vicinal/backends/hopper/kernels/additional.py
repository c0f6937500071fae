"""Additional keys and values, which every query attends to next to its window.

They come as copies whose number is a multiple of every tile, `[B, tiles * keys, Hkv, columns]`, zero beyond the last.
In the forward and in dQ's pass tiles of them follow the walk over a box. For their own gradients, the kernels of dK and
dV are compiled with `Constants.cut`: own tiles are of additional keys, at `[part, 0, key]`, and the walk is over all
queries of a dilation group, which programs of several parts share along axis `cut`. Sums are written in float32, for
each part and group.
"""

from vicinal.backends.hopper.kernels.compat import gl, gluon
from vicinal.backends.hopper.kernels.pieces import store_sums
from vicinal.backends.hopper.kernels.walk import (
    Item,
    OwnRows,
    Walk,
    first_of,
    rows_of,
    share_of,
    sides,
    union,
    walk_order,
    whole,
)


@gluon.jit
def tiles_of(work, KEYS: gl.constexpr, C: gl.constexpr):
    """How many tiles of `KEYS` additional keys follow a walk."""
    if C.additional:
        return gl.cdiv(work.more.count, KEYS)
    else:
        return 0


@gluon.jit
def first_group(item):
    """The same item with the first token: additional keys have no dilation groups."""
    return Item(item.batch, item.place, 0, item.head, item.tile)


@gluon.jit
def cut_off(s, left, layout: gl.constexpr):
    """Scores plus minus infinity, from column `left` on."""
    if left < s.shape[1]:
        column = gl.arange(0, s.shape[1], layout=gl.SliceLayout(0, layout))
        s = s + gl.where(column < left, 0.0, float("-inf"))[None, :]
    return s


# --- their gradients: the walk over all queries ------------------------------------------------------------


@gluon.jit
def queries_of(tile, axes, work, C: gl.constexpr):
    """The `Walk` of a program that makes dK and dV."""
    if C.cut >= 0:
        AXIS: gl.constexpr = walk_order((0, 1, 2), C)
        a = _queries_along(tile[0], axes, work, AXIS[0], C)
        b = _queries_along(tile[0], axes, work, AXIS[1], C)
        w = _queries_along(tile[0], axes, work, AXIS[2], C)
        return Walk(first_of(tile, C), a, b, w)
    else:
        return union(tile, axes, C)


@gluon.jit
def _queries_along(part, axes, work, A: gl.constexpr, C: gl.constexpr):
    if A == C.cut:
        start = part * work.more.chunk
        return start, gl.minimum(start + work.more.chunk, axes.lengths[A])
    else:
        return 0, axes.lengths[A]


@gluon.jit
def own_rows(x, axes, work, layout: gl.constexpr, C: gl.constexpr):
    """The `OwnRows` of a warpgroup's keys at `x`."""
    if C.cut >= 0:
        row = gl.arange(0, C.tile[2], layout=layout)
        n0, n1, n2 = axes.lengths
        inside = x[2] + row < work.more.count
        widths = (gl.where(inside, n0, 0), gl.where(inside, n1, 0), gl.where(inside, n2, 0))
        starts = (row * 0, row * 0, row * 0)
        reached = gl.where(x[2] + C.tile[2] <= work.more.count, n2, 0)  # else all tiles are masked
        return OwnRows((row, row, x[2] + row), starts, widths, (0, 0, 0), (n0, n1, reached))
    else:
        return rows_of(x, axes, layout, C)


@gluon.jit
def share_of_queries(x, walk, axes, W: gl.constexpr, C: gl.constexpr):
    """The `Share` of warpgroup `W` of a walk over queries, whose keys are at `x`."""
    if C.cut >= 0:
        return whole(walk, C)
    else:
        return share_of(x[C.split], walk, axes, W, C)


@gluon.jit
def own_place(x, C: gl.constexpr):
    """Where the keys at `x` are in their descriptor."""
    if C.cut >= 0:
        return 0, 0, x[2]
    else:
        return x


@gluon.jit
def write_sums(ptr, sums, factor, item, x, work, PIECES: gl.constexpr, C: gl.constexpr):
    """Write `sums * factor` of the keys at `x` to `[place, part, key, head, columns]`, float32."""
    COLUMNS: gl.constexpr = PIECES * sums[0].shape[1]
    heads = work.grid.kv_heads
    keys = work.grid.tiles[2] * (sides(C) * C.tile[2])
    key = (item.place.to(gl.int64) * work.grid.tiles[0] + x[0]) * keys + x[2]
    store_sums(ptr + (key * heads + item.head) * COLUMNS, sums, factor, heads * COLUMNS, PIECES)
