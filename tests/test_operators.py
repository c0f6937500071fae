"""The torch operators: opcheck, compile, export, autocast, checkpointing, FLOPs, vmap, second order."""

from collections import Counter

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import vicinal
from vicinal.backends.torch import TorchBackend
from vicinal.geometry.neighborhood import Neighborhood, encode
from vicinal.operators import attend, attend_backward
from vicinal.problem import Inputs, Wanted

PLAIN = Neighborhood.of(1, 3)
CAUSAL = Neighborhood.of(1, 4, stride=2, is_causal=True)


def tensors(*shapes, dtype=torch.float32, requires_grad=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_(requires_grad) for s in shapes]


def operator_arguments(neighborhoods, extras):
    q, k, v, ek, ev, rpb = tensors((2, 6, 2, 4), (2, 6, 1, 4), (2, 6, 1, 3), (2, 5, 1, 4), (2, 5, 1, 3), (2, 5))
    mask = torch.tensor([True, False, True, True, False, True]).expand(2, 6)
    return (q, k, v, *((ek, ev, rpb, mask) if extras else (None,) * 4), None, encode(neighborhoods), 0.5, None)


@pytest.mark.parametrize(
    ("neighborhoods", "extras"), [([PLAIN], False), ([PLAIN], True), ([PLAIN, CAUSAL], False)], ids=str
)
def test_opcheck(neighborhoods, extras):
    torch.library.opcheck(attend, operator_arguments(neighborhoods, extras))


def test_a_key_mask_goes_wherever_the_keys_go():
    """Eager, compiled, under vmap, twice differentiated: the same."""
    torch._dynamo.reset()
    q, k, v = tensors((3, 2, 6, 2, 4), (3, 2, 6, 1, 4), (3, 2, 6, 1, 3), dtype=torch.float64)
    mask = torch.rand(3, 2, 6) > 0.4

    def loss(q, k, v, mask):
        return vicinal.na1d(q, k, v, 3, key_mask=mask).sin().sum()

    def found(call):
        grads = torch.autograd.grad(call(), (q, k, v), create_graph=True)
        return grads, torch.autograd.grad(sum(g.sin().sum() for g in grads), (q, k, v))

    expected = found(lambda: sum(loss(*each) for each in zip(q, k, v, mask)))
    torch.testing.assert_close(found(lambda: torch.vmap(loss)(q, k, v, mask).sum()), expected)
    flat = [t.flatten(0, 1) for t in (q, k, v, mask)]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*flat), (q, k, v)), expected[0])
    grad = torch.func.grad(lambda q: vicinal.na1d(q, *flat[1:3], 3, key_mask=flat[3]).sin().sum())(flat[0])
    torch.testing.assert_close(grad.view_as(q), expected[0][0])


@pytest.mark.parametrize("has_grad_lse", [False, True])
def test_opcheck_backward(has_grad_lse):
    arguments = operator_arguments([PLAIN], extras=True)
    output, lse = (t.detach() for t in attend(*arguments))
    upstream, grad_lse = tensors(output.shape, lse.shape, seed=1)
    torch.library.opcheck(
        attend_backward, (upstream, grad_lse if has_grad_lse else None, output, lse, *arguments, [True] * 6)
    )


def test_compiles_whole_and_once_for_every_batch_size():
    counter = CompileCounterWithBackend("aot_eager")

    def loss(q, k, v):
        output, lse = vicinal.na2d(q, k, v, 5, dilation=(1, 2), return_lse=True)
        return output.square().sum() + lse.sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for batch in (3, 5, 7):  # none equals another size, which torch would take for the same symbol
        inputs = tensors(*[(batch, 10, 10, 2, 4)] * 3, seed=batch)
        grads = torch.autograd.grad(compiled(*inputs), inputs)
        expected = torch.autograd.grad(loss(*inputs), inputs)
        torch.testing.assert_close(grads, expected)
    assert counter.frame_count == 1


PER_HEAD = [Neighborhood.of(2, window) for window in (1, 3, 3, 5)]
SYMBOLIC = {  # also the numbers of heads are symbols
    "per head": lambda q, k, v: vicinal.neighborhood_attention(q, k, v, PER_HEAD),
    "circles": lambda q, k, v: vicinal.na2d(q, k, v, (3, 5), boundary="wrap"),
    "plain attention": lambda q, k, v: vicinal.attention(q[:, 0], k[:, 0, :5], v[:, 0, :5]),
}


