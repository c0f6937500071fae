"""The `hopper` backend's head dims, scales, additional keys and dilations per head, against the float64 oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from closeness import assert_as_close_as_torch, error, gradients_of
from hopper_calls import BF16, FP16, ON_HOPPER
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import reference

pytestmark = ON_HOPPER

DIMS = [
    *((8, 8), (16, 16), (24, 24), (40, 40), (48, 48), (56, 56), (72, 72), (80, 80), (96, 96), (112, 112), (136, 136)),
    *((160, 160), (200, 200), (224, 224), (256, 256)),
    *((64, 128), (128, 64), (48, 80), (96, 40), (24, 256), (256, 40), (128, 192), (192, 256), (8, 136), (256, 192)),
]
# name: lengths, heads, kv heads, neighborhood's arguments
SHAPES = {
    "ragged": ((37, 45), 2, 2, {"kernel_size": (11, 9)}),
    "dilated": ((37, 41), 4, 2, {"kernel_size": 5, "dilation": (3, 4)}),
    "causal": ((301,), 2, 1, {"kernel_size": 70, "is_causal": True}),
    "video": ((6, 9, 11), 2, 2, {"kernel_size": (3, 4, 5), "stride": (1, 2, 2)}),
}
PASSES = [False, True]


def make(shape, head_dim=64, value_dim=None, additional=0, dtype=BF16, scale=None, batch=2, seed=0):
    """Problem, neighborhoods and inputs."""
    lengths, heads, kv_heads, arguments = shape
    value_dim = value_dim or head_dim
    torch.manual_seed(seed)
    x = (batch, *lengths)

    def tensor(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device="cuda", dtype=dtype)

    inputs = Inputs(tensor(*x, heads, head_dim), tensor(*x, kv_heads, head_dim), tensor(*x, kv_heads, value_dim))
    if additional:
        more = (tensor(batch, additional, kv_heads, d) for d in (head_dim, value_dim))
        inputs = Inputs(*inputs[:3], *more)
    each = arguments if isinstance(arguments, list) else [arguments]
    own = [Neighborhood.of(len(lengths), **a).resolve(lengths) for a in each]
    return Problem.of(inputs, own, head_dim**-0.5 if scale is None else scale), own, inputs


def check(made, one_pass: bool, config=None) -> None:
    """Forward and backward, of everything."""
    from vicinal.backends.hopper import BACKEND

    problem, own, inputs = made
    assert BACKEND.unsupported(problem) is None
    configs = [c for c in BACKEND.configs(problem, "backward") if c.one_pass == one_pass]
    if not configs:
        pytest.skip("the one-pass backward does not take it")
    out, lse = BACKEND.forward(problem, config or BACKEND.configs(problem, "forward")[0], inputs)
    grad, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    found = gradients_of(BACKEND, problem, configs[0], inputs, out, lse, grad, grad_lse)
    grads = [g for g in found if g is not None]
    assert all(g.is_contiguous() for g in grads)
    assert_as_close_as_torch([out, lse, *grads], inputs, own, problem.scale, grad, grad_lse)


@pytest.mark.parametrize("one_pass", PASSES)
@pytest.mark.parametrize("dims", DIMS, ids=lambda dims: "-".join(map(str, dims)))
def test_head_dims(dims, one_pass, any_order):
    check(make(SHAPES["ragged"], *dims), one_pass)


@pytest.mark.parametrize("one_pass", PASSES)
@pytest.mark.parametrize("dims", [(40, 40), (48, 80), (200, 136)], ids=lambda dims: "-".join(map(str, dims)))
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "ragged"])
def test_head_dims_of_other_problems(shape, dims, one_pass, any_order):
    check(make(SHAPES[shape], *dims, dtype=FP16), one_pass)


@pytest.mark.parametrize("dims", [(48, 48), (72, 72), (160, 160)], ids=lambda dims: "-".join(map(str, dims)))
def test_head_dims_of_a_packed_projection(dims):
    """Slices, read in place: what is beside a head's columns are other heads, and other tensors."""
    problem, own, inputs = make(SHAPES["dilated"], *dims)
    fused = torch.cat([t.flatten(-2) for t in inputs[:3]], -1)
    parts = fused.split([t.shape[-2] * t.shape[-1] for t in inputs[:3]], -1)
    views = Inputs(*(part.unflatten(-1, t.shape[-2:]) for part, t in zip(parts, inputs[:3])))
    check((problem, own, views), False)


