"""The modules."""

import copy
import pickle

import pytest
import torch

import vicinal

MODULES = {
    1: vicinal.NeighborhoodAttention1D,
    2: vicinal.NeighborhoodAttention2D,
    3: vicinal.NeighborhoodAttention3D,
}
NA = {1: vicinal.na1d, 2: vicinal.na2d, 3: vicinal.na3d}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_module_is_projections_around_the_function(rank):
    torch.manual_seed(0)
    module = MODULES[rank](12, 3, 3, stride=2, is_causal=True, qk_scale=0.0 if rank == 1 else None).double()
    x = torch.randn(2, *(5, 6, 4)[:rank], 12, dtype=torch.float64)
    query, key, value = module.qkv(x).unflatten(-1, (3, 3, 4)).unbind(-3)
    scale = 0.0 if rank == 1 else 0.5
    expected = module.proj(NA[rank](query, key, value, 3, stride=2, is_causal=True, scale=scale).flatten(-2))
    torch.testing.assert_close(module(x), expected)


def test_state_dict_has_the_established_names():
    names = set(vicinal.NeighborhoodAttention2D(8, 2, 3).state_dict())
    assert names == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert "qkv.bias" not in vicinal.NeighborhoodAttention2D(8, 2, 3, qkv_bias=False).state_dict()


def test_dropout_only_in_training():
    module = vicinal.NeighborhoodAttention1D(8, 2, 3, proj_drop=0.5)
    x = torch.randn(1, 6, 8)
    assert (module(x) == 0).any()
    assert torch.equal(module.eval()(x), module(x))


def test_repr_tells_the_neighborhood():
    text = repr(vicinal.NeighborhoodAttention2D(8, 2, (3, 5), dilation=2))
    assert "kernel_size=(3, 5)" in text
    assert "dilation=(2, 2)" in text
    assert not any(word in text for word in ("boundary", "rpb", "fit"))  # as NATTEN's, where nothing is ours


def test_repr_tells_what_is_not_usual():
    text = repr(vicinal.NeighborhoodAttention2D(8, 2, 3, rpb=True, fit="pad", boundary=("wrap", "shift")))
    assert "boundary=('wrap', 'shift'), rpb=True, fit='pad'\n" in text


def test_attributes_are_tuples_per_axis():
    module = vicinal.NeighborhoodAttention2D(8, 2, 5, stride=(2, 1), dilation=None, is_causal=(True, False))
    assert (module.na_dim, module.kernel_size, module.stride) == (2, (5, 5), (2, 1))
    assert (module.dilation, module.is_causal, module.boundary) == ((1, 1), (True, False), ("shift", "shift"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("kernel_size", 5), ("stride", [2, 1]), ("dilation", (2, 1)), ("is_causal", True), ("boundary", "clip")],
)
def test_setting_an_attribute_acts(name, value):
    torch.manual_seed(0)
    module, x = vicinal.NeighborhoodAttention2D(8, 2, 3), torch.randn(1, 7, 8, 8)
    module(x)
    setattr(module, name, value)
    other = vicinal.NeighborhoodAttention2D(8, 2, **{"kernel_size": 3, name: value})
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(x), other(x))


def test_an_attribute_set_wrongly_raises_at_once_and_changes_nothing():
    module = vicinal.NeighborhoodAttention2D(8, 2, 3)
    with pytest.raises(ValueError, match="stride must not exceed kernel_size"):
        module.stride = 4
    assert module.stride == (1, 1)


def test_device_and_dtype():
    module = vicinal.NeighborhoodAttention1D(8, 2, 3, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}


def test_under_autocast_the_inputs_dtype_may_differ():
    module, x = vicinal.NeighborhoodAttention1D(8, 2, 3), torch.randn(1, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x.bfloat16()).dtype == torch.bfloat16


def test_a_layer_put_in_place_of_a_projection_has_its_own_dtypes():
    class Casting(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)

    module, x = vicinal.NeighborhoodAttention1D(8, 2, 3), torch.randn(1, 6, 8, dtype=torch.float64)
    module.qkv, module.proj = Casting(8, 24), Casting(8, 8)
    assert module(x).dtype == torch.float64


@pytest.mark.parametrize("copied", [lambda module: pickle.loads(pickle.dumps(module)), copy.deepcopy])
def test_pickled_and_copied_modules_are_the_same(copied):
    torch.manual_seed(0)
    module = vicinal.NeighborhoodAttention2D(8, 2, 3, stride=2, is_causal=(True, False), boundary="clip")
    module.kernel_size = (3, 5)
    x = torch.randn(1, 7, 8, 8)
    other = copied(module)
    assert torch.equal(other(x), module(x))
    assert (other.kernel_size, other.stride) == ((3, 5), (2, 2))


def test_a_module_that_has_attributes_for_a_neighborhood_is_loaded():
    """So NATTEN's own modules are pickled."""
    torch.manual_seed(0)
    module, x = vicinal.NeighborhoodAttention2D(8, 2, 5, dilation=(1, 2), is_causal=True), torch.randn(1, 7, 10, 8)
    state = module.__dict__.copy()
    del state["neighborhoods"], state["embed_dim"], state["fit"]
    state |= {"na_dim": 2, "kernel_size": (5, 5), "stride": (1, 1), "dilation": (1, 2), "is_causal": (True, True)}
    loaded = vicinal.NeighborhoodAttention2D.__new__(vicinal.NeighborhoodAttention2D)
    loaded.__setstate__(state)
    assert torch.equal(loaded(x), module(x))
    assert loaded.dilation == (1, 2)


