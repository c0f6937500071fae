"""Old calls compute what they say: against the oracle, in the old layouts."""

import pytest
import torch

import vicinal
from vicinal.compat import context, flops
from vicinal.compat.history import modules_of
from vicinal.compat.versions import parse
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs
from vicinal.reference import reference


def functional(version):
    return modules_of(parse(version))["natten.functional"]


def modules(version):
    return modules_of(parse(version))["natten"]


def heads_first(*lengths: int, heads: int = 2, dim: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, heads, *lengths, dim, dtype=torch.float64) for _ in range(3)]


def oracle(tensors, rpb=None, scale=1.0, **geometry):
    q, k, v = (t.movedim(1, -2) for t in tensors)
    neighborhood = Neighborhood.of(q.ndim - 3, **geometry)
    return reference(Inputs(q, k, v, rpb=rpb), [neighborhood], scale)[0].movedim(-2, 1)


@pytest.mark.parametrize("version", ["0.14.6", "0.14.4"])
def test_014_functions(version):
    q, k, v = heads_first(6, 7)
    rpb = torch.randn(2, 5, 5, dtype=torch.float64)
    sizes = (3, 2) if version == "0.14.6" else (2,)
    natten = functional(version)
    scores = natten.natten2dqkrpb(q, k, rpb, *sizes)
    assert scores.shape == (2, 2, 6, 7, 9)
    out = natten.natten2dav(scores.softmax(-1), v, *sizes)
    torch.testing.assert_close(out, oracle((q, k, v), rpb, kernel_size=3, dilation=2))


def test_014_functions_take_keywords():
    q, k, v = heads_first(9)
    natten = functional("0.14")
    scores = natten.natten1dqkrpb(q, k, None, kernel_size=5, dilation=1)
    out = natten.natten1dav(scores.softmax(-1), v, kernel_size=5, dilation=1)
    torch.testing.assert_close(out, oracle((q, k, v), kernel_size=5))


def test_014_functions_refuse_missing_sizes():
    q, k, _ = heads_first(9)
    with pytest.raises(TypeError, match="natten1dqkrpb.*missing a required argument: 'dilation'"):
        functional("0.14").natten1dqkrpb(q, k, None, 5)
    with pytest.raises(TypeError, match="rpb must be a torch.Tensor"):
        functional("0.14.4").natten1dqkrpb(q, k, None, 1)


def attend_by_hand(layer, x, **geometry):
    """The module's mathematics from its parameters, by the oracle."""
    query, key, value = layer.qkv(x).unflatten(-1, (3, layer.num_heads, layer.head_dim)).unbind(-3)
    neighborhood = Neighborhood.of(x.ndim - 2, **geometry)
    out, _ = reference(Inputs(query, key, value, rpb=layer.rpb), [neighborhood], layer.scale)
    return layer.proj(out.flatten(-2).to(x.dtype))


def test_014_module_pads_before_the_projection():
    """Zeros are projected too, so with a bias they are keys like any other: what NATTEN 0.14 computed."""
    torch.manual_seed(0)
    layer = modules("0.14").NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=7).double()
    torch.nn.init.normal_(layer.qkv.bias)
    x = torch.randn(1, 5, 9, 8, dtype=torch.float64)
    padded = torch.cat([x, x.new_zeros(1, 2, 9, 8)], 1)
    torch.testing.assert_close(layer(x), attend_by_hand(layer, padded, kernel_size=7)[:, :5])


def test_014_parameters_have_nattens_names():
    layer = modules("0.14").NeighborhoodAttention1D(8, 2, 3)
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
    natten = functional("0.17")
    qk, av = getattr(natten, f"na{rank}d_qk"), getattr(natten, f"na{rank}d_av")
    scores = qk(q, k, 3, 1, rpb=rpb)
    torch.testing.assert_close(av(scores.softmax(-1), v, 3, 1), oracle((q, k, v), rpb, kernel_size=3))