@pytest.mark.parametrize("one_pass", PASSES)
@pytest.mark.parametrize("head_dim", [48, 80])
def test_another_head_is_not_seen(head_dim, one_pass, any_order):
    """Where kernels have more columns than a head: nothing of its neighbors is read or written, numbers or not."""
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make(((20, 24), 3, 3, {"kernel_size": 7}), head_dim)
    config = BACKEND.configs(problem, "forward")[0]
    other = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass == one_pass)
    grad = torch.randn_like(inputs.query)

    def run(given: Inputs, above: torch.Tensor) -> list[torch.Tensor]:
        out, lse = BACKEND.forward(problem, config, given)
        grads = gradients_of(BACKEND, problem, other, given, out, lse, above)
        return [t[..., 1, :] for t in (out, lse[..., None], *grads[:3])]

    lost = torch.tensor([True, False, True], device="cuda")[:, None]
    poisoned = Inputs(*(t.masked_fill(lost, float("nan")) for t in inputs[:3]))
    plain, beside = run(inputs, grad), run(poisoned, grad.masked_fill(lost, float("inf")))
    for i, (a, b) in enumerate(zip(plain, beside)):
        if one_pass and i == 2:
            assert error(b, a) < 1e-2  # dQ, added in any order
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("one_pass", PASSES)
@pytest.mark.parametrize("head_dim", [64, 128, 80])
@pytest.mark.parametrize("scale", [0.0, -0.2, 1e-36, 2.0])
def test_scales(scale, head_dim, one_pass, any_order):
    check(make(SHAPES["ragged"], head_dim, scale=scale), one_pass)


@pytest.mark.parametrize("scale", [0.0, -0.2])
def test_scales_of_paired_chunks(scale):
    from vicinal.backends.hopper.config import ForwardConfig

    made = make(((40, 45), 2, 2, {"kernel_size": (9, 20)}), 128, scale=scale)
    check(made, False, ForwardConfig((8, 8), (8, 8), 0, 2, paired=True))


# --- additional keys ---------------------------------------------------------------------------------------

WITH_MORE = {
    **SHAPES,
    "one token": ((1,), 2, 2, {"kernel_size": 1}),
    "grouped": ((37, 45), 8, 2, {"kernel_size": 7}),
    "dilated": ((36, 40), 2, 2, {"kernel_size": 7, "dilation": (3, 4)}),
    "dilated, ragged": ((37, 41), 4, 2, {"kernel_size": 5, "dilation": (3, 4)}),
    "per head": ((30, 34), 4, 2, [{"kernel_size": k, "is_causal": k == 9} for k in (3, 9, 30, 12)]),
    "whole": ((40, 48), 2, 1, {"kernel_size": (40, 48)}),
}


@pytest.mark.parametrize("one_pass", PASSES)
@pytest.mark.parametrize("additional", [1, 77, 512])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", WITH_MORE)
def test_additional_keys(name, head_dim, additional, one_pass, any_order):
    check(make(WITH_MORE[name], head_dim, additional=additional), one_pass)


@pytest.mark.parametrize("one_pass", PASSES)
@pytest.mark.parametrize("dims", [(32, 32), (48, 48), (80, 72), (192, 128), (256, 256), (24, 200)], ids=str)
def test_additional_keys_of_head_dims(dims, one_pass, any_order):
    check(make(WITH_MORE["dilated, ragged"], *dims, additional=150, dtype=FP16), one_pass)


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_additional_keys_and_scales(scale):
    check(make(SHAPES["ragged"], 64, additional=77, scale=scale), False)


@pytest.mark.parametrize("persistent", PASSES)
@pytest.mark.parametrize("paired", PASSES)
@pytest.mark.parametrize("window", [(9, 20), (37, 14), (3, 3)], ids=str)
def test_additional_keys_of_every_kind_of_tiling(window, paired, persistent):
    """With tiles that only one warpgroup needs at the end of a walk, and several items a program."""
    from vicinal.backends.hopper.config import ForwardConfig

    arguments = {"kernel_size": window, "is_causal": (False, window[1] == 14)}
    made = make(((50, 55), 8, 8, arguments), 128, additional=300, batch=1)
    for split in (0, 1):
        key_tile = (8, 8) if paired else (8, 16)
        check(made, False, ForwardConfig((8, 8), key_tile, split, 2, paired=paired, persistent=persistent))


@pytest.mark.parametrize("layout", ["sliced", "expanded", "permuted", "misaligned"])
def test_additional_keys_in_any_layout(layout):
    problem, own, inputs = make(SHAPES["ragged"], 64, additional=128)
    keys, values = inputs.additional_keys, inputs.additional_values
    if layout == "sliced":
        keys, values = torch.cat([keys, values], -1).split(64, -1)
    elif layout == "expanded":
        keys, values = (t[:1].expand(2, -1, -1, -1) for t in (keys, values))
    elif layout == "permuted":
        keys, values = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (keys, values))
    else:
        keys, values = (torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape) for t in (keys, values))
    check((problem, own, inputs._replace(additional_keys=keys, additional_values=values)), False)