def per_head(*dilations, window=3):
    return [vicinal.Neighborhood.of(2, window, dilation=d) for d in dilations]


def test_heads_have_neighborhoods_of_their_own():
    torch.manual_seed(0)
    module, x = vicinal.NeighborhoodAttention2D(8, 2, per_head(1, 2), rpb=True), torch.randn(1, 7, 8, 8)
    query, key, value = module.qkv(x).unflatten(-1, (3, 2, 4)).unbind(-3)
    heads = [
        vicinal.na2d(*(t[..., h : h + 1, :] for t in (query, key, value)), 3, dilation=d, rpb=module.rpb[h : h + 1])
        for h, d in enumerate((1, 2))
    ]
    torch.testing.assert_close(module(x), module.proj(torch.cat(heads, -2).flatten(-2)))
    assert module.kernel_size == (3, 3)
    with pytest.raises(ValueError, match="dilation differs between heads"):
        _ = module.dilation
    assert repr(module).count("dilation=") == 2
    module.kernel_size = 1
    assert [n.dilation for n in module.neighborhoods] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": per_head(1)}, "kernel_size must be 2 Neighborhoods of 2 axes, one per head"),
        ({"kernel_size": per_head(1, 1), "dilation": 2}, "leave stride, dilation"),
        ({"kernel_size": (3, None), "rpb": True}, "rpb needs a kernel_size on every axis"),
        (
            {"kernel_size": [*per_head(1), *per_head(1, window=5)], "rpb": True},
            "rpb needs one kernel_size for all heads",
        ),
        ({"kernel_size": 3, "fit": "crop"}, "fit must be one of .* got 'crop'"),
        ({"kernel_size": 3, "attn_drop": 2.0}, "attn_drop must be from 0 to 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        vicinal.NeighborhoodAttention2D(8, 2, **arguments)


@pytest.mark.parametrize("windows", [3, per_head(1, 2)], ids=["one", "per head"])
def test_dropout_of_attention_weights_averages_to_what_is_without(windows):
    torch.manual_seed(0)
    module = vicinal.NeighborhoodAttention2D(8, 2, windows, rpb=True, attn_drop=0.3).double()
    x = torch.randn(1, 7, 8, 8, dtype=torch.float64)
    dropped = torch.stack([module(x) for _ in range(400)])
    assert dropped.std(0).min() > 0
    error = (dropped.mean(0) - module.eval()(x)) / (dropped.std(0) / 400**0.5)
    assert error.abs().max() < 5  # standard errors of the mean
    module.train().attn_drop.p = 1e-9  # the unfused operators, and nothing dropped
    torch.testing.assert_close(module(x), module.eval()(x))


def test_dropout_of_attention_weights_around_a_circle_is_refused_in_training_only():
    module, x = vicinal.NeighborhoodAttention1D(8, 2, 3, boundary="wrap", attn_drop=0.3), torch.randn(1, 6, 8)
    with pytest.raises(ValueError, match="attn_drop must be 0 in training where boundary is 'wrap', got 0.3"):
        module(x)
    assert module.eval()(x).shape == x.shape


def test_dropout_of_attention_weights_keeps_the_bias_of_windows_that_are_made_to_fit():
    torch.manual_seed(0)
    module = vicinal.NeighborhoodAttention2D(8, 2, 5, rpb=True, fit="clamp", attn_drop=1e-9)
    torch.nn.init.normal_(module.rpb)
    x = torch.randn(1, 3, 4, 8)
    torch.testing.assert_close(module(x), module.eval()(x))


def test_short_axes_take_the_largest_window_that_fits():
    torch.manual_seed(0)
    module, x = vicinal.NeighborhoodAttention2D(8, 2, 5, dilation=3, rpb=True, fit="clamp"), torch.randn(1, 4, 11, 8)
    query, key, value = module.qkv(x).unflatten(-1, (3, 2, 4)).unbind(-3)
    expected = vicinal.na2d(query, key, value, (1, 3), dilation=3, rpb=module.rpb[:, 4:5, 2:7])
    torch.testing.assert_close(module(x), module.proj(expected.flatten(-2)))


def test_short_axes_are_padded_with_attended_zeros():
    torch.manual_seed(0)
    module, x = vicinal.NeighborhoodAttention2D(8, 2, 5, dilation=3, rpb=True, fit="pad"), torch.randn(1, 4, 16, 8)
    padded = torch.cat([x, torch.zeros(1, 11, 16, 8)], 1)
    torch.testing.assert_close(module(x), module(padded)[:, :4])
    assert module(x).shape == x.shape


def test_short_axes_raise_by_default():
    with pytest.raises(ValueError, match=r"kernel_size \* dilation must not exceed the axis"):
        vicinal.NeighborhoodAttention1D(8, 2, 5)(torch.randn(1, 4, 8))
