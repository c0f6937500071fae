"""Old calls compute what they say: against the oracle, in the old layouts."""

import pytest
import torch

from vicinal.compat import context, flops, natten014, natten017
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs
from vicinal.reference import reference


@pytest.fixture(autouse=True)
def settings():
    context.reset()
    yield
    context.reset()


def heads_first(*lengths: int, heads: int = 2, dim: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, heads, *lengths, dim, dtype=torch.float64) for _ in range(3)]


def oracle(tensors, rpb=None, scale=1.0, **geometry):
    q, k, v = (t.movedim(1, -2) for t in tensors)
    neighborhood = Neighborhood.of(q.ndim - 3, **geometry)
    return reference(Inputs(q, k, v, rpb=rpb), [neighborhood], scale)[0].movedim(-2, 1)


@pytest.mark.parametrize("form", ["0.14.6", "before 0.14.5"])
def test_014_functions(form):
    q, k, v = heads_first(6, 7)
    rpb = torch.randn(2, 5, 5, dtype=torch.float64)
    sizes = (3, 2) if form == "0.14.6" else (2,)
    scores = natten014.natten2dqkrpb(q, k, rpb, *sizes)
    assert scores.shape == (2, 2, 6, 7, 9)
    out = natten014.natten2dav(scores.softmax(-1), v, *sizes)
    torch.testing.assert_close(out, oracle((q, k, v), rpb, kernel_size=3, dilation=2))


def test_014_functions_take_keywords():
    q, k, v = heads_first(9)
    scores = natten014.natten1dqkrpb(q, k, None, kernel_size=5, dilation=1)
    out = natten014.natten1dav(scores.softmax(-1), v, kernel_size=5, dilation=1)
    torch.testing.assert_close(out, oracle((q, k, v), kernel_size=5))


def test_014_functions_refuse_missing_sizes():
    q, k, _ = heads_first(9)
    with pytest.raises(TypeError, match="kernel_size and dilation must be given"):
        natten014.natten1dqkrpb(q, k, None, 5)


def attend_by_hand(layer, x, **geometry):
    """The module's mathematics from its parameters, by the oracle."""
    query, key, value = layer.qkv(x).unflatten(-1, (3, layer.num_heads, layer.head_dim)).unbind(-3)
    neighborhood = Neighborhood.of(x.ndim - 2, **geometry)
    out, _ = reference(Inputs(query, key, value, rpb=layer.rpb), [neighborhood], layer.scale)
    return layer.proj(out.flatten(-2).to(x.dtype))


def test_014_module_pads_before_the_projection():
    """Zeros are projected too, so with a bias they are keys like any other: what NATTEN 0.14 computed."""
    torch.manual_seed(0)
    layer = natten014.NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=7).double()
    torch.nn.init.normal_(layer.qkv.bias)
    x = torch.randn(1, 5, 9, 8, dtype=torch.float64)
    padded = torch.cat([x, x.new_zeros(1, 2, 9, 8)], 1)
    torch.testing.assert_close(layer(x), attend_by_hand(layer, padded, kernel_size=7)[:, :5])


def test_014_parameters_have_nattens_names():
    layer = natten014.NeighborhoodAttention1D(8, 2, 3)
    assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == {
        "rpb": (2, 5),
        "qkv.weight": (24, 8),
        "qkv.bias": (24,),
        "proj.weight": (8, 8),
        "proj.bias": (8,),
    }


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_017_unfused_functions(rank):
    lengths = (5, 6, 4)[:rank]
    q, k, v = heads_first(*lengths)
    rpb = torch.randn(2, *(5,) * rank, dtype=torch.float64)
    qk, av = getattr(natten017, f"na{rank}d_qk"), getattr(natten017, f"na{rank}d_av")
    scores = qk(q, k, 3, 1, rpb=rpb)
    assert torch.equal(scores, getattr(natten017, f"na{rank}d_qkrpb")(q, k, rpb, 3))
    torch.testing.assert_close(av(scores.softmax(-1), v, 3), oracle((q, k, v), rpb, kernel_size=3))


