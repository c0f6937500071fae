"""Key masks, maps of different sizes, other grids and windows per token on a GPU, against the oracle."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch

import strategies
import vicinal
from closeness import assert_as_close_as_torch, gradients_of, random_gradients
from vicinal.backends import hopper
from vicinal.backends.triton import BACKEND, classes, packed
from vicinal.backends.triton.config import GradientTilings
from vicinal.backends.triton.shortlist import of_classes_sizes
from vicinal.backends.triton.tilings import candidates_of_classes
from vicinal.geometry.maps import Maps
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.unroll import around
from vicinal.problem import Inputs, PackedProblem, Problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
of = Neighborhood.of


def is_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


CASES = {
    "2d": ((40, 36), of(2, 13), {}),
    "2d, everything": ((20, 22), of(2, (5, 3), dilation=(2, 3), is_causal=(True, False)), {"additional": 7}),
    "bias": ((24, 20), of(2, 7), {"has_rpb": True}),
    "3d": ((8, 9, 10), of(3, (3, 4, 5), boundary="clip"), {}),
    "line, strided": ((300,), of(1, 64, stride=8), {}),
    "short dilation groups": ((300,), of(1, 3, dilation=90), {}),
}


def call_of(lengths, neighborhood, **more):
    call = strategies.Call((neighborhood.resolve(lengths),), lengths, 2, 4, 2, 64, 64, 0, False, 3)
    return replace(call, **more)


@pytest.mark.parametrize("masked", [0.4, 0.97])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_key_masks(case, dtype, masked):
    lengths, neighborhood, more = CASES[case]
    assert_right(call_of(lengths, neighborhood, masked=masked, **more), dtype)


def assert_right(call, dtype, backend=BACKEND, backward=0):
    """Output, log-sum-exp and all gradients of a backend's kernels; `backward`: which configuration."""
    inputs = call.inputs(dtype, "cuda")
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    assert backend.unsupported(problem) is None
    output, lse = backend.forward(problem, backend.configs(problem, "forward")[0], inputs)
    above = random_gradients(output, lse, 0)
    config = backend.configs(problem, "backward")[backward]
    grads = gradients_of(backend, problem, config, inputs, output, lse, *above)
    results = [output, lse, *(g for g in grads.numbers if g is not None)]
    assert_as_close_as_torch(results, inputs, call.neighborhoods, call.scale, *above)


HOPPER_CASES = {
    "2d": ((40, 36), of(2, 13), {}),
    "2d, several items a program": ((48, 64), of(2, 13), {}),
    "head dim 128": ((40, 36), of(2, 13), {"head_dim": 128, "value_dim": 128}),
    "head dim 48": ((40, 36), of(2, 9), {"head_dim": 48, "value_dim": 48}),
    "head dim 32": ((24, 36), of(2, 9), {"head_dim": 32, "value_dim": 32}),
    "head dim 96": ((24, 36), of(2, 9), {"head_dim": 96, "value_dim": 96}),
    "head dim 192": ((24, 36), of(2, 9), {"head_dim": 192, "value_dim": 192}),
    "head dim 256": ((24, 36), of(2, 9), {"head_dim": 256, "value_dim": 256}),
    "causal, dilated": ((40, 47), of(2, (5, 3), dilation=(2, 3), is_causal=(True, False)), {}),
    "3d": ((8, 18, 20), of(3, (3, 5, 7), boundary="clip"), {}),
    "line, strided": ((700,), of(1, 64, stride=8), {}),
}


@pytest.mark.skipif(not is_hopper(), reason="needs compute capability 9.0")
@pytest.mark.parametrize("backward", [0, -1], ids=["first", "last"])  # in one pass, if there is any, and in two
@pytest.mark.parametrize("masked", [1e-9, 0.4, 0.97])
@pytest.mark.parametrize("case", HOPPER_CASES)
def test_key_masks_on_hopper(case, masked, backward):
    lengths, neighborhood, more = HOPPER_CASES[case]
    assert_right(call_of(lengths, neighborhood, masked=masked, **more), torch.bfloat16, hopper.BACKEND, backward)


NUMBERS = [("triton", torch.float32, *each) for each in CASES.items()]
if is_hopper():
    NUMBERS += [("hopper", torch.bfloat16, *each) for each in HOPPER_CASES.items()]


@pytest.mark.parametrize(("backend", "dtype", "case", "made_of"), NUMBERS)
def test_masked_tokens_are_never_numbers(backend, dtype, case, made_of):
    lengths, neighborhood, more = made_of
    call = call_of(lengths, neighborhood, masked=0.4, **more)
    inputs = call.inputs(dtype, "cuda")
    gone = ~inputs.key_mask[..., None, None]
    q, k, v = (t.masked_fill(gone, torch.nan).requires_grad_() for t in inputs[:3])
    extra = {n: getattr(inputs, n) for n in ("additional_keys", "additional_values", "rpb", "key_mask")}
    output, lse = vicinal.neighborhood_attention(
        q, k, v, neighborhood, scale=call.scale, return_lse=True, backend=backend, **extra
    )
    assert not output.isnan().any()
    assert not lse.isnan().any()
    grads = torch.autograd.grad(output, (q, k, v), torch.randn_like(output).masked_fill(gone, torch.nan))
    assert not any(g.isnan().any() for g in grads)


