"""Hopper's Gluon kernels in plain Python, on the CPU: what a kernel computes, waits for, and whether it ever ends.

Their sources are read again as modules of other names, with torch's tensors for Gluon's, numbers for scalars, and no
layouts. Partitions of a kernel are threads; a barrier that nobody completes is an error. Who arrives at one goes on
only when all others wait or have ended: what they may do then, they do, so that memory which is given away too early is
overwritten. Products and copies are done where they are issued, so that a missing wait for one is not seen.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Condition, Lock, Thread, current_thread
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vicinal.backends.gpu.kernels import window
from vicinal.backends.hopper.kernels import arguments
from vicinal.backends.hopper.launch import Block, Launcher

FOLDER = Path(arguments.__file__).parent
PACKAGE, OURS = arguments.__name__.removesuffix(".arguments"), "plain_gluon_kernels"
PATIENCE = 20.0  # seconds, that a partition waits for another


def run(launcher: Launcher, *tensors: Tensor) -> None:
    """In place of `Launcher.__call__`: of a kernel of `vicinal.backends.hopper.kernels`."""
    kernel = launcher.kernel.fn
    function = getattr(module(kernel.__module__.rpartition(".")[2]), kernel.__name__)
    given = [
        Described(t, of) if isinstance(of, Block) else Pointer(_memory(t), t.storage_offset() + of)
        for t, of in zip(tensors, launcher.tensors, strict=True)
    ]
    for program in range(launcher.grid[0]):
        _Program.number, _Program.count = program, launcher.grid[0]
        function(*given, *launcher.arguments)


class _Program:
    """The program that runs."""

    number = count = 0


# --- memory ------------------------------------------------------------------------------------------------


def _memory(tensor: Tensor) -> Tensor:
    """All elements of a tensor's storage."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((size,), (1,), 0)


class Pointer:
    """To an element, or to a tensor of them."""

    def __init__(self, memory: Tensor, offset: Any) -> None:
        self.memory, self.offset = memory, offset
        self.dtype = SimpleNamespace(element_ty=memory.dtype)

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.memory, self.offset + more)