def test_017_additional_keys_sit_in_the_last_slots():
    q, k, v = heads_first(6)
    extra_keys, extra_values = torch.randn(2, 2, 2, 3, 4, dtype=torch.float64).unbind(0)
    natten = functional("0.17")
    scores = natten.na1d_qk(q, k, 3, 1, extra_keys, True)
    assert scores.shape == (2, 2, 6, 6)
    torch.testing.assert_close(scores[..., 3:], q @ extra_keys.transpose(-1, -2))
    out = natten.na1d_av(scores.softmax(-1), v, 3, 1, extra_values, True)
    last = tuple(t.transpose(1, 2) for t in (q, k, v, extra_keys, extra_values))
    expected, _ = reference(Inputs(*last), [Neighborhood.of(1, 3, is_causal=True)], 1.0)
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_017_fused_has_dilation_fifth():
    q, k, v = (t.movedim(1, -2) for t in heads_first(8))
    expected, _ = reference(Inputs(q, k, v), [Neighborhood.of(1, 3, dilation=2)], 0.5)
    torch.testing.assert_close(functional("0.17").na1d(q, k, v, 3, 2), expected)
    torch.testing.assert_close(functional("0.17").na1d(q, k, v, 3, 2, scale=0.5), expected)


def test_017_three_dimensional_plain_functions_split_depth_from_plane():
    q, k, v = heads_first(4, 5, 6)
    natten = functional("0.17.1")
    scores = natten.natten3dqk(q, k, 2, 3, 2, 1)
    out = natten.natten3dav(scores.softmax(-1), v, 2, 3, 2, 1)
    torch.testing.assert_close(out, oracle((q, k, v), kernel_size=(2, 3, 3), dilation=(2, 1, 1)))


@pytest.mark.parametrize("fused", [False, True])
def test_017_module(fused):
    torch.manual_seed(0)
    context.use_fused_na(fused)
    layer = modules("0.17").NeighborhoodAttention2D(8, 2, (3, 5), rel_pos_bias=True).double()
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), attend_by_hand(layer, x, kernel_size=(3, 5)))


def test_017_module_drops_attention_also_when_fused():
    """NATTEN's fused modules left attention dropout out; here it acts."""
    torch.manual_seed(0)
    context.use_fused_na()
    layer = modules("0.17").NeighborhoodAttention1D(8, 2, 3, attn_drop=0.5)
    x = torch.randn(1, 9, 8)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_017_module_refuses_a_causal_bias():
    with pytest.raises(NotImplementedError, match="rel_pos_bias"):
        modules("0.17").NeighborhoodAttention1D(8, 2, 3, is_causal=True, rel_pos_bias=True)


@pytest.mark.parametrize("kind", ["qk", "qk_with_bias"])
def test_015_three_dimensional_functions_split_depth_from_plane(kind):
    q, k, v = heads_first(4, 5, 6)
    rpb = torch.randn(2, 3, 5, 5, dtype=torch.float64) if kind == "qk_with_bias" else None
    natten = functional("0.15")
    bias = () if rpb is None else (rpb,)
    scores = getattr(natten, f"na3d_{kind}")(q, k, *bias, 2, 3, 2, 1)
    out = natten.na3d_av(scores.softmax(-1), v, 2, 3, 2, 1)
    torch.testing.assert_close(out, oracle((q, k, v), rpb, kernel_size=(2, 3, 3), dilation=(2, 1, 1)))


def test_015_module_has_a_bias_by_default_and_pads():
    """The fifth argument is `bias` there, where 0.17 has `is_causal`."""
    torch.manual_seed(0)
    layer = modules("0.15").NeighborhoodAttention2D(8, 2, 7, 1, True).double()
    assert layer.rpb.shape == (2, 13, 13)
    assert layer.is_causal is False
    x = torch.randn(1, 5, 9, 8, dtype=torch.float64)
    padded = torch.cat([x, x.new_zeros(1, 2, 9, 8)], 1)
    torch.testing.assert_close(layer(x), attend_by_hand(layer, padded, kernel_size=7)[:, :5])


