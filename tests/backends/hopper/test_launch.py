"""What the Hopper launcher hands to Triton's own launcher is what Triton's wrapper would have made of the same call."""

from __future__ import annotations

import ctypes
import sys
from threading import Barrier, Thread
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton.experimental.gluon")

from vicinal.backends.hopper import launch as launch_module
from vicinal.backends.hopper.kernels.arguments import Grid, GroupAxes
from vicinal.backends.hopper.launch import Block, Launcher
from vicinal.backends.hopper.layout import Descriptor

META = {"swizzle": 3, "elem_size": 2, "elem_type": 10, "block_size": [1, 1, 8, 8, 64], "fp4_padded": False}
DESCRIPTION = Descriptor((1, 1, 16, 16, 128), (32768, 32768, 2048, 128, 1), 256, 128)
TUPLE = (("i32", "constexpr", "i32"), "i32", "i32", "constexpr", "i32")
GRID = (3, 1, 1)
ARGUMENTS = (Grid((7, 1, 64), 3, 3, 1, 1344), 9)
PLAIN = (tuple(ARGUMENTS[0]), 9)


class Encoded:
    """Stands for a tensor map: equal where what it was encoded from is equal."""

    def __init__(self, *of: object) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Encoded) and self.of == other.of

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture
def chip(monkeypatch):
    """Triton's NVIDIA launcher around a function that records its arguments; counts what is encoded."""
    nvidia = pytest.importorskip("triton.backends.nvidia.driver")
    from triton.runtime import driver

    if not hasattr(nvidia, "wrap_handle_tensordesc"):
        pytest.skip("this Triton's launcher is of another kind")
    seen = SimpleNamespace(launches=[], encoded=0)

    def encode(*of):
        seen.encoded += 1
        return Encoded(*(tuple(x) if isinstance(x, list) else x for x in of))

    def record(*arguments):
        *others, last = arguments  # newer Tritons pass the kernel's own arguments as one sequence
        seen.launches.append((*others, *last) if isinstance(last, (tuple, list)) else arguments)

    utils = SimpleNamespace(fill_tma_descriptor=encode, fill_tma_descriptor_tiled=encode)
    active = SimpleNamespace(utils=utils, get_current_stream=lambda device: 77, get_current_device=lambda: 0)
    monkeypatch.setattr(driver, "_active", active, raising=False)
    if driver.active is not active:
        pytest.skip("this Triton keeps its active driver elsewhere")
    signature = {"q_desc": "tensordesc<bf16[1, 1, 8, 8, 64],layout>", "out": "*fp32", "grid": TUPLE, "C": "constexpr"}
    launcher = object.__new__(nvidia.CudaLauncher)
    scratch = {"global_scratch_size": 0, "global_scratch_align": 1, "profile_scratch_size": 0}
    launcher.__dict__.update(
        scratch,
        profile_scratch_align=1,
        num_ctas=1,
        launch_cooperative_grid=False,
        launch_pdl=False,
        gsan_enabled=False,  # this and the next two: newer Tritons
        arg_annotations=None,
        kernel_signature=None,
        launch=nvidia.wrap_handle_tensordesc(record, signature, [META]),
    )
    seen.record = record
    seen.compiled = _Compiled(launcher, signature)
    return seen


class _Compiled:
    """The part of Triton's `CompiledKernel` that launching uses."""

    def __init__(self, launcher, signature) -> None:
        self.run = launcher
        self.metadata = SimpleNamespace(tensordesc_meta=[META])
        self.packed_metadata = (4, 1, 1024)
        self.function = 4242
        self.src = SimpleNamespace(signature=signature)
        self.asked = 0

    def launch_metadata(self, grid, stream, *args):
        self.asked += 1
        return {"name": "kernel"}

    def __getitem__(self, grid):
        def runner(*args, stream=None):
            self.run(*grid, stream, self.function, self.packed_metadata, None, None, None, *args)

        return runner


def launcher_of(compiled) -> Launcher:
    block = Block(DESCRIPTION, (1, 1, 8, 8, 64))
    kernel = SimpleNamespace(__module__="vicinal.backends.hopper.kernels", __name__="kernel", params=[])
    launcher = Launcher(kernel, (block, 5), ARGUMENTS, GRID[:1], {})
    launcher.compile = lambda *tensors: compiled  # type: ignore[method-assign]
    return launcher


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 16, 16, 2, 64, dtype=torch.bfloat16), torch.zeros(16)


def test_the_same_launch_as_tritons(chip):
    from vicinal.backends.hopper.kernels import compat

    query, out = tensors()
    launcher_of(chip.compiled)(query, out)
    moved = torch.as_strided(query.flatten()[256:], (1,), (1,), 256)
    descriptor = compat.tensor_descriptor(moved, DESCRIPTION.shape, DESCRIPTION.strides, [1, 1, 8, 8, 64])
    chip.compiled[GRID](descriptor, out.data_ptr() + 5 * 4, *ARGUMENTS, stream=77)
    ours, theirs = chip.launches
    assert ours == theirs


