"""Hugging Face's models and ours: the same outputs from the same weights, both ways."""

from types import SimpleNamespace

import pytest
import torch

from vicinal.compat import install_as_natten, uninstall_natten
from vicinal.models import NAT, Architecture, from_transformers, to_transformers

NUMBERS = {"depths": (2, 1), "num_heads": (1, 2)}


@pytest.fixture(scope="module")
def transformers():
    install_as_natten("0.14.6")  # which Dinat wants to see
    yield pytest.importorskip("transformers")
    uninstall_natten()


def theirs(transformers, head=True, **options):
    torch.manual_seed(0)
    options = {"embed_dim": 32, "dilations": [[1, 2], [1]], "kernel_size": 5, "layer_scale_init_value": 0.5} | options
    config = transformers.DinatConfig(**{k: list(v) for k, v in NUMBERS.items()}, num_labels=7, **options)
    model = (transformers.DinatForImageClassification if head else transformers.DinatModel)(config).double().eval()
    for p in model.parameters():  # biases too are not zero
        torch.nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize("side", [64, 45, 20], ids=["fits", "odd", "padded"])
@pytest.mark.parametrize("layer_scale", [0.5, 0.0])
def test_classifier(transformers, side, layer_scale):
    model, images = (
        theirs(transformers, layer_scale_init_value=layer_scale),
        torch.randn(2, 3, side, side, dtype=torch.float64),
    )
    with torch.no_grad():
        expected = model(images).logits
        torch.testing.assert_close(from_transformers(model)(images), expected)


def test_model_without_a_head(transformers):
    model, images = theirs(transformers, head=False), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        ours = from_transformers(model).forward_features(images)
        torch.testing.assert_close(ours, model(images).last_hidden_state)


@pytest.mark.parametrize("head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("layer_scale", [0.5, 0.0])
def test_and_back(transformers, head, layer_scale):
    model = theirs(transformers, head, layer_scale_init_value=layer_scale)
    ours = from_transformers(model)
    back = to_transformers(ours)
    assert type(back) is type(model)
    assert model.config.to_diff_dict() == back.config.to_diff_dict() or not head
    assert all(torch.equal(t, back.state_dict()[name]) for name, t in model.state_dict().items())


def test_ours_to_theirs(transformers):
    torch.manual_seed(0)
    model = NAT(Architecture((2, 1), 32, (1, 2), 3, 0.1, kernel_size=5, num_classes=4)).eval()
    images = torch.randn(1, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(to_transformers(model)(images).logits, model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"), [("qkv_bias", False), ("hidden_act", "relu"), ("layer_norm_eps", 1e-6), ("patch_size", 8)]
)
def test_what_our_models_have_not_is_refused(name, value):
    config = SimpleNamespace(
        **{"patch_size": 4, "qkv_bias": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5, name: value}
    )
    with pytest.raises(ValueError, match=f"model.config.{name} must be"):
        from_transformers(SimpleNamespace(config=config))


def test_their_backbone_is_refused(transformers):
    config = transformers.DinatConfig(embed_dim=32, depths=[2, 1], num_heads=[1, 2], dilations=[[1, 2], [1]])
    with pytest.raises(ValueError, match="model must have the parameters of DinatModel or .*, not hidden_states_norms"):
        from_transformers(transformers.DinatBackbone(config))


def test_our_backbone_is_refused():
    with pytest.raises(ValueError, match="model must have a last norm"):
        to_transformers(NAT(Architecture((1,), 32, (1,), 2, 0.0, feature_norms=True)))


def test_what_is_no_model_of_theirs_or_ours_is_refused():
    with pytest.raises(TypeError, match="model must be a DinatModel or .*, got Linear"):
        from_transformers(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="model.config.patch_size must be 4, got None"):
        from_transformers(SimpleNamespace(config=SimpleNamespace()))
    with pytest.raises(TypeError, match="model must be a NAT or DiNAT .*, got Linear"):
        to_transformers(torch.nn.Linear(1, 1))