def test_015_three_dimensional_module_has_a_depth_of_its_own():
    torch.manual_seed(0)
    layer = modules("0.15").NeighborhoodAttention3D(8, 2, 3, kernel_size_d=5, dilation=2, dilation_d=1).double()
    assert (layer.kernel_size, layer.kernel_size_d, layer.dilation, layer.dilation_d) == (3, 5, 2, 1)
    assert (layer.window_size, layer.rpb.shape) == (6, (2, 9, 5, 5))
    x = torch.randn(1, 4, 6, 7, 8, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 0, 0, 1))
    expected = attend_by_hand(layer, padded, kernel_size=(5, 3, 3), dilation=(1, 2, 2))[:, :4]
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("version", ["0.14.1", "0.14.4"])
def test_before_0145_the_window_came_before_the_heads(version):
    layer = modules(version).NeighborhoodAttention(8, 3, 2)
    assert (layer.kernel_size, layer.num_heads, layer.dilation) == (3, 2, 1)
    assert layer.rpb.shape == (2, 5, 5)


@pytest.mark.parametrize("lengths", [(9, 7), (2, 5)])
def test_0141_a_dilation_in_words_is_the_largest_that_fits(lengths):
    torch.manual_seed(0)
    layer = modules("0.14.1").NeighborhoodAttention2D(8, 3, 2, dilation="max").double()
    x = torch.randn(1, *lengths, 8, dtype=torch.float64)
    padded = x if lengths == (9, 7) else torch.cat([x, x.new_zeros(1, 1, 5, 8)], 1)
    expected = attend_by_hand(layer, padded, kernel_size=3, dilation=2 if lengths == (9, 7) else 1)
    torch.testing.assert_close(layer(x), expected[:, : lengths[0]])


@pytest.mark.parametrize("version", ["0.14.1", "0.14.6", "0.15", "0.17", "0.20.0", "0.20", "0.21.0", "0.21"])
def test_a_dilation_of_none_is_one(version):
    torch.manual_seed(0)
    arguments = (8, 3, 2) if version == "0.14.1" else (8, 2, 3)
    layer = modules(version).NeighborhoodAttention2D(*arguments, dilation=None)
    other = modules(version).NeighborhoodAttention2D(*arguments, dilation=1)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(1, 5, 6, 8)
    assert torch.equal(layer(x), other(x))


def test_a_stride_and_a_dilation_of_none_are_one_in_functions():
    q, k, v = (t.movedim(1, -2) for t in heads_first(6))
    natten = functional("0.21")
    assert torch.equal(natten.na1d(q, k, v, 3, None, None, None), natten.na1d(q, k, v, 3))
    old = functional("0.17")
    assert torch.equal(old.na1d(q, k, v, 3, None, None), old.na1d(q, k, v, 3))
    first = [t.movedim(-2, 1) for t in (q, k)]
    assert torch.equal(old.na1d_qk(*first, 3, None), old.na1d_qk(*first, 3))


@pytest.mark.parametrize(
    ("version", "name", "arguments"),
    [
        ("0.14.1", "NATTEN1DQKRPBFunction", "query key rpb 2"),
        ("0.14.6", "NATTEN1DQKRPBFunction", "query key rpb 3 2"),
        ("0.15.0", "NeighborhoodAttention1DQKAutogradFunction", "query key rpb 3 2"),
        ("0.15.1", "NeighborhoodAttention1DQKAutogradFunction", "query key rpb none 3 2"),
        ("0.17.5", "NeighborhoodAttention1DQKAutogradFunction", "query key rpb none 3 2 no"),
    ],
)
def test_autograd_functions_have_apply(version, name, arguments):
    query, key, _ = heads_first(8)
    rpb = torch.randn(2, 5, dtype=torch.float64).requires_grad_()
    named = {"query": query, "key": key, "rpb": rpb, "none": None, "no": False, "2": 2, "3": 3}
    scores = getattr(functional(version), name).apply(*(named[word] for word in arguments.split()))
    expected = functional("0.17.1").natten1dqkrpb(query, key, rpb, 3, 2)
    assert torch.equal(scores, expected)
    assert torch.equal(*(torch.autograd.grad(s.square().sum(), rpb)[0] for s in (scores, expected)))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("version", ["0.14", "0.15", "0.17"])