def test_encodes_each_address_once(chip):
    query, out = tensors()
    launcher = launcher_of(chip.compiled)
    for _ in range(5):
        launcher(query, out)
    assert chip.encoded == 1
    other, out = tensors()
    launcher(other, out)
    launcher(query, out)
    assert chip.encoded == 2
    assert len(chip.launches) == 7
    assert chip.launches[0] == chip.launches[1]
    assert chip.launches[0] != chip.launches[5]


def test_profilers_are_told(chip, monkeypatch):
    from triton import knobs

    query, out = tensors()
    launcher = launcher_of(chip.compiled)
    launcher(query, out)
    assert chip.compiled.asked == 0
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", lambda metadata: None)
    launcher(query, out)
    assert chip.compiled.asked == 1


def test_without_the_known_wrapper_the_ordinary_way_is_taken(chip):
    """Descriptors go in as Triton's own objects, and Triton encodes them."""
    from vicinal.backends.hopper.kernels import compat

    query, out = tensors()
    launcher_of(chip.compiled)(query, out)
    chip.compiled.run.launch = chip.record  # no wrapper that is known
    compat._bare_launcher.cache_clear()  # what is known of a compiled kernel is kept
    launcher_of(chip.compiled)(query, out)
    known, ordinary = chip.launches
    assert type(ordinary[-4]).__name__ == "TensorDescriptor"
    assert ordinary[-4].base.data_ptr() == query.data_ptr() + 512
    assert ordinary[-3:] == known[-3:]


def test_descriptors_do_not_hold_memory(chip):
    import gc
    import weakref

    query, out = tensors()
    launcher = launcher_of(chip.compiled)
    launcher(query, out)
    gone = weakref.ref(query)
    del query
    gc.collect()
    assert gone() is None


def test_pointers_are_integers(chip):
    query, out = tensors()
    launcher_of(chip.compiled)(query, out)
    assert ctypes.c_uint64(chip.launches[0][-3]).value == out.data_ptr() + 20


def test_tuples_are_plain(chip):
    """Triton's launcher reads named tuples slowly."""
    query, out = tensors()
    launcher_of(chip.compiled)(query, out)
    assert chip.launches[0][-2:] == PLAIN
    assert type(chip.launches[0][-2]) is tuple


@pytest.fixture
def often_switching():
    """Threads take turns every 10 microseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_first_calls_from_two_threads(chip, often_switching):
    """Each launches what it would alone, and the kernel is compiled once."""
    query, out = tensors()
    launcher_of(chip.compiled)(query, out)
    (expected,) = chip.launches
    chip.launches.clear()
    compiled = []
    launchers = [launcher_of(chip.compiled) for _ in range(300)]
    for launcher in launchers:
        launcher.compile = lambda *_: compiled.append(1) or chip.compiled
    barrier = Barrier(2)

    def call_all() -> None:
        for launcher in launchers:
            barrier.wait()
            launcher(query, out)

    threads = [Thread(target=call_all) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(chip.launches) == 600
    assert all(launch == expected for launch in chip.launches)
    assert len(compiled) == 300


def test_look_ups_while_addresses_are_forgotten(chip, often_switching, monkeypatch):
    """More addresses than are kept, from two threads: every launch has its own."""
    monkeypatch.setattr(launch_module, "KNOWN_ADDRESSES", 4)
    launcher = launcher_of(chip.compiled)
    pairs = [tensors() for _ in range(8)]

    def call_all() -> None:
        for query, out in pairs * 40:
            launcher(query, out)

    threads = [Thread(target=call_all) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    base = {out.data_ptr() + 20: query.data_ptr() + 512 for query, out in pairs}
    assert len(chip.launches) == 640
    assert all(base[launch[-3]] == launch[-14].of[0] for launch in chip.launches)


class Kernel:
    """Records what a launcher asks it to compile."""

    __name__ = "stub"

    def __init__(self, **settings: bool) -> None:
        usual = {"is_constexpr": False, "do_not_specialize": False, "do_not_specialize_on_alignment": False}
        self.params = [SimpleNamespace(**usual), SimpleNamespace(**{**usual, **settings})]

    def warmup(self, *arguments, grid, **options):
        return arguments[1]


AXES = GroupAxes((1, 64, 48), (1, 16, 2**40), (0, 1, 2), 3)
SEEN = {
    "is_constexpr": AXES,
    "do_not_specialize": GroupAxes((3, 67, 51), (3, 19, 2**40 + 3), (3, 3, 3), 3),
    "do_not_specialize_on_alignment": GroupAxes((1, 67, 51), (1, 19, 2**40 + 3), (3, 1, 3), 3),
}


@pytest.mark.parametrize("setting", [None, *SEEN])
def test_triton_specialises_on_integers_in_tuples_as_kernels_say(setting):
    """On being 1, and on being a multiple of 16: it compiles for others of the same width where it should not."""
    kernel = Kernel(**({} if setting is None else {setting: True}))
    launcher = Launcher(kernel, (0,), (AXES,), GRID, {})
    seen = launcher.compile(torch.zeros(1))
    assert seen == (AXES if setting is None else SEEN[setting])
    assert isinstance(seen, GroupAxes)
