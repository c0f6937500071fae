"""Checkpoints with published names: loaded, refused, or said to be missing."""

import urllib.request
from urllib.error import URLError

import pytest
import timm
import torch

from vicinal.models.register import PUBLISHED

NUMBERS = {"depths": (1, 1, 1, 1), "dim": 32, "num_heads": (1, 2, 4, 8)}
FILE = "dinat_mini_in1k_224.pth"


def make(pretrained=False, **options):
    return timm.create_model("dinat_mini", pretrained, dilations=((1,), (4,), (2,), (1,)), **NUMBERS, **options)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Where torch.hub keeps files; there is no network."""

    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def state():
    torch.manual_seed(1)
    return {name: torch.randn_like(t) for name, t in make().state_dict().items()}


def test_a_cached_file_is_loaded(hub, state):
    torch.save(state, hub / FILE)
    loaded = make(pretrained=True).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_missing_file_is_named_with_its_place(hub):
    with pytest.raises(OSError, match=rf"imagenet1k/{FILE} .*no network.* put the file {FILE} into {hub}"):
        make(pretrained=True)


def test_the_file_of_a_tag_is_named(hub):
    with pytest.raises(OSError, match="imagenet22k/dinat_large_in22k_224.pth"), torch.device("meta"):
        timm.create_model("dinat_large.in22k_224", pretrained=True)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_loading_is_strict(hub, state, change):
    if change == "missing":
        del state["levels.3.blocks.0.attn.rpb"]
    elif change == "unexpected":
        state["levels.3.blocks.0.gamma1"] = torch.zeros(256)
    else:
        state["levels.3.blocks.0.attn.rpb"] = torch.zeros(8, 11, 11)
    torch.save(state, hub / FILE)
    with pytest.raises(RuntimeError, match=r"levels.3.blocks.0"):
        make(pretrained=True)


@pytest.mark.parametrize("container", ["state_dict", "model"])
def test_training_programs_files(tmp_path, state, container):
    torch.save({container: state, "epoch": 3}, tmp_path / "a.pth")
    loaded = make(pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "a.pth")}).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_another_head_leaves_the_rest(hub, state):
    torch.save(state, hub / FILE)
    model = make(pretrained=True, num_classes=5)
    assert model.head.weight.shape == (5, 256)
    assert torch.equal(model.norm.weight, state["norm.weight"])


def test_other_channels_adapt_the_first_convolution(hub, state):
    torch.save(state, hub / FILE)
    grey = make(pretrained=True, in_chans=1).patch_embed.proj[0].weight
    torch.testing.assert_close(grey, state["patch_embed.proj.0.weight"].sum(1, keepdim=True))


def test_a_backbone_takes_a_classifiers_weights(hub, state):
    torch.save(state, hub / FILE)
    backbone = make(pretrained=True, features_only=True).model
    assert torch.equal(backbone.levels[3].blocks[0].attn.rpb, state["levels.3.blocks.0.attn.rpb"])
    assert torch.equal(backbone.norm0.weight, torch.ones(32))


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_backbone_takes_a_detectors_weights(tmp_path, prefix):
    torch.manual_seed(1)
    own = make(feature_norms=True).state_dict()
    state = {prefix + name: torch.randn_like(t) for name, t in own.items()} | (
        {"neck.a": torch.ones(1)} if prefix else {}
    )
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    overlay = {"file": str(tmp_path / "a.pth")}
    backbone = make(pretrained=True, features_only=True, pretrained_cfg_overlay=overlay).model
    assert all(torch.equal(t, state[prefix + name]) for name, t in backbone.state_dict().items())


def test_published_files_have_names_of_their_own():
    assert PUBLISHED["dinat_mini_in1k_224"][0] == "dinat_mini.in1k_224"
    assert PUBLISHED["nat_base"][0] == "nat_base.in1k_224"
    addresses = [checkpoint.url for _, checkpoint in PUBLISHED.values()]
    assert len(set(addresses)) == len(addresses) == 24
