"""What is published of the models: parameters, names, shapes, dilations."""

import pytest
import timm
import torch

import vicinal.models

PARAMETERS = {
    "nat_mini": 19_984_174,
    "nat_tiny": 27_901_582,
    "nat_small": 50_743_297,
    "nat_base": 89_769_652,
    "dinat_mini": 19_984_174,
    "dinat_tiny": 27_901_582,
    "dinat_small": 50_719_681,
    "dinat_base": 89_769_652,
    "dinat_large": 200_943_514,
    "dinat_large_384": 200_943_514,
    "dinat_large_384_11x11": 201_144_250,
    "dinat_s_tiny": 28_288_354,
    "dinat_s_small": 49_606_258,
    "dinat_s_base": 87_768_224,
    "dinat_s_large": 196_532_476,
    "dinat_s_large_384": 196_532_476,
}
TENSORS = {
    "nat_mini": 253,
    "nat_tiny": 409,
    "nat_small": 469,
    "nat_base": 469,
    "dinat_small": 409,
    "dinat_large": 409,
    "dinat_s_tiny": 173,
    "dinat_s_small": 329,
}
ISOTROPIC = {f"{kind}_{size}" for kind in ("vitrpb", "nat_isotropic", "dinat_isotropic") for size in ("small", "base")}
MILLIONS = {"small": 22, "base": 86}  # as the paper's table rounds them


def shapes(name, **options):
    with torch.device("meta"):
        return {key: tuple(t.shape) for key, t in timm.create_model(name, **options).state_dict().items()}


def block(prefix, dim, heads, mlp, window=7, scaled=False):
    """Names and shapes in a block's part of a state dict."""
    hidden = int(dim * mlp)
    tensors = {
        "attn.rpb": (heads, 2 * window - 1, 2 * window - 1),
        "attn.qkv.weight": (3 * dim, dim),
        "attn.qkv.bias": (3 * dim,),
        "attn.proj.weight": (dim, dim),
        "attn.proj.bias": (dim,),
        "mlp.fc1.weight": (hidden, dim),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (dim, hidden),
        "mlp.fc2.bias": (dim,),
    }
    tensors |= {f"{norm}.{part}": (dim,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    tensors |= {"gamma1": (dim,), "gamma2": (dim,)} if scaled else {}
    return {prefix + key: shape for key, shape in tensors.items()}


def norm(name, dim):
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def pyramid(depths, dim, heads, mlp, window=7, scaled=False, swin=False):
    """Names and shapes of the whole state dict of NAT and DiNAT, or (swin) of DiNAT_s."""
    levels = "layers" if swin else "levels"
    if swin:
        found = {"patch_embed.proj.weight": (dim, 3, 4, 4), "patch_embed.proj.bias": (dim,)}
    else:
        found = {"patch_embed.proj.0.weight": (dim // 2, 3, 3, 3), "patch_embed.proj.0.bias": (dim // 2,)}
        found |= {"patch_embed.proj.1.weight": (dim, dim // 2, 3, 3), "patch_embed.proj.1.bias": (dim,)}
    found |= norm("patch_embed.norm", dim)
    for i, depth in enumerate(depths):
        d = dim * 2**i
        for j in range(depth):
            found |= block(f"{levels}.{i}.blocks.{j}.", d, heads[i], mlp, window, scaled)
        if i + 1 < len(depths):
            found[f"{levels}.{i}.downsample.reduction.weight"] = (2 * d, 4 * d) if swin else (2 * d, d, 3, 3)
            found |= norm(f"{levels}.{i}.downsample.norm", 4 * d if swin else 2 * d)
    return found | norm("norm", d) | {"head.weight": (1000, d), "head.bias": (1000,)}


def isotropic(dim, heads, window, whole):
    found = {"patch_embed.proj.weight": (dim, 3, 16, 16), "patch_embed.proj.bias": (dim,)}
    found |= norm("patch_embed.norm", dim)
    for j in range(12):
        found |= block(f"layers.{j}.", dim, heads, 4, window)
        found |= {f"layers.{j}.attn.relative_position_index": (196, 196)} if whole else {}
    return found | norm("norm", dim) | {"head.weight": (1000, dim), "head.bias": (1000,)}


STATES = {
    "nat_mini": pyramid((3, 4, 6, 5), 64, (2, 4, 8, 16), 3),
    "nat_base": pyramid((3, 4, 18, 5), 128, (4, 8, 16, 32), 2, scaled=True),
    "dinat_small": pyramid((3, 4, 18, 5), 96, (3, 6, 12, 24), 2),
    "dinat_large_384_11x11": pyramid((3, 4, 18, 5), 192, (6, 12, 24, 48), 2, window=11),
    "dinat_s_small": pyramid((2, 2, 18, 2), 96, (3, 6, 12, 24), 4, swin=True),
    "dinat_isotropic_small": isotropic(384, 12, 7, whole=False),
    "vitrpb_base": isotropic(768, 24, 14, whole=True),
}


def test_all_names_are_registered():
    for name in [*PARAMETERS, *ISOTROPIC]:
        assert timm.is_model(name)
        assert timm.is_model_pretrained(name)
        assert callable(vicinal.models.nat.nat_mini)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(ISOTROPIC))
def test_parameters_of_isotropic_models_are_those_of_the_paper_rounded(name):
    with torch.device("meta"):
        millions = sum(p.numel() for p in timm.create_model(name).parameters()) / 1e6
    assert abs(millions - MILLIONS[name.rpartition("_")[2]]) < 1


@pytest.mark.parametrize("name", TENSORS)
def test_state_dicts_have_as_many_tensors_as_published(name):
    assert len(shapes(name)) == TENSORS[name]


@pytest.mark.parametrize("name", STATES)
def test_state_dicts_have_the_published_names_and_shapes(name):
    assert shapes(name) == STATES[name]


def test_backbones_have_a_norm_per_output():
    names = {key.rpartition(".")[0] for key in shapes("dinat_mini", feature_norms=True)}
    assert {"norm0", "norm1", "norm2", "norm3"} <= names
    assert not {"norm", "head"} & names


@pytest.mark.parametrize(
    ("name", "dilations"),
    [
        ("nat_mini", [[1] * 3, [1] * 4, [1] * 6, [1] * 5]),
        ("dinat_mini", [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 3, [1] * 5]),
        ("dinat_large", [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 9, [1] * 5]),
        ("dinat_large_384", [[1, 13, 1], [1, 6, 1, 6], [1, 3] * 9, [1] * 5]),
        ("dinat_large_384_11x11", [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 9, [1] * 5]),
        ("dinat_s_tiny", [[1, 8], [1, 4], [1, 2] * 3, [1, 1]]),
        ("dinat_s_large_384", [[1, 13], [1, 6], [1, 3] * 9, [1, 1]]),
        ("dinat_isotropic_small", [[1, 2] * 6]),
        ("vitrpb_small", [[1] * 12]),
    ],
)
def test_dilations(name, dilations):
    with torch.device("meta"):
        model = timm.create_model(name)
    found = [m.dilation for m in model.modules() if isinstance(m, vicinal.NeighborhoodAttention2D)]
    assert found == [(d, d) for level in dilations for d in level]


def test_stochastic_depth_grows_linearly():
    with torch.device("meta"):
        model = timm.create_model("nat_mini", drop_path_rate=0.34)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for b in model.modules() if hasattr(b, "drop_path")]
    assert rates == pytest.approx([0.02 * i for i in range(18)])