KEYS_CASES = {
    "2d": ((48, 64), of(2, 13), {}),
    "planar, one window cut": ((48, 64), of(2, (9, 7), is_causal=(True, False), boundary=("shift", "clip")), {}),
    "dilated, additional": ((48, 64), of(2, 5, dilation=(1, 2)), {"additional": 7}),
    "3d": ((8, 24, 24), of(3, (3, 5, 7)), {"batch": 4}),
    "small": ((48, 64), of(2, 7), {"batch": 5}),
    "head dim 32": ((48, 64), of(2, 7), {"head_dim": 32, "value_dim": 32, "batch": 5}),
    "head dim 128": ((48, 64), of(2, 13), {"head_dim": 128, "value_dim": 128}),
}


def of_classes(problem, kernel):
    return next(candidates_of_classes(problem, kernel, of_classes_sizes(problem, kernel), 1))


@pytest.mark.parametrize("masked", [1e-9, 0.4, 0.97])
@pytest.mark.parametrize("case", KEYS_CASES)
def test_tokens_that_are_there_one_by_one(case, masked, monkeypatch):
    """Triton's kernels by tiles of classes: masked tokens and their queries may be no numbers."""
    monkeypatch.setattr(classes, "ENOUGH_PROGRAMS", 1)  # so programs have several batch entries, where steps are few
    backend = type(BACKEND)()
    lengths, neighborhood, more = KEYS_CASES[case]
    call = call_of(lengths, neighborhood, masked=masked, **more)
    inputs = call.inputs(torch.bfloat16, "cuda")
    problem = Problem.of(inputs, call.neighborhoods, call.scale)
    config = of_classes(problem, "forward")
    output, lse = backend.forward(problem, config, inputs)
    gone = ~inputs.key_mask[..., None, None]
    holes = inputs._replace(**{n: getattr(inputs, n).masked_fill(gone, torch.nan) for n in ("query", "key", "value")})
    found, found_lse = backend.forward(problem, config, holes)
    assert torch.equal(found, output.masked_fill(gone, 0.0))
    assert torch.equal(found_lse, lse.masked_fill(gone[..., 0], -torch.inf))
    if call.head_dim > 64:
        assert_as_close_as_torch([output, lse], inputs, call.neighborhoods, call.scale)
        return
    gradients = GradientTilings(*(of_classes(problem, kernel) for kernel in ("query", "key_value")))
    above = random_gradients(output, lse, 0)
    grads = gradients_of(backend, problem, gradients, inputs, output, lse, *above)
    results = [output, lse, *(g for g in grads.numbers if g is not None)]
    assert_as_close_as_torch(results, inputs, call.neighborhoods, call.scale, *above)
    assert not any(g[gone.expand(g.shape)].any() for g in (grads.key, grads.value))
    silent = gone.expand(*lse.shape, 1)
    nothing = above[0].masked_fill(silent, 0.0), above[1].masked_fill(silent[..., 0], 0.0)
    expected = gradients_of(backend, problem, gradients, inputs, output, lse, *nothing)
    no_number = above[0].masked_fill(silent, torch.nan), above[1].masked_fill(silent[..., 0], torch.nan)
    given = gradients_of(backend, problem, gradients, holes, found, found_lse, *no_number)
    for one, other in zip(given[:3], (expected.query.masked_fill(silent, 0.0), *expected[1:3])):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (4, 2, 64), (4, 2, 32)])