@pytest.mark.parametrize("call", SYMBOLIC.values(), ids=SYMBOLIC)
def test_compiles_whole_where_all_sizes_are_symbols(call):
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="eager")
    for lengths in ((9, 8), (7, 11)):
        given = tensors((2, *lengths, 4, 16), (2, *lengths, 2, 16), (2, *lengths, 2, 24), requires_grad=False)
        torch.testing.assert_close(compiled(*given), call(*given))


class Exported(torch.nn.Module):
    """A module of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, query):
        return self.function(query)


SYMBOLS_STAY = {
    "a window of the whole axis": lambda q: vicinal.na2d(q, q, q, (3, None)),
    "a window of the whole axis per head": lambda q: vicinal.neighborhood_attention(
        q, q, q, [Neighborhood.of(2, window) for window in (3, None)]
    ),
    "plain attention": lambda q: vicinal.attention(q[:, 0], q[:, 0], q[:, 0], is_causal=True),
}


@pytest.mark.parametrize("call", SYMBOLS_STAY.values(), ids=SYMBOLS_STAY)
def test_exported_lengths_that_are_symbols_stay_symbols(call):
    (example,), (other,) = (tensors((2, 9, n, 2, 4), requires_grad=False) for n in (8, 11))
    sizes = {2: torch.export.Dim("width", min=3, max=64)}
    exported = torch.export.export(Exported(call), (example,), dynamic_shapes=(sizes,))
    torch.testing.assert_close(exported.module()(other), call(other))


def test_exported_circles_are_of_the_example_s_length():
    def call(query):
        return vicinal.na2d(query, query, query, 3, boundary=("wrap", "shift"))

    (example,) = tensors((2, 9, 8, 2, 4), requires_grad=False)
    sizes = dict.fromkeys(range(3), torch.export.Dim.AUTO)
    exported = torch.export.export(Exported(call), (example,), dynamic_shapes=(sizes,))
    (other,) = tensors((3, 9, 11, 2, 4), requires_grad=False)
    torch.testing.assert_close(exported.module()(other), call(other))


def test_a_window_of_the_whole_axis_compiles_once_for_every_length():
    counter = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    compiled = torch.compile(vicinal.attention, fullgraph=True, dynamic=True, backend=counter)
    for length in (9, 10, 11):
        inputs = tensors(*[(2, length, 3, 4)] * 3, requires_grad=False)
        torch.testing.assert_close(compiled(*inputs), vicinal.attention(*inputs))
    assert counter.frame_count == 1


def test_compiled_module_through_inductor():
    module = vicinal.NeighborhoodAttention1D(8, 2, 3)
    x = tensors((2, 9, 8))[0]
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), module(x))


def test_export():
    module = vicinal.NeighborhoodAttention2D(8, 2, 3, stride=2)
    (x,) = tensors((2, 6, 6, 8), requires_grad=False)
    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    (other,) = tensors((5, 6, 6, 8), requires_grad=False, seed=1)
    torch.testing.assert_close(exported.module()(other), module(other))


def test_autocast():
    module = vicinal.NeighborhoodAttention2D(8, 2, 3)
    (x,) = tensors((2, 6, 6, 8))
    q, k, v = tensors(*[(1, 6, 2, 4)] * 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
        mixed = vicinal.na1d(q, k.bfloat16(), v, 3)
    assert mixed.dtype == torch.bfloat16
    module(x).sum().backward()
    assert x.grad.dtype == torch.float32


def test_activation_checkpointing():
    inputs = tensors(*[(1, 8, 2, 4)] * 3)

    def run(*x):
        return vicinal.na1d(*x, 3).square().sum()

    grads = torch.autograd.grad(checkpoint(run, *inputs, use_reentrant=False), inputs)
    torch.testing.assert_close(grads, torch.autograd.grad(run(*inputs), inputs))


def test_flop_counting():
    q, k, v, ek, ev = tensors((2, 8, 8, 4, 6), (2, 8, 8, 2, 6), (2, 8, 8, 2, 5), (2, 3, 2, 6), (2, 3, 2, 5))
    with FlopCounterMode(display=False) as counter:
        output = vicinal.na2d(q, k, v, 3, additional_keys=ek, additional_values=ev)
        output.sum().backward()
    scores = 2 * 4 * 64 * (9 + 3)
    counts = counter.get_flop_counts()["Global"]
    assert counts[torch.ops.vicinal.attend] == 2 * scores * (6 + 5)
    assert counts[torch.ops.vicinal.attend_backward] == 2 * scores * (3 * 6 + 2 * 5)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (1, 0, None)])
def test_vmap(in_dims, with_bias):
    shapes = [(1, 6, 2, 4) if d is None else ((3, 1, 6, 2, 4) if d == 0 else (1, 3, 6, 2, 4)) for d in in_dims]
    inputs = tensors(*shapes, dtype=torch.float64)
    (rpb,) = tensors((2, 5), dtype=torch.float64, seed=1)

    def run(q, k, v):
        return vicinal.na1d(q, k, v, 3, rpb=rpb if with_bias else None, return_lse=True)

    mapped = torch.vmap(run, in_dims)(*inputs)
    rows = [run(*(t if d is None else t.select(d, i) for t, d in zip(inputs, in_dims))) for i in range(3)]
    expected = [torch.stack(parts) for parts in zip(*rows)]
    torch.testing.assert_close(mapped, tuple(expected))
    leaves = [*inputs, rpb] if with_bias else inputs
    grads = torch.autograd.grad(sum(t.sin().sum() for t in mapped), leaves)
    torch.testing.assert_close(grads, torch.autograd.grad(sum(t.sin().sum() for t in expected), leaves))


def test_gradients_batched_by_vmap():
    inputs = tensors(*[(1, 5, 1, 3)] * 3, (1, 5), dtype=torch.float64)

    def run(q, k, v, rpb):
        return vicinal.na1d(q, k, v, 3, rpb=rpb)

    fast = torch.autograd.functional.jacobian(run, tuple(inputs), vectorize=True)
    torch.testing.assert_close(fast, torch.autograd.functional.jacobian(run, tuple(inputs)))


def test_gradients_per_sample():
    inputs = tensors(*[(3, 1, 6, 2, 4)] * 3, dtype=torch.float64, requires_grad=False)

    def loss(*x):
        return vicinal.na1d(*x, 3).square().sum()

    grads = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*inputs)
    rows = [torch.func.grad(loss, argnums=(0, 1, 2))(*sample) for sample in zip(*inputs)]
    torch.testing.assert_close(grads, tuple(torch.stack(parts) for parts in zip(*rows)))


@pytest.mark.parametrize("boundary", ["shift", "clip"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_double_backward(is_causal, boundary):
    inputs = tensors((1, 6, 2, 3), (1, 6, 1, 3), (1, 6, 1, 2), (1, 2, 1, 3), (1, 2, 1, 2), (2, 5), dtype=torch.float64)

    def run(q, k, v, ek, ev, rpb):
        return vicinal.na1d(
            q, k, v, 3, is_causal=is_causal, additional_keys=ek, additional_values=ev, rpb=rpb, return_lse=True,
            boundary=boundary,
        )  # fmt: skip

    assert torch.autograd.gradgradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(lambda *x: run(*x)[0], inputs), "log-sum-exp unused"


def test_forward_mode():
    primals = tensors(*[(1, 6, 2, 3)] * 3, dtype=torch.float64, requires_grad=False)
    tangents = tensors(*[(1, 6, 2, 3)] * 3, dtype=torch.float64, requires_grad=False, seed=1)

    def run(*x):
        return vicinal.na1d(*x, 3, return_lse=True)

    _, derivative = torch.func.jvp(run, tuple(primals), tuple(tangents))
    step = 1e-6
    ahead, behind = (run(*(p + s * step * t for p, t in zip(primals, tangents))) for s in (1, -1))
    numeric = tuple((a - b) / (2 * step) for a, b in zip(ahead, behind))
    torch.testing.assert_close(derivative, numeric, rtol=1e-7, atol=1e-8)


def test_hessian_forward_over_reverse():
    q, k, v = tensors(*[(1, 5, 1, 3)] * 3, dtype=torch.float64, requires_grad=False)

    def loss(x):
        return vicinal.na1d(x, k, v, 3).square().sum()

    reverse_twice = torch.autograd.functional.hessian(loss, q)
    torch.testing.assert_close(torch.func.hessian(loss)(q), reverse_twice)


def test_empty_batch():
    inputs = tensors((0, 6, 2, 4), (0, 6, 1, 4), (0, 6, 1, 3), (2, 5))
    output, lse = vicinal.na1d(*inputs[:3], 3, rpb=inputs[3], return_lse=True)
    assert output.shape == (0, 6, 2, 3)
    assert lse.shape == (0, 6, 2)
    grads = torch.autograd.grad(output.sum() + lse.sum(), inputs)
    assert [g.shape for g in grads] == [t.shape for t in inputs]
    assert not grads[3].any(), "no sample, no gradient of the bias"


class Calls(TorchDispatchMode):
    """How often each operator is called."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.name()] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def asked(monkeypatch):
    """What the torch backend's backward is asked for, call by call."""
    seen = []
    backward = TorchBackend.backward

    def recording(self, problem, config, inputs, upstream, wanted):
        seen.append({name for name, is_wanted in wanted._asdict().items() if is_wanted})
        return backward(self, problem, config, inputs, upstream, wanted)

    monkeypatch.setattr(TorchBackend, "backward", recording)
    return seen


