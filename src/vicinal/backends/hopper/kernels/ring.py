"""Rings of tiles in shared memory: a producer fills their slots, two consumer warpgroups read and free them.

Tile `t` of a ring goes to slot `t % stages`. Barriers count phases: a slot's flips each time that it is filled (freed),
so the parity of `t // stages` says which of its fillings is waited for.
"""

from typing import Any, NamedTuple

from vicinal.backends.hopper.kernels.compat import gl, gluon, mbarrier


class Ring(NamedTuple):
    """Tiles with their barriers, one of each kind per slot."""

    tiles: Any  # a buffer, or a tuple of buffers that are filled and freed together
    ready: Any  # its tiles have arrived
    empty: Any  # its readers are done; a slot that was never filled counts as such


@gluon.jit
def barriers(SLOTS: gl.constexpr):
    """Memory of one barrier per slot."""
    return gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())


@gluon.jit
def start_slot(ring, slot, READERS: gl.constexpr):
    """Initialise a slot's barriers: one producer fills it, so many warpgroups free it."""
    mbarrier.init(ring.ready.index(slot), count=1)
    mbarrier.init(ring.empty.index(slot), count=READERS)


@gluon.jit
def await_ready(ring, t, C: gl.constexpr):
    """Wait until tile `t` has arrived."""
    mbarrier.wait(ring.ready.index(t % C.stages), (t // C.stages) & 1)


@gluon.jit
def await_empty(ring, t, C: gl.constexpr):
    """Wait until the slot of tile `t` may be filled with it."""
    mbarrier.wait(ring.empty.index(t % C.stages), ((t // C.stages) & 1) ^ 1)


@gluon.jit
def claim(ring, t, BYTES: gl.constexpr, C: gl.constexpr):
    """Wait until the slot of tile `t` may be filled with it, with so many bytes: the barrier that they are to reach."""
    await_empty(ring, t, C)
    bar = ring.ready.index(t % C.stages)
    mbarrier.expect(bar, BYTES)
    return bar


@gluon.jit
def free(ring, t, C: gl.constexpr):
    """Say that one warpgroup is done with tile `t`."""
    mbarrier.arrive(ring.empty.index(t % C.stages), count=1)


@gluon.jit
def free_multiplied(ring, t, C: gl.constexpr):
    """As `free`, after the end of products that needed all that the warpgroup has read of tile `t`."""
    arrive_alone(ring.empty.index(t % C.stages))


@gluon.jit
def arrive_alone(bar):
    """Arrive at a barrier: one thread for a warpgroup, whose other warps it does not wait for.

    Triton puts a barrier of all warps before each `mbarrier.arrive`, and one more before what follows: it takes an
    arrival to read and write all memory. Products are of a warpgroup: what one warp knows to have ended, has for all.
    """
    mbarrier.expect(bar, 0)


@gluon.jit
def pass_over(ring, t, C: gl.constexpr):
    """Let tile `t` go unread. Waiting for it first keeps the phases in step."""
    await_ready(ring, t, C)
    free(ring, t, C)


@gluon.jit
def pass_over_tiles(rings, t, count, C: gl.constexpr):
    """Let tiles `[t, t + count)` of several rings go unread: `t + count`."""
    for _ in range(count):
        for i in gl.static_range(len(rings)):
            pass_over(rings[i], t, C)
        t += 1
    return t