class Described:
    """A tensor map."""

    def __init__(self, tensor: Tensor, of: Block) -> None:
        self.memory = _memory(tensor)
        self.first = tensor.storage_offset() + of.description.offset
        self.shape, self.strides = of.description.shape, of.description.strides
        self.block_shape, self.dtype, self.layout = list(of.block), tensor.dtype, None
        size = torch.Size(of.block).numel() * tensor.element_size()
        self.block_type = SimpleNamespace(nbytes=size)

    def at(self, coordinates: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Of a block the places in memory, and which of them exist."""
        places, there = torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.bool)
        for first, size, length, stride in zip(coordinates, self.block_shape, self.shape, self.strides, strict=True):
            along = first + torch.arange(size)
            places = places[..., None] + along * stride
            there = there[..., None] & (along >= 0) & (along < length)
        return self.first + places, there


class Shared:
    """Shared memory: a view."""

    def __init__(self, data: Tensor) -> None:
        self.data, self.shape, self.dtype = data, list(data.shape), data.dtype

    def index(self, i: int) -> Shared:
        return Shared(self.data[i])

    def reshape(self, shape: list[int]) -> Shared:
        return Shared(self.data.view(shape))

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.data.permute(order))

    def slice(self, first: int, size: int, dim: int) -> Shared:
        return Shared(self.data.narrow(dim, first, size))

    def load(self, layout: Any = None) -> Tensor:
        return self.data.clone()

    def store(self, value: Tensor) -> None:
        self.data.copy_(value)


class Chunks:
    """Tiles `[stages, 2 * keys, columns]` as pieces of at most 64 columns of their halves: `forward._load_pair`."""

    def __init__(self, tiles: Shared, shape: list[int], layout: Any) -> None:
        self.tiles, self.wide = tiles, shape[-1]

    def index(self, i: int) -> Shared:
        _, rows, columns = self.tiles.shape
        pieces = columns // self.wide
        half, first = i % 2 * rows // 2, i // 2 % pieces * self.wide
        return Shared(self.tiles.data[i // 2 // pieces, half : half + rows // 2, first : first + self.wide])


class Barriers:
    """Barriers side by side; or, where one is stored to, a number."""

    def __init__(self, count: int) -> None:
        self.each = [Barrier() for _ in range(count)]
        self.value = torch.zeros(1, dtype=torch.int64)

    def index(self, i: int) -> Barrier:
        return self.each[i]

    def load(self, layout: Any = None) -> Tensor:
        return self.value.clone()

    def store(self, value: Tensor) -> None:
        self.value = value.clone()


class Barrier:
    """Arrivals and bytes that are still to come; the parity of the phase that they complete."""

    changed = Condition()
    failures: ClassVar[list[BaseException]] = []  # of partitions: others need not wait
    waiting: ClassVar[dict[Thread, Callable[[], bool]]] = {}  # all partitions: whether what they wait for has come
    yielding: ClassVar[list[Thread]] = []  # who has arrived and lets the others go first: one at a time

    def init(self, count: int) -> None:
        self.count = self.left = count
        self.bytes = self.phase = 0

    def complete(self, arrivals: int = 0, more: int = 0) -> None:
        with self.changed:
            self.left, self.bytes = self.left - arrivals, self.bytes + more
            assert self.left >= 0, "more arrivals than a barrier counts"
            if self.left == self.bytes == 0:
                self.left, self.phase = self.count, self.phase ^ 1
            self.changed.notify_all()
            if arrivals and more == 0 and not self.yielding:
                self._let_others_go_first()

    def _let_others_go_first(self) -> None:
        me = current_thread()
        others = [each for each in self.waiting if each is not me]
        self.yielding.append(me)
        self.changed.wait_for(lambda: self.failures or not any(self.waiting[each]() for each in others), PATIENCE)
        self.yielding.remove(me)

    def wait(self, parity: int) -> None:
        me = current_thread()
        with self.changed:
            self.waiting[me] = lambda: self.phase != parity
            self.changed.notify_all()
            ended = self.changed.wait_for(lambda: self.phase != parity or self.failures, PATIENCE)
            self.waiting[me] = lambda: True
        assert ended, "a partition waits for ever"
        assert not self.failures, "another partition failed"


mbarrier = SimpleNamespace(
    MBarrierLayout=lambda: Barrier,
    init=lambda bar, count: bar.init(count),
    wait=lambda bar, parity, pred=True: bar.wait(parity) if pred else None,
    arrive=lambda bar, count: bar.complete(count),
    expect=lambda bar, size, pred=True: bar.complete(1, size) if pred else None,
)


def allocate_shared_memory(dtype: torch.dtype, shape: list[int], layout: Any) -> Shared | Barriers:
    if layout is Barrier:
        return Barriers(shape[0])
    return Shared(torch.full(shape, torch.nan, dtype=dtype))


def tma_load(desc: Described, coordinates: list[int], bar: Barrier, to: Shared) -> None:
    places, there = desc.at(coordinates)
    found = desc.memory[places.where(there, 0)].where(there, 0)
    to.data.copy_(found.view(to.data.shape))
    bar.complete(more=-desc.block_type.nbytes)


def tma_store(desc: Described, coordinates: list[int], of: Shared) -> None:
    places, there = desc.at(coordinates)
    desc.memory[places[there]] = of.data.view(there.shape)[there]


def tma_add(desc: Described, coordinates: list[int], of: Shared) -> None:
    places, there = desc.at(coordinates)
    with _adding:
        desc.memory[places[there]] += of.data.view(there.shape)[there]


# --- the language ------------------------------------------------------------------------------------------


def warp_specialize(partitions: list[tuple[Callable[..., None], tuple[Any, ...]]], *_: Any) -> None:
    failures, waiting = Barrier.failures, Barrier.waiting
    failures.clear()

    def guarded(function: Callable[..., None], given: tuple[Any, ...]) -> None:
        try:
            function(*given)
        except BaseException as failure:
            with Barrier.changed:
                failures.append(failure)
        with Barrier.changed:
            waiting[current_thread()] = lambda: False  # it has ended
            Barrier.changed.notify_all()

    threads = [Thread(target=guarded, args=each, daemon=True) for each in partitions]
    waiting.clear()
    waiting.update({thread: lambda: True for thread in threads})
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _data(x: Any) -> Any:
    return x.data if isinstance(x, Shared) else x


def warpgroup_mma(a: Any, b: Any, c: Tensor, use_acc: bool = True, is_async: bool = False) -> Tensor:
    product = _data(a).float() @ _data(b).float()
    return product + c if use_acc else product


def warpgroup_mma_wait(count: int, deps: list[Any]) -> Any:
    return deps[0] if len(deps) == 1 else tuple(deps)


def load(pointer: Pointer, mask: Any = None, other: float = 0) -> Any:
    if not isinstance(pointer.offset, Tensor):
        return pointer.memory[pointer.offset].item()
    mask = torch.as_tensor(True if mask is None else mask).expand(pointer.offset.shape)
    return pointer.memory[pointer.offset.where(mask, 0)].where(mask, other)


def store(pointer: Pointer, value: Any, mask: Any = None) -> None:
    if not isinstance(pointer.offset, Tensor):
        pointer.memory[pointer.offset] = value
        return
    mask = torch.as_tensor(True if mask is None else mask).expand(pointer.offset.shape)
    pointer.memory[pointer.offset[mask]] = value.expand(mask.shape)[mask].to(pointer.memory.dtype)


def where(condition: Any, a: Any, b: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, a, b)
    return a if condition else b


def reduced(how: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Any]:
    def of(x: Tensor, axis: int) -> Any:
        found = how(x, axis)
        return found.item() if found.dim() == 0 else found

    return of


def elementwise(by_tensors: Callable[..., Tensor], by_numbers: Callable[..., Any]) -> Callable[..., Any]:
    def of(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return by_tensors(torch.as_tensor(a), torch.as_tensor(b))
        return by_numbers(a, b)

    return of


def inline_asm_elementwise(asm: str, constraints: str, given: list[Any], **_: Any) -> Any:
    if "atom.relaxed.gpu.global.add.u32" in asm:  # `queue.counted`
        with _adding:
            (counter,) = given
            before = counter.memory[counter.offset].long()  # of any type: it counts from 0 by ones
            counter.memory[counter.offset] += 1
            return before
    if "red.relaxed.gpu.global.add.v4.f32" in asm:  # `onepass._add`: of a thread's columns those of the first eight
        addends, to = given
        row, column = (torch.arange(n) for n in addends.shape)
        more = (row // 8 % 2 * 2)[:, None] + (column // 8 * 128 + column % 2)[None, :]
        with _adding:
            to.memory.index_put_((to.offset + more,), addends, accumulate=True)
        return None
    if "mov.b32 $0, 0;" in asm:
        return 0
    assert "mov.b32 $0, $1;" in asm, f"no plain Python for {asm}"
    return given[0]


_adding = Lock()


gl = SimpleNamespace(
    constexpr=lambda value: value,
    static_range=range,
    to_tensor=lambda value: value,
    program_id=lambda axis: _Program.number,
    num_programs=lambda axis: _Program.count,
    num_warps=lambda: 4,
    cdiv=lambda a, b: -(-a // b),
    minimum=elementwise(torch.minimum, min),
    maximum=elementwise(torch.maximum, max),
    where=where,
    arange=lambda first, stop, layout=None: torch.arange(first, stop),
    zeros=lambda shape, dtype, layout=None: torch.zeros(shape, dtype=dtype),
    zeros_like=torch.zeros_like,
    broadcast=lambda a, b: torch.broadcast_tensors(a, b),
    convert_layout=lambda x, layout: x,
    exp2=torch.exp2,
    log2=torch.log2,
    sum=reduced(torch.sum),
    max=reduced(torch.amax),
    load=load,
    store=store,
    allocate_shared_memory=allocate_shared_memory,
    inline_asm_elementwise=inline_asm_elementwise,
    warp_specialize=warp_specialize,
    NVMMADistributedLayout=lambda *_: None,
    NVMMASharedLayout=SimpleNamespace(get_default_for=lambda *_: None),
    DotOperandLayout=lambda **_: None,
    SliceLayout=lambda *_: None,
    BlockedLayout=lambda *_: None,
    float32=torch.float32,
    int32=torch.int32,
    int64=torch.int64,
)


def jit(function: Any = None, **_: Any) -> Any:
    return function if callable(function) else lambda own: own


# --- the kernels' modules ----------------------------------------------------------------------------------


def module(name: str) -> ModuleType:
    """`vicinal.backends.hopper.kernels.NAME` in plain Python."""
    found = sys.modules.get(f"{OURS}.{name}")
    return found or _read(name, (FOLDER / f"{name}.py").read_text())


def _read(name: str, source: str) -> ModuleType:
    source = source.replace(PACKAGE, OURS)
    for other in re.findall(rf"from {OURS}\.(\w+) import", source):
        module(other)
    source = re.sub(r"\.to\((gl|tl)\.int64\)", "", source)  # numbers have no width
    source = re.sub(r"\b(\w+)\.to\(gl\.int32\)", r"int(\1)", source)
    source = re.sub(r"return (gl\.max\(.*\))\.to\(gl\.int32\)", r"return int(\1)", source)
    source = re.sub(r"[\w.]+\.type\.layout", "None", source)
    found = _add(name)
    exec(compile(source, f"{OURS}/{name}.py", "exec", dont_inherit=True), found.__dict__)
    return found


def _add(name: str, **members: Any) -> ModuleType:
    found = ModuleType(f"{OURS}.{name}".rstrip("."))
    found.__dict__.update(members)
    sys.modules[found.__name__] = found
    return found


def _within(offset: Tensor, width: Tensor, position: Tensor) -> Tensor:
    distance = offset[:, None] + position[None, :]
    return (distance >= 0) & (distance < width[:, None])


_add("", __path__=[], arguments=arguments)
sys.modules[f"{OURS}.arguments"] = arguments
_add("chain", await_previous=lambda chained: None, let_next_start=lambda chained: None)
_rule = Path(window.__file__).read_text().replace("@triton.jit", "@jit").replace("@triton.constexpr_function", "@jit")
_rule = re.sub(r"^import triton.*$", "", _rule, flags=re.MULTILINE)
_plain_rule = _add("rule", tl=gl, jit=jit)
exec(compile(_rule, f"{OURS}/rule.py", "exec", dont_inherit=True), _plain_rule.__dict__)
_add(
    "compat",
    gl=gl,
    gluon=SimpleNamespace(jit=jit, constexpr_function=lambda function: function),
    import_triton=lambda function: getattr(_plain_rule, function.__name__),
    mbarrier=mbarrier,
    tma_load=tma_load,
    tma_store=tma_store,
    tma_add=tma_add,
    tma_store_wait=lambda count: None,
    fence_async_shared=lambda: None,
    thread_barrier=lambda: None,
    warpgroup_mma=warpgroup_mma,
    warpgroup_mma_wait=warpgroup_mma_wait,
    reinterpret=lambda memory, shape, layout, dtype=None: (
        Chunks(memory, shape, layout) if dtype is None else Shared(memory.data.view(-1).view(dtype).view(shape))
    ),
)
module("softmax")._within = _within
module("rescale").rescaled = lambda sums, factor, pieces: tuple(x * factor[:, None] for x in sums)
