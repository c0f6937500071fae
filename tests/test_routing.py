"""Which way calls go, and that all ways agree."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vicinal
from vicinal import na2d
from vicinal.problem import Inputs
from vicinal.torch_internals import watched


@pytest.fixture
def leaves():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 7, 7, 2, 8, generator=generator).requires_grad_() for _ in range(3)]


def gradients(leaves, **options):
    output, lse = na2d(*leaves, kernel_size=5, return_lse=True)
    return torch.autograd.grad(output.sum() + lse.square().sum(), leaves, **options)


def test_an_eager_call_has_its_own_node(leaves):
    assert type(na2d(*leaves, kernel_size=5).grad_fn).__name__ == "_AttendBackward"


def test_a_mode_sees_the_operator(leaves):
    with FlopCounterMode(display=False) as counter:
        gradients(leaves)
    counted = counter.get_flop_counts()["Global"]
    assert {"attend", "attend_backward"} <= {str(operator).split(".")[-1] for operator in counted}


def test_gradients_that_are_differentiated_again_are_the_same(leaves):
    for once, twice in zip(gradients(leaves), gradients(leaves, create_graph=True), strict=True):
        assert twice.grad_fn is not None
        torch.testing.assert_close(once, twice)


def test_only_the_log_sum_exp_is_used(leaves):
    _, lse = na2d(*leaves, kernel_size=5, return_lse=True)
    _, _, d_value = torch.autograd.grad(lse.sum(), leaves)
    assert torch.equal(d_value, torch.zeros_like(d_value))


def test_empty_batch_has_empty_gradients():
    leaves = [torch.zeros(0, 7, 7, 2, 8, requires_grad=True) for _ in range(3)]
    assert all(grad.shape == leaf.shape for grad, leaf in zip(gradients(leaves), leaves, strict=True))


def test_compiled_autograd_traces_the_operator(leaves):
    expected = gradients(leaves)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        output, lse = na2d(*leaves, kernel_size=5, return_lse=True)
        (output.sum() + lse.square().sum()).backward()
    for leaf, grad in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_a_trace_holds_the_operator(leaves, grad):
    with torch.set_grad_enabled(grad):
        graph = torch.jit.trace(lambda *x: na2d(*x, kernel_size=5), tuple(leaves), check_trace=False).inlined_graph
    assert "vicinal::attend" in {node.kind() for node in graph.nodes()}


WHOLE = {  # what computes with the lengths, which a trace hands out as tensors
    "a whole axis": lambda q: na2d(q, q, q, None),
    "windows made to fit": lambda q: na2d(q, q, q, 30, clamp=True),
    "circles": lambda q: na2d(q, q, q, 3, boundary="wrap"),
    "self attention": lambda q: vicinal.attention(q[:, 0], q[:, 0], q[:, 0], return_lse=True)[0],
    "plain attention": lambda q: vicinal.attention(q[:, 0], q[:, 0, :3], q[:, 0, :3]),
    "unfused": lambda q: vicinal.unfused.na2d_av(vicinal.unfused.na2d_qk(q, q, None).softmax(-1), q, None),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("call", WHOLE.values(), ids=WHOLE)
def test_traces_know_lengths(call):
    q = torch.randn(1, 6, 7, 2, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.jit.trace(call, (q,), check_trace=False)(q), call(q))


def test_a_subclass_is_watched(leaves):
    class Own(torch.Tensor):
        pass

    assert not watched(Inputs(*leaves))
    assert watched(Inputs(leaves[0].detach().as_subclass(Own), *leaves[1:]))
