"""StyleNAT's generator: what is published of it, and its parts against their definitions."""

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

import vicinal
from vicinal.models import FFHQ_256, FFHQ_1024, Generator, stylenat
from vicinal.models.stylenat import GeneratorConfig

SMALL = GeneratorConfig(((1,), (1, 2), (1, 2, 4)), (32, 32, 32, 16), style_dim=24, style_layers=2, min_heads=4)
DIMS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
HEADS = {4: 16, 8: 16, 16: 16, 32: 16, 64: 16, 128: 8, 256: 4, 512: 4, 1024: 4}


def published(size):
    """Names and shapes of a published state dict, buffers included."""
    sides = [side for side in DIMS if side <= size]
    found = {"input.input": (1, 512, 4, 4)}
    for i in range(1, 9):
        found |= {f"style.{i}.weight": (512, 512), f"style.{i}.bias": (512,)}
    for i, side in enumerate(sides):
        dim, heads = DIMS[side], HEADS[side]
        for j in range(2):
            parts = {"attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,)}
            parts |= {"attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,)}
            if side == 4:
                parts |= {"attn.rpb": (heads, 7, 7), "attn.relative_position_index": (16, 16)}
            else:
                parts |= {f"attn.rpb{half}": (heads // 2, 13, 13) for half in range(2)}
            for norm in ("norm1", "norm2"):
                parts |= {f"{norm}.style.weight": (2 * dim, 512), f"{norm}.style.bias": (2 * dim,)}
            parts |= {"mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,)}
            parts |= {"mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,)}
            found |= {f"layers.{i}.blocks.{j}.{name}": shape for name, shape in parts.items()}
        after = dim if side == size else DIMS[2 * side]
        found |= {f"to_rgbs.{i}.conv.weight": (3, after, 1, 1), f"to_rgbs.{i}.conv.bias": (3,)}
        found[f"to_rgbs.{i}.bias"] = (1, 3, 1, 1)
        if side < size:
            upsample = {"norm.weight": (dim,), "norm.bias": (dim,), "reduction.weight": (after, dim), "alpha": (1,)}
            upsample["sin_pos_embed._float_tensor"] = (1,)
            found |= {f"layers.{i}.upsample.{name}": shape for name, shape in upsample.items()}
            found[f"to_rgbs.{i}.upsample.kernel"] = (4, 4)
    return found


@pytest.mark.parametrize(("config", "millions"), [(FFHQ_256, 48.92), (FFHQ_1024, 49.45)], ids=["256", "1024"])
def test_published_parameters_names_and_shapes(config, millions):
    with torch.device("meta"):
        generator = Generator(config)
    assert round(sum(p.numel() for p in generator.parameters()) / 1e6, 2) == millions
    assert {name: tuple(t.shape) for name, t in generator.state_dict().items()} == published(config.size)


def test_published_neighborhoods():
    with torch.device("meta"):
        generator = Generator(FFHQ_1024)
    for i, side in enumerate(side for side in DIMS if side > 4):
        neighborhoods = generator.layers[i + 1].blocks[0].attn.neighborhoods
        half, far = HEADS[side] // 2, max(1, side // 8)
        assert {n.window for n in neighborhoods} == {(7, 7)}
        assert [n.dilation for n in neighborhoods] == [(1, 1)] * half + [(far, far)] * half


def test_images_and_gradients():
    torch.manual_seed(0)
    generator = Generator(SMALL)
    images = generator(torch.randn(2, 24))
    assert images.shape == (2, 3, 32, 32)
    images.square().sum().backward()
    assert not [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_checkpointing_of_activations_changes_nothing():
    torch.manual_seed(0)
    generator, noise, grads = Generator(SMALL), torch.randn(1, 24), []
    for enable in (False, True):
        generator.zero_grad()
        generator.set_grad_checkpointing(enable)
        generator(noise).square().sum().backward()
        grads.append([p.grad.clone() for p in generator.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


def test_every_block_takes_its_own_style():
    torch.manual_seed(0)
    generator = Generator(SMALL)
    styles = torch.randn(1, generator.styles, 24, requires_grad=True)
    generator.synthesize(styles).square().sum().backward()
    assert (styles.grad.abs().amax(-1) > 0).all()
    with pytest.raises(ValueError, match=r"styles must have shape \[batch, 8, 24\], got \[1, 7, 24\]"):
        generator.synthesize(styles[:, 1:])


@pytest.mark.parametrize("wrong", [[24], [1, 23]], ids=str)
def test_noise_of_another_shape_is_refused(wrong):
    with pytest.raises(ValueError, match=re.escape(f"noise must have shape [batch, 24], got {wrong}")):
        Generator(SMALL)(torch.randn(wrong))


@pytest.mark.parametrize("dilations", [(2,), (1, 2), (1, 2, 4)])
def test_split_heads_are_problems_of_their_own_in_one_launch(dilations, monkeypatch):
    torch.manual_seed(0)
    attention, x = stylenat.SplitHeads(20, 5 if len(dilations) == 3 else 4, 3, dilations), torch.randn(1, 12, 13, 20)
    calls = []
    launch = vicinal.nn.neighborhood_attention
    monkeypatch.setattr(vicinal.nn, "neighborhood_attention", lambda *a, **k: calls.append(1) or launch(*a, **k))
    output = attention(x)
    assert len(calls) == 1
    heads, width = attention.num_heads, attention.head_dim
    query, key, value = attention.qkv(x).unflatten(-1, (3, heads, width)).unbind(-3)
    sizes = {1: [4], 2: [2, 2], 3: [1, 2, 2]}[len(dilations)]
    biases = attention.bias().split(sizes)
    groups = zip(query.split(sizes, -2), key.split(sizes, -2), value.split(sizes, -2), dilations, biases)
    expected = torch.cat([vicinal.na2d(q, k, v, 3, dilation=d, rpb=b) for q, k, v, d, b in groups], -2)
    torch.testing.assert_close(output, attention.proj(expected.flatten(-2)))
    names = {name for name, _ in attention.named_parameters() if "rpb" in name}
    assert names == ({"rpb.0", "rpb.1", "rpb.2"} if len(dilations) == 3 else {"rpb0", "rpb1"})


def test_adaptive_norm_is_instance_norm_with_a_style():
    torch.manual_seed(0)
    norm, x, style = stylenat.AdaptiveInstanceNorm(6, 4).double(), torch.randn(2, 3, 5, 4).double(), torch.randn(2, 6)
    gamma, beta = norm.style(style.double())[:, :, None].chunk(2, 1)
    expected = gamma * nn.InstanceNorm1d(4)(x.flatten(1, 2).transpose(1, 2)) + beta
    torch.testing.assert_close(norm(x, style.double()), expected.transpose(1, 2).reshape(x.shape))


def test_images_are_enlarged_by_zeros_between_pixels_and_a_filter():
    image = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    spread = torch.zeros(2, 3, 10, 8, dtype=torch.float64)
    spread[..., ::2, ::2] = image
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    kernel = 4 * torch.outer(line, line) / 64
    padded = functional.pad(spread, (2, 1, 2, 1))
    expected = functional.conv2d(padded, kernel.expand(3, 1, 4, 4), groups=3)
    torch.testing.assert_close(stylenat.Enlarge()(image), expected)


def test_positions_are_sines_and_cosines_of_columns_then_rows():
    positions = stylenat.SinusoidalPositions(16, 6)()
    row, column, waves = 3, 5, 4
    for at, part in ((column, positions[row, column, :8]), (row, positions[row, column, 8:])):
        angles = [(at + 1) * math.exp(-math.log(10000) * i / (waves - 1)) for i in range(waves)]
        expected = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
        torch.testing.assert_close(part, expected, atol=1e-6, rtol=1e-5)


def test_mapping_keeps_the_variance_of_styles():
    torch.manual_seed(0)
    styles = Generator(GeneratorConfig((), (32,))).style(torch.randn(64, 512))
    assert 0.3 < styles.square().mean() < 3


@pytest.mark.parametrize("wrap", [lambda s: {"g_ema": s}, lambda s: {"state_dicts": {"g_ema": s}, "args": {}}])
def test_published_files_hold_the_averaged_generator(wrap):
    torch.manual_seed(0)
    state = {name: torch.randn(t.shape).to(t.dtype) for name, t in Generator(SMALL).state_dict().items()}
    generator = Generator(SMALL)
    generator.load_state_dict(stylenat.generator_state(wrap(state)))
    assert all(torch.equal(t, state[name]) for name, t in generator.state_dict().items())
    with pytest.raises(KeyError, match="no generator 'g_ema' in a file with 'd'"):
        stylenat.generator_state({"d": {}})


def test_dims_must_fit_dilations():
    with pytest.raises(ValueError, match="dims must be one more than dilations, got 2 and 2"):
        GeneratorConfig(((1,), (1,)), (8, 8))