def test_017_additional_keys_sit_in_the_last_slots():
    q, k, v = heads_first(6)
    extra_keys, extra_values = torch.randn(2, 2, 2, 3, 4, dtype=torch.float64).unbind(0)
    scores = natten017.na1d_qk(q, k, 3, 1, extra_keys, True)
    assert scores.shape == (2, 2, 6, 6)
    torch.testing.assert_close(scores[..., 3:], q @ extra_keys.transpose(-1, -2))
    out = natten017.na1d_av(scores.softmax(-1), v, 3, 1, extra_values, True)
    last = tuple(t.transpose(1, 2) for t in (q, k, v, extra_keys, extra_values))
    expected, _ = reference(Inputs(*last), [Neighborhood.of(1, 3, is_causal=True)], 1.0)
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_017_fused_has_dilation_fifth():
    q, k, v = (t.movedim(1, -2) for t in heads_first(8))
    expected, _ = reference(Inputs(q, k, v), [Neighborhood.of(1, 3, dilation=2)], 0.5)
    torch.testing.assert_close(natten017.na1d(q, k, v, 3, 2), expected)
    torch.testing.assert_close(natten017.na1d(q, k, v, 3, 2, scale=0.5), expected)


def test_017_three_dimensional_plain_functions_split_depth_from_plane():
    q, k, v = heads_first(4, 5, 6)
    scores = natten017.natten3dqk(q, k, 2, 3, 2, 1)
    out = natten017.natten3dav(scores.softmax(-1), v, 2, 3, 2, 1)
    torch.testing.assert_close(out, oracle((q, k, v), kernel_size=(2, 3, 3), dilation=(2, 1, 1)))


@pytest.mark.parametrize("fused", [False, True])
def test_017_module(fused):
    torch.manual_seed(0)
    context.use_fused_na(fused)
    layer = natten017.NeighborhoodAttention2D(8, 2, (3, 5), rel_pos_bias=True).double()
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), attend_by_hand(layer, x, kernel_size=(3, 5)))


def test_017_module_drops_attention_also_when_fused():
    """NATTEN's fused modules left attention dropout out; here it acts."""
    torch.manual_seed(0)
    context.use_fused_na()
    layer = natten017.NeighborhoodAttention1D(8, 2, 3, attn_drop=0.5)
    x = torch.randn(1, 9, 8)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_017_module_refuses_a_causal_bias():
    with pytest.raises(NotImplementedError, match="rel_pos_bias"):
        natten017.NeighborhoodAttention1D(8, 2, 3, is_causal=True, rel_pos_bias=True)


@pytest.mark.parametrize("fused", [False, True])
def test_flops_of_a_module(fused):
    context.use_fused_na(fused)
    layer = natten017.NeighborhoodAttention2D(16, 2, 3)
    tokens, window = 64, 9
    expected = tokens * 16 * 48 + tokens * 16 * 16 + 2 * tokens * window * 16
    assert flops.get_flops(layer, torch.randn(1, 8, 8, 16)) == expected


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("fused", [False, True])
def test_fvcore_handles_count_attention(fused):
    """As fvcore calls them: by the names of operators in a traced graph, with the graph's values."""
    context.use_fused_na(fused)
    layer = natten017.NeighborhoodAttention2D(16, 2, 3).eval()
    handles = {}

    class Counter:
        def set_op_handle(self, **given):
            handles.update(given)
            return self

    flops.add_natten_handle(Counter())
    graph = torch.jit.trace(layer, torch.randn(1, 8, 8, 16), check_trace=False).inlined_graph
    counted = [handles[n.kind()](list(n.inputs()), list(n.outputs())) for n in graph.nodes() if n.kind() in handles]
    assert sum(counted) == 2 * 64 * 9 * 16