def test_modules_with_a_bias_run_under_autocast(version, fused):
    context.use_fused_na(fused)
    bias = "rel_pos_bias" if version == "0.17" else "bias"
    layer, x = modules(version).NeighborhoodAttention1D(8, 2, 3, **{bias: True}), torch.randn(1, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), atol=0.03, rtol=0.03)


def test_017_causal_has_no_bias_and_020_scale_zero_is_the_default():
    q, k, v = (t.movedim(1, -2) for t in heads_first(6))
    natten = functional("0.20")
    assert torch.equal(natten.na1d(q, k, v, 3, scale=0), natten.na1d(q, k, v, 3))
    assert modules("0.20").NeighborhoodAttention1D(8, 2, 3, qk_scale=0.0).scale == 0.5


def test_merging_gives_the_output_alone_until_0211():
    q, k, v = (t.movedim(1, -2) for t in heads_first(6))
    parts = [vicinal.na1d(q, k, v, window, return_lse=True) for window in (3, 5)]
    outputs, lses = zip(*parts)
    expected = vicinal.merge_attentions(outputs, lses)
    assert torch.equal(functional("0.21.1").merge_attentions(list(outputs), list(lses)), expected[0])
    merged = functional("0.21.5").merge_attentions(list(outputs), list(lses), use_autograd_fix=False)
    assert all(torch.equal(a, b) for a, b in zip(merged, expected))


def test_until_0211_the_fourth_argument_of_attention_is_the_scale():
    q, k, v = (t.movedim(1, -2) for t in heads_first(6))
    torch.testing.assert_close(functional("0.21.1").attention(q, k, v, 0.3), vicinal.attention(q, k, v, scale=0.3))


def test_from_0215_the_fourth_argument_of_attention_is_causality():
    q, k, v = (t.movedim(1, -2) for t in heads_first(6))
    natten = functional("0.21.5")
    expected, _ = reference(Inputs(q, k, v), [Neighborhood.of(1, 6, is_causal=True)], 0.5)
    torch.testing.assert_close(natten.attention(q, k, v, True), expected)
    torch.testing.assert_close(natten.attention(q, k, v, True, 0), expected)


def test_0215_lengths_vary():
    q, k, v = (t.movedim(1, -2)[:1] for t in heads_first(9))
    natten = modules_of(parse("0.21.5"))
    lengths = torch.tensor([2, 3, 4], dtype=torch.int32)
    parameters = natten["natten.utils.varlen"].generate_varlen_parameters(q, k, v, lengths, lengths)
    assert [t.tolist() for t in parameters[:2]] == [[0, 2, 5, 9]] * 2
    assert parameters[2:] == (4, 4)
    names = ("cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")
    out = natten["natten"].attention(q, k, v, **dict(zip(names, parameters)))
    parts = [natten["natten"].attention(*(t[:, a:b] for t in (q, k, v))) for a, b in ((0, 2), (2, 5), (5, 9))]
    torch.testing.assert_close(out, torch.cat(parts, 1))


