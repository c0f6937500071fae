"""The Triton backend on small problems against the oracle; on a machine without a GPU, by Triton's interpreter."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import prod
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings

import strategies
import vicinal
from closeness import assert_as_close_as_torch, gradients, gradients_of, in_double, random_gradients
from triton_calls import call, device, in_launches, of
from vicinal import circular
from vicinal.backends import triton as backend
from vicinal.backends.gpu import launch as launch_module
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.circular import unroll
from vicinal.geometry.neighborhood import MOST
from vicinal.geometry.unroll import around
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference

pytestmark = pytest.mark.usefixtures("interpreting")


MASKED = [
    pytest.param(call((6, 9), of(2, 3), heads=2, batch=2, masked=0.5), id="2d"),
    pytest.param(call((7, 7), of(2, 5), heads=2, kv_heads=2, masked=0.97), id="few"),
    pytest.param(call((36,), of(1, 5, dilation=7), masked=0.3), id="dilation"),
    pytest.param(call((4, 5, 6), of(3, (2, 3, 4), is_causal=(True, False, False)), masked=0.4), id="3d-causal"),
    pytest.param(call((6, 9), of(2, (3, 5)), has_rpb=True, additional=5, batch=2, masked=0.6), id="rpb-additional"),
    pytest.param(call((20,), (of(1, 7), of(1, 3)), heads=2, masked=0.4), id="per-head"),
    pytest.param(call((9, 11), of(2, 3), queries=((2, 7), (0, 6)), masked=0.4), id="span"),
]


CIRCLES = [  # windows long and short, tiles that go around more than once, blocks of a stride, groups of a dilation
    pytest.param(call((21,), of(1, 6, boundary="wrap")), id="1d"),
    pytest.param(call((7,), of(1, 7, boundary="wrap"), additional=3), id="whole"),
    pytest.param(call((24,), of(1, 5, stride=2, dilation=3, boundary="wrap")), id="stride-dilation"),
    pytest.param(call((4, 7), of(2, 3, boundary="wrap"), heads=2), id="2d-gqa"),
    pytest.param(call((4, 7), of(2, 3, boundary=("shift", "wrap")), has_rpb=True, masked=0.4), id="rpb-masked"),
    pytest.param(call((8,), (of(1, 5, boundary="wrap"), of(1, 2, boundary="wrap")), heads=2), id="per-head"),
    pytest.param(call((2, 3, 4), of(3, (2, 3, 3), boundary=("wrap", "shift", "wrap"))), id="3d"),
    pytest.param(call((4, 7), of(2, 3, boundary=("shift", "wrap")), sized=True), id="sized"),
]
SIZED = [
    pytest.param(call((5, 7), of(2, 5), heads=2, sized=True), id="2d-gqa"),
    pytest.param(call((21,), of(1, 6, is_causal=True), masked=0.4, sized=True), id="causal-masked"),
    pytest.param(call((20,), of(1, 5, dilation=3, boundary="clip"), additional=3, sized=True), id="dilation-clip"),
    pytest.param(call((5, 6), of(2, (3, 5)), has_rpb=True, masked=0.2, sized=True), id="rpb-masked"),
    pytest.param(call((20,), (of(1, 7), of(1, 3)), heads=2, sized=True), id="per-head"),
]


def by_turns(cases):
    """Every other one with both gradients in one launch."""
    return [pytest.param(*case.values, i % 2 == 0, id=case.id) for i, case in enumerate(cases)]


def check(
    drawn,
    dtype=torch.float32,
    tiles=None,
    tiling=None,
    backward=True,
    with_grad_lse=True,
    scale=None,
    inputs=None,
    together=None,
):
    scale = drawn.scale if scale is None else scale
    inputs = drawn.inputs(dtype, device) if inputs is None else inputs
    if drawn.neighborhoods[0].is_circular:
        inputs, neighborhoods = unroll(inputs, drawn.neighborhoods)
        drawn = replace(drawn, neighborhoods=neighborhoods)
    problem = Problem.of(inputs, drawn.neighborhoods, scale)
    reason = backend.BACKEND.unsupported(problem)
    if reason is not None:
        pytest.skip(reason)
    tiling = Tiling(*tiles) if tiles else tiling
    config = tiling or backend.BACKEND.configs(problem, "forward")[0]
    output, lse = backend.BACKEND.forward(problem, config, inputs)
    if not backward:
        assert_as_close_as_torch([output, lse], inputs, drawn.neighborhoods, scale)
        return
    generator = torch.Generator().manual_seed(drawn.seed + 1)
    grad_output = torch.randn(output.shape, generator=generator).to(output)
    grad_lse = torch.randn(lse.shape, generator=generator).to(lse) if with_grad_lse else None
    config = GradientTilings(tiling, tiling) if tiling else backend.BACKEND.configs(problem, "backward")[0]
    if together is not None:
        config = in_launches(config, together)
    grads = gradients_of(backend.BACKEND, problem, config, inputs, output, lse, grad_output, grad_lse)
    for grad, given_ in zip(grads.numbers, inputs.numbers, strict=True):
        assert (grad is None) == (given_ is None)
        assert grad is None or (grad.dtype == given_.dtype and grad.is_contiguous())
    results = [output, lse, *(g for g in grads if g is not None)]
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, scale, grad_output, grad_lse)


@pytest.mark.parametrize(
    "drawn",
    [
        pytest.param(call((21,), of(1, 5)), id="1d"),
        pytest.param(call((37,), of(1, 20)), id="1d-full-tiles"),
        pytest.param(call((6, 7), of(2, (3, 5))), id="2d"),
        pytest.param(call((3, 4, 5), of(3, (3, 2, 4))), id="3d"),
        pytest.param(call((7, 6), of(2, (7, 6))), id="whole"),
        pytest.param(call((5, 6), of(2, 1)), id="window-1"),
        pytest.param(call((8, 6), of(2, (4, 3), stride=(4, 3))), id="blocked"),
        pytest.param(call((9, 6), of(2, (5, 3), stride=(3, 2))), id="stride"),
        pytest.param(call((20,), of(1, 5, dilation=3)), id="dilation"),
        pytest.param(call((6, 7), of(2, (2, 3), dilation=(3, 2))), id="dilation-2d"),
        pytest.param(call((4, 6, 4), of(3, 2, dilation=(1, 3, 2), stride=(2, 1, 2))), id="dilation-stride-3d"),
        pytest.param(call((19,), of(1, 6, is_causal=True)), id="causal"),
        pytest.param(call((5, 7), of(2, 4, stride=(1, 3), is_causal=(True, False))), id="causal-one-axis"),
        pytest.param(call((18,), of(1, 5, stride=2, dilation=2, is_causal=True)), id="causal-stride-dilation"),
        pytest.param(call((5, 7), of(2, (9, 3), stride=(2, 1), is_causal=(True, False))), id="causal-beyond-the-axis"),
        pytest.param(call((5, 7), of(2, (3, 9), boundary="clip")), id="clip"),
        pytest.param(call((17,), of(1, 4, stride=3, dilation=2, boundary="clip")), id="clip-stride-dilation"),
        pytest.param(call((41,), of(1, 5), queries=[(9, 30)]), id="span"),
        pytest.param(call((11, 9), of(2, (3, 5)), queries=[(4, 9), (0, 6)]), id="span-2d"),
        pytest.param(call((5, 4, 6), of(3, (3, 2, 4)), queries=[(1, 4), (0, 4), (3, 6)]), id="span-3d"),
        pytest.param(
            call((14, 12), of(2, 3, dilation=(1, 3), stride=(2, 1)), queries=[(5, 9), (4, 6)]), id="span-few-of-a-group"
        ),
        pytest.param(
            call((50,), of(1, 7, stride=3, dilation=2, is_causal=True), queries=[(21, 40)]), id="span-causal-all"
        ),
        pytest.param(call((18,), of(1, 5, stride=4, dilation=3, boundary="wrap")), id="circular"),
        pytest.param(call((5, 6), of(2, (4, 5), boundary=("wrap", "shift"))), id="circular-one-axis"),
    ],
)
def test_neighborhoods(drawn):
    tiles = {1: ((16,), (16,)), 2: ((4, 4), (4, 4)), 3: ((2, 2, 4), (2, 2, 4))}[len(drawn.lengths)]
    check(drawn, tiles=tiles)


@pytest.mark.parametrize(("drawn", "together"), by_turns(MASKED))
def test_key_masks(drawn, together):
    check(drawn, together=together)


@pytest.mark.parametrize(("drawn", "together"), by_turns(SIZED))
def test_windows_per_token(drawn, together):
    check(drawn, together=together)


@pytest.mark.parametrize(("drawn", "together"), by_turns(CIRCLES))
def test_keys_are_read_around_circles(drawn, together):
    there = around(drawn.neighborhoods, drawn.lengths)
    assert there is not None
    check(replace(drawn, neighborhoods=there), together=together)


@pytest.mark.parametrize(("stride", "is_copied"), [(1, False), (3, False), (5, True)])
def test_circles_are_read_where_that_is_possible(monkeypatch, stride, is_copied):
    """The gradients come home either way; where blocks of a stride end within the axis keys are copied."""
    window = of(1, 5, stride=stride, boundary="wrap")
    drawn, copied, copies = call((12,), window), [], circular._copied
    monkeypatch.setattr(circular, "_copied", lambda *args: copied.append(args) or copies(*args))
    leaves = [t.requires_grad_() for t in drawn.inputs(torch.float32, device)[:3]]
    output = vicinal.neighborhood_attention(*leaves, window, backend="triton")
    above = torch.randn_like(output)
    assert bool(copied) == is_copied
    truth = gradients(lambda i: reference(i, [window], drawn.scale), in_double(Inputs(*leaves)), above, None)
    grads = torch.autograd.grad(output, leaves, above)
    torch.testing.assert_close([t.double() for t in grads], truth[2:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("drawn", MASKED[:-1])
def test_masked_tokens_are_never_numbers(drawn):
    """All of a masked token is NaN, what comes from above to it too: nothing of it shows."""
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, drawn.scale)
    gone = ~inputs.key_mask[..., None]
    holes = inputs._replace(
        **{n: getattr(inputs, n).masked_fill(gone[..., None], torch.nan) for n in Inputs._fields[:3]}
    )
    output, lse = backend.BACKEND.forward(problem, backend.BACKEND.configs(problem, "forward")[0], holes)
    gone = gone.expand(lse.shape)
    assert torch.equal(output[gone], torch.zeros_like(output[gone]))
    assert torch.equal(lse[gone], torch.full_like(lse[gone], -torch.inf))
    above = random_gradients(output, lse, drawn.seed)
    config = backend.BACKEND.configs(problem, "backward")[0]
    holes_above = above[0].masked_fill(gone[..., None], torch.nan), above[1].masked_fill(gone, torch.nan)
    grads = gradients_of(backend.BACKEND, problem, config, holes, output, lse, *holes_above)
    none = above[0].masked_fill(gone[..., None], 0), above[1].masked_fill(gone, 0)
    truth = gradients(lambda i: reference(i, drawn.neighborhoods, drawn.scale), in_double(holes), *none)
    found = [output, lse, *(g for g in grads.numbers if g is not None)]
    torch.testing.assert_close([t.double() for t in found], truth, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "drawn",
    [
        pytest.param(call((5, 4), of(2, 3), heads=2, kv_heads=2, batch=2), id="heads-and-batch"),
        pytest.param(call((18,), of(1, 7), heads=4, kv_heads=2), id="gqa"),
        pytest.param(call((5, 4), of(2, 3), heads=3), id="mqa"),
        pytest.param(call((17,), of(1, 3), additional=5), id="additional"),
        pytest.param(call((4, 5), of(2, 3), additional=37, heads=2, batch=2), id="additional-gqa"),
        pytest.param(call((17,), of(1, 5), has_rpb=True, heads=2, kv_heads=2), id="rpb-1d"),
        pytest.param(call((6, 9), of(2, (3, 5)), has_rpb=True, batch=2), id="rpb-2d"),
        pytest.param(call((3, 4, 5), of(3, (2, 3, 4)), has_rpb=True), id="rpb-3d"),
        pytest.param(call((6, 9), of(2, 3, dilation=(2, 3), stride=2), has_rpb=True, additional=3), id="rpb-all"),
        pytest.param(call((18,), of(1, 5, is_causal=True), has_rpb=True, heads=2), id="rpb-causal-gqa"),
        pytest.param(
            call((12, 9), of(2, 3, dilation=(2, 1)), heads=2, has_rpb=True, additional=3, queries=[(5, 9), (0, 6)]),
            id="span-all",
        ),
        pytest.param(call((16,), of(1, 3), head_dim=4, value_dim=24), id="dims-4-24"),
        pytest.param(call((16,), of(1, 3), head_dim=96, value_dim=12), id="dims-96-12"),
        pytest.param(call((16,), of(1, 3), head_dim=256, value_dim=256), id="dims-256"),
        pytest.param(call((17,), of(1, 3), head_dim=256, value_dim=256, additional=21), id="dims-256-additional"),
        pytest.param(call((9,), of(1, 3), head_dim=128, value_dim=128, additional=17), id="dims-128-additional"),
    ],
)
def test_features(drawn):
    check(drawn)


@pytest.mark.parametrize(
    "drawn",
    [
        pytest.param(call((19,), (of(1, 3), of(1, 7, stride=2, is_causal=True)), heads=2, kv_heads=2), id="1d"),
        pytest.param(call((6, 5), (of(2, 3), of(2, (2, 5), dilation=(3, 1))), heads=2), id="2d-shared-keys"),
        pytest.param(
            call((6, 5), (of(2, 2), of(2, 2, dilation=2, boundary="clip")), heads=2, kv_heads=2, has_rpb=True),
            id="2d-rpb",
        ),
        pytest.param(call((4, 3, 4), (of(3, 2), of(3, (4, 1, 3))), heads=2, additional=2), id="3d-additional"),
    ],
)
def test_heads_with_neighborhoods_of_their_own(drawn):
    check(drawn)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "drawn",
    [
        pytest.param(call((37,), of(1, 20), heads=2, kv_heads=2, batch=2), id="1d"),
        pytest.param(
            call((6, 7), of(2, (2, 3), dilation=(3, 2)), heads=4, kv_heads=2, value_dim=16), id="dilation-gqa"
        ),
        pytest.param(call((5, 7), of(2, 4, stride=(1, 3), is_causal=(True, False)), additional=5), id="causal-more"),
        pytest.param(call((6, 9), of(2, 3), has_rpb=True, batch=2), id="rpb"),
        pytest.param(call((6, 5), (of(2, 3), of(2, (2, 5), dilation=(3, 1))), heads=2), id="per-head-shared-keys"),
    ],
)
def test_gradients_in_two_launches_and_in_one(drawn, together):
    check(drawn, together=together)


@pytest.mark.parametrize(
    ("query_tile", "key_tile"), [((16, 1), (1, 16)), ((2, 8), (8, 8)), ((8, 4), (4, 16)), ((8, 8), (2, 8))]
)
def test_tiles_of_any_shape(query_tile, key_tile):
    check(call((11, 9), of(2, (5, 4), stride=(1, 2))), tiles=(query_tile, key_tile))


UNFOLDED = [  # (problem, axis, tile of queries, tile of keys)
    pytest.param(call((20,), of(1, 3, dilation=6)), 0, (2, 8), (4, 4), id="1d-uneven"),
    pytest.param(call((21,), of(1, 3, dilation=7), heads=4, kv_heads=2, batch=2), 0, (4, 4), (4, 4), id="1d-even"),
    pytest.param(call((23,), of(1, 5, stride=2, dilation=3, is_causal=True)), 0, (8, 2), (4, 4), id="1d-causal"),
    pytest.param(call((19,), of(1, 4, dilation=9, boundary="clip"), additional=3), 0, (4, 4), (2, 8), id="1d-clip"),
    pytest.param(call((9,), of(1, 2, dilation=12, boundary="clip")), 0, (2, 8), (2, 8), id="1d-groups-of-one"),
    pytest.param(call((7, 8), of(2, (2, 3), dilation=(3, 2))), 0, (2, 2, 4), (2, 4, 2), id="2d-first"),
    pytest.param(call((7, 9), of(2, (2, 2), dilation=(3, 4)), value_dim=16), 1, (2, 2, 4), (2, 2, 4), id="2d-second"),
    pytest.param(call((6, 9), of(2, 3, dilation=(2, 3), stride=2), has_rpb=True), 1, (2, 4, 2), (2, 4, 2), id="2d-rpb"),
]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("drawn", "axis", "query_tile", "key_tile"), UNFOLDED)
def test_tiles_of_several_dilation_groups(drawn, axis, query_tile, key_tile, together):
    check(drawn, tiling=Tiling(query_tile, key_tile, unfolded=axis), together=together)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_short_dilation_groups_share_tiles(direction):
    drawn = call((64,), of(1, 3, dilation=21))
    problem = Problem.of(drawn.inputs(torch.float16, device), drawn.neighborhoods, 0.1)
    many = replace(problem, batch=64, heads=8, kv_heads=8)
    assert backend.BACKEND.configs(many, direction)[0].unfolded == 0


@pytest.mark.parametrize("edge", [{"is_causal": True}, {"boundary": "clip"}], ids=str)
@pytest.mark.parametrize(
    "rule", [{}, {"stride": 7}, {"dilation": 3}, {"stride": 2**30}, {"kernel_size": 3, "dilation": MOST}], ids=str
)
def test_numbers_as_large_as_they_may_be(rule, edge):
    """Positions plus windows are computed in 32 bits: what is beyond any axis is as good as the largest there is."""
    rule = {"kernel_size": MOST, **rule, **edge}
    drawn = [torch.randn(1, 37, 1, 8, generator=torch.Generator().manual_seed(0), device="cpu") for _ in range(3)]
    leaves = [t.to(device).requires_grad_() for t in drawn]
    results = [vicinal.na1d(*leaves, **rule, return_lse=True, backend=name) for name in ("triton", "torch")]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    above = [torch.randn_like(t) for t in results[0]]
    torch.testing.assert_close(*(torch.autograd.grad(own, leaves, above) for own in results), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    check(call((6, 7), of(2, 3), heads=2, additional=3, has_rpb=True), dtype)


@pytest.mark.parametrize("scale", [-0.4, 0.0, 2.5])
def test_any_scale(scale):
    check(call((9, 4), of(2, 3), additional=2), scale=scale)


def test_log_sum_exp_without_gradient():
    check(call((20,), of(1, 5)), with_grad_lse=False)


def test_inputs_are_read_in_place(monkeypatch):
    """Heads, tokens and batch in any order in memory, slices of a packed projection; nothing is copied."""
    drawn = call((5, 6), of(2, 3), heads=2, kv_heads=2, batch=2)
    packed = torch.randn(5, 2, 6, 3, 2, 8, device=device).permute(1, 0, 2, 3, 4, 5)
    assert not packed.is_contiguous()
    inputs = Inputs(*packed.unbind(3))
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda self, *args: pytest.fail("copied"))
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    output, lse = backend.BACKEND.forward(problem, backend.BACKEND.configs(problem, "forward")[0], inputs)
    monkeypatch.undo()
    assert_as_close_as_torch([output, lse], inputs, drawn.neighborhoods, 0.3)


@pytest.mark.parametrize(
    ("lengths", "neighborhood", "tiles"),
    [
        ((85,), of(1, 35), ((32,), (16,))),  # near a border a key has more queries than a query has keys
        ((21,), of(1, 5), ((16,), (16,))),
        ((9, 7), of(2, 7), ((4, 4), (4, 8))),
        ((11,), of(1, 4, dilation=2), ((16,), (16,))),
    ],
)
def test_nothing_beyond_the_tokens_is_read(lengths, neighborhood, tiles):
    """The tensors lie amid NaN: a row read from outside would spoil sums even where its weight is 0."""
    drawn = call(lengths, neighborhood)
    amid = []
    for tensor in drawn.inputs(torch.float32, device)[:3]:
        room = torch.full([1, *(n + 2 * max(lengths) for n in lengths), 1, 8], float("nan"), device=device)
        inner = room[(slice(None), *(slice(max(lengths), max(lengths) + n) for n in lengths))]
        amid.append(inner.copy_(tensor))
    check(drawn, tiles=tiles, inputs=Inputs(*amid))


def test_last_dimension_not_contiguous():
    drawn = call((5, 6), of(2, 3))
    inputs = Inputs(*(torch.randn(8, 1, 5, 6, 1, device=device).movedim(0, -1) for _ in range(3)))
    check(drawn, inputs=inputs)


def test_empty_batch():
    drawn = call((5, 6), of(2, 3), batch=0)
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 1.0)
    config = backend.BACKEND.configs(problem, "forward")[0]
    output, lse = backend.BACKEND.forward(problem, config, inputs)
    assert output.shape == (0, 5, 6, 1, 8)
    grads = gradients_of(backend.BACKEND, problem, config, inputs, output, lse, output)
    assert grads.key.shape == inputs.key.shape


def run_in_layouts(drawn, layouts, dtype=torch.float32):
    """Forward and backward with every tensor in its own layout, against the oracle on the same values."""
    inputs = layouts.inputs(drawn.inputs(dtype, device))
    if drawn.neighborhoods[0].is_circular:
        inputs, neighborhoods = unroll(inputs, drawn.neighborhoods, around(drawn.neighborhoods, drawn.lengths))
        drawn = replace(drawn, neighborhoods=neighborhoods)
    problem = Problem.of(inputs, drawn.neighborhoods, drawn.scale)
    output, lse = backend.BACKEND.forward(problem, backend.BACKEND.configs(problem, "forward")[0], inputs)
    upstream = layouts.upstream(Upstream(output, lse, *random_gradients(output, lse, drawn.seed)))
    config = backend.BACKEND.configs(problem, "backward")[0]
    grads = backend.BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    assert output.is_contiguous()
    assert lse.is_contiguous()
    assert all(g is None or g.is_contiguous() for g in grads)
    results = [output, lse, *(g for g in grads if g is not None)]
    assert_as_close_as_torch(results, inputs, drawn.neighborhoods, drawn.scale, *upstream[2:])


@settings(max_examples=4)
@given(strategies.calls(ranks=(1, 2), max_head_dim=9, spans=True), strategies.any_layouts())
def test_random_calls_in_any_layout(drawn, layouts):
    run_in_layouts(drawn, layouts)


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_every_kind_of_layout(kind):
    counts = (1, len(Inputs._fields)), (2, 4)
    every = strategies.Layouts(*((strategies.Layout(kind, seed),) * n for seed, n in counts))
    if kind == "expanded":  # the forward's results have the values they have
        saved = strategies.Layout("contiguous")
        every = replace(every, of_upstream=(saved, saved, *every.of_upstream[2:]))
    run_in_layouts(call((5, 6), of(2, 3), heads=2, batch=2, head_dim=6, additional=2, has_rpb=True), every)


def test_the_same_strides_negated_and_not():
    """What is prepared for a copy is not used in place."""
    drawn = call((5, 6), of(2, 3), heads=2, kv_heads=2)
    inputs = Inputs(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in drawn.inputs(torch.float32, device)[:3]))
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    config = backend.BACKEND.configs(problem, "forward")[0]
    plain, _ = backend.BACKEND.forward(problem, config, inputs)
    negated, _ = backend.BACKEND.forward(problem, config, inputs._replace(value=torch._neg_view(inputs.value)))
    assert torch.equal(negated, -plain)


WANTED = [
    Wanted(*(name in names.split() for name in Wanted._fields))
    for names in (
        "query",
        "key",
        "value",
        "key value",
        "query value",
        "rpb",
        "additional_keys",
        "additional_values",
        "query key",
        "value rpb",
        "additional_values key",
    )
]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "drawn",
    [
        pytest.param(call((9, 4), of(2, 3), heads=2, additional=2, has_rpb=True), id="everything"),
        pytest.param(call((7, 5), (of(2, 3), of(2, 3, dilation=(2, 1))), heads=2, additional=2), id="per-head"),
    ],
)
def test_only_what_is_wanted(drawn, together, monkeypatch):
    """The same bits as with all gradients, but for a delta that another kernel sums; None elsewhere."""
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.3)
    output, lse = backend.BACKEND.forward(problem, backend.BACKEND.configs(problem, "forward")[0], inputs)
    config = backend.BACKEND.configs(problem, "backward")[0]
    config = in_launches(config, together)
    upstream = Upstream(output, lse, *random_gradients(output, lse, 5))
    every = backend.BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    launched = []
    run = Launch.__call__
    monkeypatch.setattr(Launch, "__call__", lambda s, *a: (launched.append(s.kernel.__name__), run(s, *a)))
    for wanted in WANTED:
        wanted = Wanted(*(w and t is not None for w, t in zip(wanted, inputs)))
        launched.clear()
        grads = backend.BACKEND.backward(problem, config, inputs, upstream, wanted)
        assert launched == kernels_for(wanted, together)
        for grad, full, wants in zip(grads, every, wanted):
            assert (grad is not None) == wants
            if wants:
                torch.testing.assert_close(grad, full, rtol=1e-5, atol=1e-5)


def kernels_for(wanted: Wanted, together: bool) -> list[str]:
    """What a backward pass launches, in order."""
    keys = wanted.key or wanted.value
    kernels = []
    if together and wanted.query and keys:
        kernels.append("gradients_kernel")
    else:
        if wanted.query:
            kernels.append("query_gradient_kernel")
        elif wanted.key or wanted.additional_keys or wanted.rpb:
            kernels.append("delta_kernel")
        if keys:
            kernels.append("key_value_gradient_kernel")
    if wanted.additional_keys or wanted.additional_values:
        kernels.append("additional_gradient_kernel")
    return kernels + ["bias_gradient_kernel"] * wanted.rpb


def test_two_threads_first_calls(monkeypatch):
    """Both launch the kernel that was compiled, with all its arguments and their own tensors."""
    compiled = SimpleNamespace(launched=[])
    monkeypatch.setattr(Launch, "compile", lambda self, tensors: {self.grid: lambda *a: compiled.launched.append(a)})
    monkeypatch.setattr(launch_module.triton, "JITFunction", object)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    drawn = call((16,), of(1, 3), heads=2, kv_heads=2)
    try:
        for _ in range(100):
            fresh = type(backend.BACKEND)()
            compiled.launched.clear()
            inputs = [drawn.inputs(torch.float32, device) for _ in range(2)]
            problem = Problem.of(inputs[0], drawn.neighborhoods, 0.3)
            config = Tiling((16,), (16,))
            threads = [Thread(target=fresh.forward, args=(problem, config, own)) for own in inputs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            first, second = sorted(compiled.launched, key=lambda a: a[0] is not inputs[0].query)
            assert len(first) == len(second)
            others = [[a for a in each if not isinstance(a, torch.Tensor)] for each in (first, second)]
            assert others[0] == others[1]
            for own, got in zip(inputs, (first, second)):
                assert all(a is b for a, b in zip(got, own[:3]))
    finally:
        sys.setswitchinterval(interval)


def test_backward_has_the_same_bits_every_run():
    drawn = call((6, 9), of(2, 3), heads=2, additional=3, has_rpb=True)
    inputs = drawn.inputs(torch.float32, device)
    problem = Problem.of(inputs, drawn.neighborhoods, 0.5)
    forward, config = (backend.BACKEND.configs(problem, d)[0] for d in ("forward", "backward"))
    output, lse = backend.BACKEND.forward(problem, forward, inputs)
    first, second = (gradients_of(backend.BACKEND, problem, config, inputs, output, lse, output, lse) for _ in range(2))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"dtype": torch.float64}, "float64"), ({"head_dim": 260}, "at most 256"), ({"value_dim": 300}, "at most 256")],
)
def test_reasons(change, reason):
    kept = {k: v for k, v in change.items() if k != "dtype"}
    drawn = call((9,), of(1, 3), **kept)
    inputs = drawn.inputs(change.get("dtype", torch.float32), device)
    problem = Problem.of(inputs, drawn.neighborhoods, 1.0)
    assert reason in backend.BACKEND.unsupported(problem)


def test_cpu_tensors_are_not_taken_outside_tests():
    drawn = call((9,), of(1, 3))
    backend._interpreting = False  # the fixture's end puts it back; a monkeypatch would undo that
    problem = Problem.of(drawn.inputs(torch.float32, "cpu"), drawn.neighborhoods, 1.0)
    assert "CPU" in backend.BACKEND.unsupported(problem)


def test_what_a_backend_cannot_run_is_told_without_ranking_tilings(monkeypatch):
    drawn = call((9,), of(1, 3))
    problem = Problem.of(drawn.inputs(torch.float16, device), drawn.neighborhoods, 1.0)
    monkeypatch.setattr(backend, "tilings", lambda *_: pytest.fail("tilings were ranked"))
    assert backend.BACKEND.unsupported(problem) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"batch": 1 << 12, "lengths": (1 << 20,)}, None),
        ({"batch": 1 << 24, "lengths": (1 << 20,)}, "more tiles than a GPU's grid can hold"),
        ({"lengths": (1 << 31,)}, "more than 2**30"),
        ({"heads": 1 << 16, "kv_heads": 1 << 16, "has_rpb": True}, "bias of 65536 heads"),
    ],
)
def test_what_32_bits_do_not_count(change, reason):
    drawn = call((9,), of(1, 3))
    problem = Problem.of(drawn.inputs(torch.float16, device), drawn.neighborhoods, 1.0)
    told = backend.BACKEND.unsupported(replace(problem, **change))
    assert told is None if reason is None else reason in told


@pytest.mark.parametrize(
    ("lengths", "window", "rest"),
    [
        ([(13,), (0,), (6,)], [(5,), (1,), (4,)], {}),
        ([(5, 7), (9, 4), (3, 4)], 3, {"dilation": (1, 2), "is_causal": (True, False), "clamp": True}),
    ],
    ids=["lines", "planes"],
)
def test_maps_of_different_sizes_in_one_launch(lengths, window, rest):
    call = {1: vicinal.na1d_varlen, 2: vicinal.na2d_varlen}[len(lengths[0])]
    total = sum(map(prod, lengths))
    leaves = [torch.randn(total, h, 8, device=device, requires_grad=True) for h in (2, 1, 1)]
    found = call(*leaves, lengths, window, return_lse=True, backend="triton", **rest)
    expected = call(*leaves, lengths, window, return_lse=True, backend="torch", **rest)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    above = [torch.randn_like(t) for t in found]
    grads = (torch.autograd.grad(results, leaves, above) for results in (found, expected))
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)
