"""What timm and its training program do with a model."""

import re

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2

import vicinal.models
from vicinal.models import Architecture

FAMILIES = ["dinat_mini", "dinat_s_tiny", "dinat_isotropic_small", "vitrpb_small"]
SMALL = {"nat_mini": {"depths": (1, 2, 1, 1), "dim": 32, "num_heads": (1, 2, 4, 8)}}


def small(**options):
    torch.manual_seed(0)
    return timm.create_model("nat_mini", **SMALL["nat_mini"], **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_forward(name):
    model = timm.create_model(name, num_classes=10).eval()
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 96)
        features = model.forward_features(images)
        assert features.shape == (1, *features.shape[1:3], model.num_features)
        assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
        torch.testing.assert_close(model(images), model.forward_head(features))
        assert model(images).shape == (1, 10)


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (224, 40)], ids=str)
@pytest.mark.parametrize("padding", [False, True], ids=["clamped", "padded"])
def test_images_of_any_size(size, padding):
    model = small(padding=padding, img_size=size, dilations=((2,), (1, 2), (1,), (1,)))
    assert model(torch.randn(2, 3, *size)).isfinite().all()


@pytest.mark.parametrize(("size", "same"), [(224, True), (64, False)])
def test_padding_changes_small_maps_alone(size, same):
    images = torch.randn(1, 3, size, size)
    assert torch.equal(small().eval()(images), small(padding=True).eval()(images)) is same


def test_options():
    model = small(num_classes=0, in_chans=5, drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, global_pool="")
    assert model(torch.randn(1, 5, 64, 64)).shape == (1, 2, 2, 256)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"windows": 7}, TypeError, "unexpected keyword argument 'windows'"),
        ({"global_pool": "max"}, ValueError, "global_pool must be 'avg' or ''"),
        ({"dilations": ((1,),)}, ValueError, "dilations must be one per block"),
        ({"num_heads": (1,)}, ValueError, "num_heads must be one per level"),
        ({"drop_path_rate": 2.0}, ValueError, "drop_path_rate must be from 0 to 1, got 2.0"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        timm.create_model("nat_mini", **options)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64)], ids=str)
def test_wrong_images(shape):
    message = rf"x must have shape \[B, 3, H, W\], got {re.escape(str(list(shape)))}"
    with pytest.raises(ValueError, match=message):
        small()(torch.randn(shape))
    with pytest.raises(ValueError, match=message):
        small(features_only=True)(torch.randn(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_whole_models_in_other_dtypes(dtype):
    model, images = small().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(images), model.to(dtype)(images.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("features_only", [False, True], ids=["classes", "maps"])
def test_channels_last_in_memory_changes_nothing(features_only):
    model, images = small(features_only=features_only).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        last = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected)


def test_gradients_reach_every_parameter():
    model = small(layer_scale=1e-5)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_checkpointing_of_activations_changes_nothing():
    images, grads = torch.randn(1, 3, 64, 64), []
    for enable in (False, True):
        model = small(drop_path_rate=0.0)
        model.set_grad_checkpointing(enable)
        model(images).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


def test_reset_classifier():
    model = small()
    assert model.get_classifier() is model.head
    model.reset_classifier(7)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, model.num_features)


@pytest.mark.parametrize("name", [*FAMILIES, "nat_mini"])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NHWC"])
def test_feature_maps_are_as_announced(name, output_fmt):
    model = timm.create_model(name, features_only=True, output_fmt=output_fmt).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 96))
    assert len(maps) == 4
    channels = 1 if output_fmt == "NCHW" else -1
    for feature, count, reduction in zip(maps, model.feature_info.channels(), model.feature_info.reduction()):
        tokens = feature.movedim(channels, -1)
        assert tokens.shape == (1, 64 // reduction, 96 // reduction, count)
        torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:-1]), atol=1e-5, rtol=0)  # normalised


def test_feature_maps_can_be_chosen_and_left_unnormalised():
    options = SMALL["nat_mini"] | {"features_only": True, "out_indices": (0, 2), "feature_norms": False}
    torch.manual_seed(0)
    backbone = timm.create_model("nat_mini", **options).eval()
    whole, images = small().eval(), torch.randn(1, 3, 64, 64)
    whole.load_state_dict(backbone.model.state_dict(), strict=False)
    _, maps = whole.forward_intermediates(images)
    torch.testing.assert_close(backbone(images), [maps[0], maps[2]])
    assert len(backbone.model.levels) == 3


def test_intermediates_end_with_the_features():
    model, images = small().eval(), torch.randn(1, 3, 64, 64)
    last, maps = model.forward_intermediates(images, indices=2, norm=True, output_fmt="NHWC")
    torch.testing.assert_close(maps[-1], last)
    torch.testing.assert_close(last, model.forward_features(images))
    first = model.forward_intermediates(images, [0], stop_early=True, intermediates_only=True)
    assert [m.shape for m in first] == [(1, 32, 16, 16)]
    with pytest.raises(ValueError, match="output_fmt must be"):
        model.forward_intermediates(images, output_fmt="NLC")


def test_biases_are_not_decayed_and_learning_rates_fall_with_depth():
    model = small()
    groups = create_optimizer_v2(model, opt="adamw", weight_decay=0.05, layer_decay=0.5).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    of = {names[id(p)]: group for group in groups for p in group["params"]}
    assert len(of) == len(names)
    assert {of[name]["weight_decay"] for name in of if name.endswith("rpb")} == {0.0}
    path = ("patch_embed.proj.0.weight", "levels.0.blocks.0.mlp.fc1.weight", "levels.1.blocks.1.mlp.fc1.weight")
    scales = [of[name]["lr_scale"] for name in (*path, "levels.1.downsample.reduction.weight", "head.weight")]
    assert scales == sorted(set(scales))


def test_images_are_prepared_as_published():
    config = resolve_data_config(model=small())
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == ((3, 224, 224), 0.875, "bicubic")


def test_mixed_precision_trains():
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 64, 64)).float().square().mean()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_trains_distributed(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(small())
        for _ in range(2):  # the second finds parameters without a gradient in the first
            model(torch.randn(1, 3, 64, 64)).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_compiles_in_one_graph():
    model, images = small().eval(), torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


def test_compiles_in_one_graph_with_dropout_of_attention():
    model, images = small(attn_drop_rate=0.5, drop_path_rate=0.0), torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    results = []
    for run in (model, compiled):
        torch.manual_seed(1)
        results.append(run(images))
    torch.testing.assert_close(*results)


def test_self_attention_is_what_its_table_of_positions_says():
    torch.manual_seed(0)
    attention = vicinal.models.block.GlobalAttention(8, 2, 4).double()
    x = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    query, key, value = (t.transpose(1, 2) for t in attention.qkv(x.flatten(1, 2)).unflatten(-1, (3, 2, 4)).unbind(2))
    bias = attention.rpb.flatten(1)[:, attention.relative_position_index]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias[None])
    torch.testing.assert_close(attention(x), attention.proj(expected.transpose(1, 2).flatten(-2)).view(1, 4, 4, 8))


def test_a_model_from_its_numbers_alone():
    model = vicinal.models.NAT(Architecture((1, 1), 32, (1, 2), 2, 0.0, num_classes=3))
    assert model(torch.randn(1, 3, 40, 40)).shape == (1, 3)
