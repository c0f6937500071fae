"""Items that programs take one after the other, from a counter in memory: programs that are done take more.

A producer takes them, and tells the consumers of its program by shared memory, ahead of a barrier that they wait for.
"""

from vicinal.backends.hopper.kernels.compat import gl, gluon, mbarrier


@gluon.jit
def counted(counter_ptr):
    """What a counter in memory was before 1 is added to it; of a partition of one warp.

    Triton's own atomics hand a scalar on through shared memory, with a barrier of the whole program.
    """
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    count = gl.inline_asm_elementwise(
        "{ .reg .pred first; .reg .u32 lane; mov.u32 lane, %laneid; setp.eq.u32 first, lane, 0; mov.u32 $0, 0;"
        " @first atom.relaxed.gpu.global.add.u32 $0, [$1], 1; }",
        "=&r,l", [counter_ptr + gl.zeros([32], gl.int32, layout=layout)], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip
    return gl.max(count, 0)


@gluon.jit
def announcement():
    """Memory of an item's number."""
    return gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())


@gluon.jit
def announce(memory, number):
    """Write an item's number; of a partition of one warp."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    memory.store(gl.zeros([1], gl.int64, layout=layout) + number)


@gluon.jit
def announced(memory):
    """The number that was announced."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    return gl.max(memory.load(layout), 0).to(gl.int32)