@pytest.mark.parametrize("version", ["0.20.0", "0.21.7"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_generic_function_takes_its_rank_from_the_tensors(version, rank):
    q, k, v = (t.movedim(1, -2) for t in heads_first(*(4, 5, 6)[:rank]))
    natten = functional(version)
    expected = getattr(natten, f"na{rank}d")(q, k, v, 3, is_causal=True)
    assert torch.equal(natten.neighborhood_attention_generic(q, k, v, 3, is_causal=True), expected)
    with pytest.raises(ValueError, match="query must be"):
        natten.neighborhood_attention_generic(q.flatten(0, -3), k, v, 3)


def test_the_generic_module_is_the_class_of_the_ranked_ones():
    natten = modules_of(parse("0.21"))["natten.modules"]
    layer = natten.NeighborhoodAttention2D(8, 2, 3)
    assert isinstance(layer, natten.NeighborhoodAttentionGeneric)
    generic = natten.NeighborhoodAttentionGeneric(2, 8, 2, 3)
    generic.load_state_dict(layer.state_dict())
    x = torch.randn(1, 4, 5, 8)
    assert torch.equal(generic(x), layer(x))
    assert (generic.na_dim, generic.kernel_size, generic.stride) == (2, (3, 3), (1, 1))


@pytest.mark.parametrize("version", ["0.14.6", "0.15", "0.17", "0.21"])
def test_setting_a_module_s_attributes_acts(version):
    torch.manual_seed(0)
    natten = modules(version)
    layer = natten.NeighborhoodAttention1D(8, 2, 3)
    layer.register_parameter("rpb", None) if hasattr(layer, "rpb") else None
    other = natten.NeighborhoodAttention1D(8, 2, 5, dilation=2)
    other.register_parameter("rpb", None) if hasattr(other, "rpb") else None
    other.load_state_dict(layer.state_dict())
    x = torch.randn(1, 11, 8)
    assert not torch.equal(layer(x), other(x))
    layer.kernel_size, layer.dilation = other.kernel_size, other.dilation
    assert torch.equal(layer(x), other(x))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_masks_are_neighborhoods():
    flex = modules_of(parse("0.17.5"))["natten.flex"]
    q, k, v = (t.movedim(1, -2).float() for t in heads_first(4, 5))
    assert flex.can_run_flex_attention(q.shape)
    out = flex.flex_na2d(q, k, v, 3, 1, (True, False))
    flat = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
    mask = flex.get_na_flex_mask(2, (4, 5), 3, 1, (True, False))
    masked = torch.nn.attention.flex_attention.flex_attention(*flat, block_mask=mask)
    torch.testing.assert_close(masked.transpose(1, 2).unflatten(1, (4, 5)), out)


@pytest.mark.parametrize("fused", [False, True])
def test_flops_of_a_module(fused):
    context.use_fused_na(fused)
    layer = modules("0.17").NeighborhoodAttention2D(16, 2, 3)
    tokens, window = 64, 9
    expected = tokens * 16 * 48 + tokens * 16 * 16 + 2 * tokens * window * 16
    assert flops.get_flops(layer, torch.randn(1, 8, 8, 16)) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("fna_flop_count", 2), ("na_qk_flop_count", 1), ("na_av_flop_count", 1)]
)
def test_counts_from_shapes(name, expected):
    shape, window = (2, 5, 6, 3, 4), (3, 5)
    shapes = [shape] * (3 if name == "fna_flop_count" else 2)
    count = getattr(modules_of(parse("0.17.5"))["natten.flops"], name)
    products = expected * 2 * 5 * 6 * 3 * 4 * 15
    assert count(*shapes, window, (1, 1), (False, False), True) == 2 * products
    assert count(*shapes, window, (1, 1), (False, False), True, return_macs=True) == products


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("fused", [False, True])
def test_fvcore_handles_count_attention(fused):
    """As fvcore calls them: by the names of operators in a traced graph, with the graph's values."""
    context.use_fused_na(fused)
    layer = modules("0.17").NeighborhoodAttention2D(16, 2, 3).eval()
    handles = {}

    class Counter:
        def set_op_handle(self, **given):
            handles.update(given)
            return self

    flops.add_natten_handle(Counter())
    graph = torch.jit.trace(layer, torch.randn(1, 8, 8, 16), check_trace=False).inlined_graph
    counted = [handles[n.kind()](list(n.inputs()), list(n.outputs())) for n in graph.nodes() if n.kind() in handles]
    assert sum(counted) == 2 * 64 * 9 * 16
