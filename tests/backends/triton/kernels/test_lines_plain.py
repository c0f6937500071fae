"""The kernel of lines (`vicinal.backends.triton.kernels.lines`) in plain Python: torch for Gluon, no layouts.

What it computes against the oracle, and that it reads and writes nothing beyond its tensors. Memory that no copy has
written holds NaN, so that a line read before it was asked for shows.
"""

from __future__ import annotations

import inspect
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from vicinal.backends.triton import lines
from vicinal.backends.triton.forward import lines_launch
from vicinal.backends.triton.launch import Prepared
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem
from vicinal.reference import reference

kernels = pytest.importorskip("vicinal.backends.triton.kernels.lines")
PROGRAM = [0]


class Pointer:
    """To elements of a tensor's memory, by their numbers."""

    def __init__(self, memory: Tensor, at: Any) -> None:
        self.memory, self.at = memory, at
        self.dtype = SimpleNamespace(element_ty=memory.dtype)

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.memory, self.at + offset)

    def where(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        at, mask = torch.broadcast_tensors(self.at, mask)
        assert not mask.any() or 0 <= int(at[mask].min()) <= int(at[mask].max()) < self.memory.numel()
        return at, mask


class Shared:
    """A view of shared memory, which may end beyond it where nothing is read."""

    def __init__(self, memory: Tensor, first: int, shape: tuple[int, ...], order: tuple[int, ...] = ()) -> None:
        self.memory, self.first, self.shape, self.order = memory, first, shape, order

    def index(self, i: Any) -> Shared:
        return Shared(self.memory, self.first + int(i) * math.prod(self.shape[1:]), self.shape[1:])

    def _reinterpret(self, dtype: Any, shape: list[int], layout: Any) -> Shared:
        return Shared(self.memory, self.first, tuple(shape))

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.memory, self.first, self.shape, order)

    @property
    def places(self) -> Tensor:
        return self.first + torch.arange(math.prod(self.shape)).view(self.shape)

    def load(self, layout: Any) -> Tensor:
        found = self.memory[self.places]
        return found.permute(self.order) if self.order else found


def copied(to: Shared, pointer: Pointer, mask: Tensor) -> None:
    at, mask = pointer.where(mask)
    to.memory[to.places[mask]] = pointer.memory[at[mask]]


def loaded(pointer: Pointer, mask: Tensor, other: float) -> Tensor:
    at, mask = pointer.where(mask)
    return torch.where(mask, pointer.memory[torch.where(mask, at, 0)], torch.tensor(other, dtype=pointer.memory.dtype))


def stored(pointer: Pointer, value: Tensor, mask: Tensor) -> None:
    at, mask = pointer.where(mask)
    pointer.memory[at[mask]] = value.expand(at.shape)[mask].to(pointer.memory.dtype)


def tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.tensor(x)


def no_layout(*_: Any, **__: Any) -> None:
    return None


GLUON = SimpleNamespace(
    program_id=lambda axis: torch.tensor(PROGRAM[0]),
    arange=lambda start, end, layout: torch.arange(start, end),
    expand_dims=lambda x, axis: x.unsqueeze(axis),
    where=lambda condition, a, b: torch.where(condition, tensor(a), tensor(b)),
    minimum=lambda a, b: torch.minimum(tensor(a), tensor(b).to(tensor(a).dtype)),
    maximum=lambda a, b: torch.maximum(tensor(a), tensor(b).to(tensor(a).dtype)),
    max=lambda x, axis: x.amax(axis),
    sum=lambda x, axis: x.sum(axis),
    exp2=torch.exp2,
    log2=torch.log2,
    full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
    zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
    load=loaded,
    store=stored,
    convert_layout=lambda x, layout: x,
    static_range=range,
    float32=torch.float32,
    int64=torch.int64,
    allocate_shared_memory=lambda dtype, shape, layout: Shared(
        torch.full((2 * math.prod(shape),), math.nan, dtype=dtype), 0, tuple(shape)
    ),
    **dict.fromkeys(("SliceLayout", "DotOperandLayout", "BlockedLayout", "NVMMADistributedLayout"), no_layout),
)
COPIES = SimpleNamespace(async_copy_global_to_shared=copied, commit_group=no_layout, wait_group=no_layout)


def plain() -> Any:
    """The kernel as a function of Python."""
    known = {
        **{"gl": GLUON, "async_copy": COPIES, "barrier": no_layout, "_copied": no_layout, "_swizzled": no_layout},
        **{name: getattr(kernels, name).value for name in ("TILE", "COLUMNS", "VECTOR", "LN2", "LOWEST")},
        "mma_v2": lambda a, b, c: torch.matmul(a.float(), b.float()) + c,
    }
    for function in (kernels._copy, kernels._flat, kernels.forward_of_lines_kernel):
        source = inspect.getsource(function.fn)
        exec(re.sub(r": gl\.constexpr", "", source[source.index("def ") :]), known)
    return known["forward_of_lines_kernel"]


def memory(t: Tensor) -> Pointer:
    size = t.untyped_storage().nbytes() // t.element_size()
    return Pointer(t.as_strided((size,), (1,), 0), torch.tensor(t.storage_offset()))


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    monkeypatch.setattr(lines, "ENOUGH_PROGRAMS", 0)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    lines.kernel_of_lines.cache_clear()
    lines.has_lines.cache_clear()
    yield
    lines.kernel_of_lines.cache_clear()
    lines.has_lines.cache_clear()


@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "dim", "layout"),
    [
        pytest.param((32, 16), 1, 1, 32, "contiguous", id="whole-tiles"),
        pytest.param((7, 40), 2, 1, 64, "packed", id="one-window-high"),
        pytest.param((24, 17), 4, 2, 32, "heads first", id="grouped"),
        pytest.param((41, 23), 1, 1, 64, "packed", id="ragged"),
        pytest.param((9, 16), 2, 1, 32, "contiguous", id="borders-only"),
    ],
)
def test_against_the_oracle(lengths, heads, kv_heads, dim, layout):
    generator = torch.Generator().manual_seed(0)

    def draw(n):
        if layout == "packed":
            return torch.randn(2, *lengths, 3, n, dim, generator=generator).half()[:, :, :, 1]
        if layout == "heads first":
            return torch.randn(2, n, *lengths, dim, generator=generator).half().movedim(1, 3)
        return torch.randn(2, *lengths, n, dim, generator=generator).half()

    inputs = Inputs(draw(heads), draw(kv_heads), draw(kv_heads))
    neighborhoods = (Neighborhood.of(2, 7).resolve(lengths),)
    problem = Problem.of(inputs, neighborhoods, dim**-0.5)
    launch = lines_launch(Prepared.of(problem, inputs), False)
    if launch is None:
        pytest.skip(f"not run with Triton {triton.__version__}")
    output = torch.full((2, *lengths, heads, dim), math.nan, dtype=torch.float16)
    lse = torch.full((2, *lengths, heads), math.nan)
    kernel = plain()
    for PROGRAM[0] in range(launch.grid[0]):
        kernel(*map(memory, inputs[:3]), memory(output), memory(lse), *launch.arguments)
    expected, expected_lse = reference(inputs, neighborhoods, problem.scale)
    assert float((output.double() - expected).norm() / expected.norm()) < 4e-4  # of float16's rounding
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=2e-6)