def leaves_of(needed):
    """Inputs of every kind, of which only these require gradients."""
    shapes = [(1, 6, 2, 4), (1, 6, 1, 4), (1, 6, 1, 3), (1, 2, 1, 4), (1, 2, 1, 3), (2, 5)]
    inputs = Inputs(*tensors(*shapes, dtype=torch.float64, requires_grad=False))
    for name in needed:
        getattr(inputs, name).requires_grad_()
    return inputs


def call(inputs):
    q, k, v, ek, ev, rpb, *_ = inputs  # `inputs.numbers`, as torch 2.10 traces it
    return vicinal.na1d(q, k, v, 3, additional_keys=ek, additional_values=ev, rpb=rpb, backend="torch")


WAYS = {
    "eager": call,
    "operator": lambda inputs: attend(*inputs, encode([PLAIN]), 0.5, "torch")[0],
    "compiled": lambda inputs: torch.compile(call, backend="aot_eager", fullgraph=True)(inputs),
    "checkpointed": lambda inputs: checkpoint(call, inputs, use_reentrant=False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "needed", [("query",), ("key", "rpb"), ("value", "additional_values"), Wanted._fields], ids=",".join
)
def test_a_backend_is_asked_for_the_gradients_that_somebody_needs(asked, way, needed):
    torch._dynamo.reset()
    WAYS[way](leaves_of(needed)).sum().backward()
    assert asked == [set(needed)]


@pytest.mark.parametrize("needed", [("query",), ("value",), ("query", "key")], ids=",".join)
def test_second_derivatives_skip_what_nobody_needs(asked, needed):
    def products(names, of):
        """Matrix products of the derivative of these inputs' gradients with respect to `of`."""
        inputs = leaves_of(names)
        grads = torch.autograd.grad(
            call(inputs).sin().sum(), [getattr(inputs, n) for n in sorted(names)], create_graph=True
        )
        with Calls() as calls:
            torch.autograd.grad(sum(g.sin().sum() for g in grads), [getattr(inputs, n) for n in sorted(of)])
        return calls.count["aten::bmm"]

    assert products(needed, needed) < products(set(Wanted._fields), set(Wanted._fields))
    assert all(names == set(needed) for names in asked[:2])


def test_a_frozen_bias_costs_no_second_derivative():
    def operations(names):
        inputs = leaves_of(names)
        (grad,) = torch.autograd.grad(call(inputs).sin().sum(), [inputs.query], create_graph=True)
        with Calls() as calls:
            grad.sin().sum().backward()
        return calls.count.total()

    assert operations({"query"}) < operations({"query", "rpb"})


def test_what_comes_from_above_may_be_missing():
    inputs = leaves_of(Wanted._fields)
    q, k, v, ek, ev, rpb = inputs.numbers
    output, lse = vicinal.na1d(q, k, v, 3, additional_keys=ek, additional_values=ev, rpb=rpb, return_lse=True)
    grads = torch.autograd.grad([output, lse], list(inputs.numbers), [torch.zeros_like(output), torch.zeros_like(lse)])
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("with_bias", [False, True])
def test_vmap_over_nothing(with_bias):
    inputs = tensors((0, 2, 6, 2, 4), (0, 2, 6, 1, 4), (0, 2, 6, 1, 3))
    (rpb,) = tensors((2, 5), seed=1)

    def run(q, k, v):
        return vicinal.na1d(q, k, v, 3, rpb=rpb if with_bias else None, return_lse=True)

    output, lse = torch.vmap(run)(*inputs)
    assert (output.shape, lse.shape) == ((0, 2, 6, 2, 3), (0, 2, 6, 2))
    leaves = [*inputs, rpb] if with_bias else inputs
    grads = torch.autograd.grad(output.sum() + lse.sum(), leaves)
    assert [g.shape for g in grads] == [t.shape for t in leaves]
    assert not grads[-1].any()


def test_a_bias_that_is_not_mapped_joins_in_one_call():
    inputs = tensors(*[(3, 1, 6, 2, 4)] * 3, requires_grad=False)
    (rpb,) = tensors((2, 5), requires_grad=False)
    with Calls() as calls:
        torch.vmap(lambda *x: vicinal.na1d(*x, 3, rpb=rpb))(*inputs)
    assert calls.count["vicinal::attend"] == 1