def test_maps_of_different_sizes_by_tiles_of_classes(heads, kv_heads, dim):
    lengths = [(20, 31), (64, 24), (0, 3), (9, 50), (9, 9), (40, 47)] * 4
    total = sum(map(prod, lengths))
    shapes = [(total, h, dim) for h in (heads, kv_heads, kv_heads)]
    leaves = [torch.randn(s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes]
    problem = PackedProblem.of(Inputs(*leaves), Maps.of(lengths, [of(2, 7)]), dim**-0.5)
    assert all(packed._tiling(problem, kernel).of_classes for kernel in ("forward", "key_value"))
    found = vicinal.na2d_varlen(*leaves, lengths, 7, return_lse=True, backend="triton")
    expected = vicinal.na2d_varlen(*(t.double() for t in leaves), lengths, 7, return_lse=True, backend="torch")
    above = [torch.randn_like(t) for t in found]
    grads = torch.autograd.grad(found, leaves, above)
    true = torch.autograd.grad(expected, leaves, [t.double() for t in above])
    for one, other in zip((*found, *grads), (*expected, *true), strict=True):
        assert (one.double() - other).norm() <= 0.01 * other.norm()


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_maps_of_different_sizes(kv_heads):
    lengths = [(20, 31), (64, 24), (0, 3), (9, 50)]
    total = sum(map(prod, lengths))
    leaves = [torch.randn(total, h, 64, device="cuda", requires_grad=True) for h in (4, kv_heads, kv_heads)]
    windows = [(7, 7), (5, 9), (1, 1), (3, 7)]
    rest = {"dilation": (1, 2), "clamp": True, "return_lse": True}
    found = vicinal.na2d_varlen(*leaves, lengths, windows, backend="triton", **rest)
    expected = vicinal.na2d_varlen(*(t.double() for t in leaves), lengths, windows, backend="torch", **rest)
    above = [torch.randn_like(t) for t in found]
    grads = torch.autograd.grad(found, leaves, above)
    true = torch.autograd.grad(expected, leaves, [t.double() for t in above])
    for one, other in zip((*found, *grads), (*expected, *true), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dim", [8, 64], ids=["boxes", "classes"])
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["more each time", "fewer"])
def test_other_gradients_of_the_same_maps(dim, order):
    """What an earlier call wanted, or had from above, decides nothing about a later one."""
    lengths = [(20, 31), (64, 24), (0, 3), (9, 50)] * 4
    dtype = torch.bfloat16 if dim == 64 else torch.float32
    for wanted, results in [("value", 1), ("key value", 1), ("query key value", 2)][order]:
        leaves = [
            torch.randn(sum(map(prod, lengths)), 4, dim, device="cuda", dtype=dtype, requires_grad=name in wanted)
            for name in ("query", "key", "value")
        ]
        found = vicinal.na2d_varlen(*leaves, lengths, 7, return_lse=True, backend="triton")[:results]
        doubles = [t.double() for t in leaves]
        expected = vicinal.na2d_varlen(*doubles, lengths, 7, return_lse=True, backend="torch")[:results]
        above = [torch.randn_like(t) for t in found]
        read = [t for t in leaves if t.requires_grad]
        grads = torch.autograd.grad(found, read, above)
        true = torch.autograd.grad(expected, read, [t.double() for t in above])
        for one, other in zip((*found, *grads), (*expected, *true), strict=True):
            assert (one.double() - other).norm() <= 0.01 * other.norm()


@pytest.mark.parametrize(("queries", "keys"), [((40, 24), (10, 12)), ((10, 12), (20, 18))], ids=["finer", "coarser"])
def test_another_grid(queries, keys):
    shapes = (1, *queries, 4, 64), (1, *keys, 2, 64), (1, *keys, 2, 64)
    leaves = [torch.randn(s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes]
    found = vicinal.na2d(*leaves, 5, return_lse=True)
    expected = vicinal.na2d(*(t.double() for t in leaves), 5, return_lse=True, backend="torch")
    above = [torch.randn_like(t) for t in found]
    grads = torch.autograd.grad(found, leaves, above)
    true = torch.autograd.grad(expected, leaves, [t.double() for t in above])
    for one, other in zip((*found, *grads), (*expected, *true), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("masked", [0.0, 0.3])
@pytest.mark.parametrize("case", [name for name in CASES if name != "line, strided"])
def test_windows_per_token(case, masked, dtype):
    lengths, neighborhood, more = CASES[case]
    assert_right(call_of(lengths, neighborhood, sized=True, masked=masked, **more), dtype)


CIRCLES = {
    "2d": ((40, 36), of(2, 13, boundary=("shift", "wrap")), {}),
    "dense": ((20, 22), of(2, (20, 5), boundary="wrap"), {"additional": 7}),
    "dilation": ((24, 40), of(2, 5, dilation=(3, 2), boundary="wrap"), {"masked": 0.4}),
    "bias": ((24, 20), of(2, 7, boundary=("clip", "wrap")), {"has_rpb": True}),
    "3d": ((8, 9, 10), of(3, (3, 4, 5), boundary=("shift", "wrap", "wrap")), {}),
    "line, strided": ((320,), of(1, 64, stride=8, boundary="wrap"), {}),
    "short": ((12,), of(1, 7, boundary="wrap"), {}),
    "sizes": ((40, 36), of(2, 13, boundary="wrap"), {"sized": True}),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", CIRCLES)
def test_circles_are_read_in_place(case, dtype):
    lengths, neighborhood, more = CIRCLES[case]
    call = call_of(lengths, neighborhood, **more)
    there = around(call.neighborhoods, lengths)
    assert there is not None
    assert_right(replace(call, neighborhoods=there), dtype)


@pytest.mark.parametrize("backend", [None, "triton"])
def test_circles(backend):
    """Turned by any number of tokens, the result is turned; gradients likewise."""
    leaves = [torch.randn(1, 48, 64, h, 64, device="cuda", dtype=torch.bfloat16) for h in (4, 2, 2, 4)]

    def attend(by):
        q, k, v, above = (t.roll(by, 2) for t in leaves)
        own = [t.requires_grad_() for t in (q, k, v)]
        output = vicinal.na2d(*own, 13, boundary=("shift", "wrap"), backend=backend)
        return [t.roll(-by, 2) for t in (output, *torch.autograd.grad(output, own, above))]

    for one, other in zip(attend(23), attend(0)):
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.03 * float(other.abs().max()))