@pytest.mark.parametrize("needed", ["query", "key value", "additional_keys", "additional_values query", "value"])
@pytest.mark.parametrize("head_dim", [64, 192])
def test_only_wanted_gradients_beside_additional_keys(needed, head_dim):
    """The same bits as when all are wanted; nothing for the others."""
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make(SHAPES["dilated"], head_dim, additional=77)
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    upstream = Upstream(out, lse, torch.randn_like(out), None)
    config = BACKEND.configs(problem, "backward")[0]
    every = BACKEND.backward(problem, config, inputs, upstream, Wanted.of(inputs))
    wanted = Wanted(*(name in needed.split() for name in Wanted._fields))
    some = BACKEND.backward(problem, config, inputs, upstream, wanted)
    for gradient, whole, is_wanted in zip(some, every, wanted):
        assert (gradient is not None) == is_wanted
        assert gradient is None or torch.equal(gradient, whole)


@pytest.mark.parametrize("head_dim", [48, 64, 128])
def test_the_same_bits_every_run(head_dim):
    """Where algorithms are to be deterministic; with additional keys, which gather from all queries, too."""
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make(((64, 64), 4, 2, {"kernel_size": 21}), head_dim, additional=200)
    config = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass)
    grad = torch.randn_like(inputs.query)

    def run() -> list[torch.Tensor]:
        out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
        return [out, lse, *gradients_of(BACKEND, problem, config, inputs, out, lse, grad)[:5]]

    first = run()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run()))


def test_additional_keys_in_a_graph(any_order):
    from vicinal.backends.hopper import BACKEND

    problem, _, inputs = make(((64, 64), 4, 2, {"kernel_size": 21}), 128, additional=200)
    config = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass)
    grad = torch.randn_like(inputs.query)

    def run() -> list[torch.Tensor]:
        out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
        return [out, *gradients_of(BACKEND, problem, config, inputs, out, lse, grad)[:5]]

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    for t in inputs[:5]:
        t.copy_(torch.randn_like(t))
    graph.replay()
    torch.cuda.synchronize()
    for ours, eager in zip(got, run()):
        assert error(ours, eager) < 1e-2


# --- dilations that differ ---------------------------------------------------------------------------------


@pytest.mark.parametrize("one_pass", PASSES)
@pytest.mark.parametrize("additional", [0, 77])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dilations"),
    [
        (4, 4, (1, 1, 2, 2)),
        (4, 4, (1, 3, 1, 3)),
        (4, 2, (1, 1, 2, 2)),
        (4, 1, (1, 1, 2, 3)),
        (6, 2, (1, 2, 2, 2, 3, 3)),
    ],
    ids=["halves", "in turns", "grouped", "in one group", "across groups"],
)
def test_dilations_per_head(heads, kv_heads, dilations, additional, one_pass, any_order):
    windows = (5, 7, 6, 5, 4, 5)
    each = [{"kernel_size": k, "dilation": d} for k, d in zip(windows, dilations)]
    check(make(((37, 30), heads, kv_heads, each), 64, additional=additional), one_pass)


def test_dilations_per_head_of_padded_heads():
    each = [{"kernel_size": 5, "dilation": d} for d in (1, 1, 2, 2)]
    check(make(((37, 30), 4, 4, each), 40), False)


# --- keys beyond the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("one_pass", PASSES)
@pytest.mark.parametrize("additional", [0, 5])
def test_scores_that_are_all_far_below_0(additional, one_pass, any_order):
    """What is read as zeros beyond the last key has a score of 0, far above all others."""
    from vicinal.backends.hopper import BACKEND

    problem, own, inputs = make(((37, 45), 2, 2, {"kernel_size": 9}), 64, additional=additional)
    query = inputs.query.abs() + 1
    moved = {"query": query, "key": -(inputs.key.abs() + 20)}
    if additional:
        moved["additional_keys"] = -(inputs.additional_keys.abs() + 20)
    inputs = inputs._replace(**moved)
    problem = replace(problem, scale=0.25)
    out, lse = BACKEND.forward(problem, BACKEND.configs(problem, "forward")[0], inputs)
    assert lse.max() < -100
    config = next(c for c in BACKEND.configs(problem, "backward") if c.one_pass == one_pass)
    grad = torch.randn_like(out)
    grads = [g for g in gradients_of(BACKEND, problem, config, inputs, out, lse, grad) if g is not None]
    assert all(g.isfinite().all() for g in grads)
    leaves = Inputs(*(None if t is None else t.double().requires_grad_() for t in inputs))
    want_out, _ = reference(leaves, own, problem.scale)
    want = torch.autograd.grad(want_out, [t for t in leaves if t is not None], grad.double())
    for i, (ours, exact) in enumerate(zip(grads, want, strict=True)):
        # dQ adds up dS, rounded to 16 bits, times keys of about -20 that differ by 0.6: 30 times as far off as usual.
        assert float((ours.double() - exact).norm() / exact.norm()) < (0.2 if i == 0 else 5e-2)
