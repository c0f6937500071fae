"""The Triton backend on small problems against the oracle; on a machine without a GPU, by Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import vicinal
from closeness import gradients, gradients_of, in_double, random_gradients
from triton_calls import by_turns, call, check, device, of
from vicinal import circular
from vicinal.backends import triton as backend
from vicinal.backends.triton.config import Tiling
from vicinal.geometry.neighborhood import MOST
from vicinal.geometry.unroll import around
from vicinal.problem import Inputs, Problem
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
        pytest.param(call((5, 6), of(2, 3), head_dim=256, value_dim=256, has_rpb=True), id="dims-256-rpb"),
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
