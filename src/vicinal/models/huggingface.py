"""Hugging Face's Dinat (and, in earlier versions, Nat) to our models and back: the same weights by other names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vicinal.models.architecture import Architecture
from vicinal.models.nat import NAT

OURS_TO_THEIRS = (  # of a name in a state dict, the first that fits; the projections of query, key and value aside
    (r"patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"patch_embed\.norm", "embeddings.norm"),
    (r"levels\.(\d+)\.downsample", r"encoder.levels.\1.downsample"),
    (r"levels\.(\d+)\.blocks\.(\d+)\.norm1", r"encoder.levels.\1.layers.\2.layernorm_before"),
    (r"levels\.(\d+)\.blocks\.(\d+)\.norm2", r"encoder.levels.\1.layers.\2.layernorm_after"),
    (r"levels\.(\d+)\.blocks\.(\d+)\.attn\.proj", r"encoder.levels.\1.layers.\2.attention.output.dense"),
    (r"levels\.(\d+)\.blocks\.(\d+)\.attn", r"encoder.levels.\1.layers.\2.attention.self"),
    (r"levels\.(\d+)\.blocks\.(\d+)\.mlp\.fc1", r"encoder.levels.\1.layers.\2.intermediate.dense"),
    (r"levels\.(\d+)\.blocks\.(\d+)\.mlp\.fc2", r"encoder.levels.\1.layers.\2.output.dense"),
    (r"levels\.(\d+)\.blocks\.(\d+)\.gamma[12]", r"encoder.levels.\1.layers.\2.layer_scale_parameters"),
    (r"norm", "layernorm"),
    (r"head", "classifier"),
)
PARTS = ("query", "key", "value")
ONLY = {"patch_size": 4, "qkv_bias": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5}  # what our models have


def from_transformers(model: Any) -> NAT:
    """Our model with the weights of Hugging Face's: the same outputs, up to rounding, also where maps are padded.

    Outputs are those of transformers until 4.53. Dinat in 4.57 and in 5.24 takes rows of its maps for heads, and has
    other outputs than the published models.

    Args:
        model: a `DinatModel` or `DinatForImageClassification`, or a `Nat` of versions that had it. Of a model without
            a head, `forward_features` gives its `last_hidden_state`.

    Returns:
        the model, in evaluation mode, of the same dtype and on the same device.

    Raises:
        TypeError: it is no model of Hugging Face's.
        ValueError: its configuration says what our models have not, or its parameters are others (a `DinatBackbone`'s).
    """
    config = getattr(model, "config", None)
    if config is None:
        raise TypeError(f"model must be a DinatModel or DinatForImageClassification, got {type(model).__name__}")
    for name, value in ONLY.items():
        if (found := getattr(config, name, None)) != value:
            raise ValueError(f"model.config.{name} must be {value!r}, got {found!r}")
    theirs = _bare(model.state_dict())
    dilations = getattr(config, "dilations", None)
    architecture = Architecture(
        tuple(config.depths),
        config.embed_dim,
        tuple(config.num_heads),
        config.mlp_ratio,
        config.drop_path_rate,
        kernel_size=config.kernel_size,
        dilations=None if dilations is None else tuple(map(tuple, dilations)),
        layer_scale=config.layer_scale_init_value or None,
        num_classes=theirs["classifier.bias"].shape[0] if "classifier.bias" in theirs else 0,
        in_chans=config.num_channels,
        proj_drop_rate=config.hidden_dropout_prob,
        attn_drop_rate=config.attention_probs_dropout_prob,
        padding=True,
    )
    ours = NAT(architecture).to(next(model.parameters()))
    others = set(_by_their_names(ours.state_dict())) ^ set(theirs)
    if others:
        raise ValueError(
            f"model must have the parameters of DinatModel or DinatForImageClassification, not {min(others)}"
        )
    ours.load_state_dict({name: _theirs(name, theirs) for name in ours.state_dict()})
    return ours.eval()


def to_transformers(model: NAT) -> Any:
    """Hugging Face's model with the weights of ours: the inverse of `from_transformers`.

    Args:
        model: a NAT or DiNAT.

    Returns:
        a `DinatForImageClassification`, or without a head a `DinatModel`, in evaluation mode. Hugging Face's model
        wants NATTEN: `vicinal.compat.install_as_natten("0.14.6")` before transformers is imported provides it.

    Raises:
        TypeError: it is another model.
        ImportError: there is no transformers, or no NATTEN.
        ValueError: the model has what Hugging Face's has not.
    """
    if not isinstance(model, NAT):
        raise TypeError(f"model must be a NAT or DiNAT of vicinal.models, got {type(model).__name__}")
    from transformers import DinatConfig, DinatForImageClassification, DinatModel

    a = model.architecture
    if a.feature_norms or model.global_pool != "avg":
        raise ValueError("model must have a last norm and the mean over tokens, as a classifier has")
    config = DinatConfig(
        num_channels=a.in_chans,
        embed_dim=a.dim,
        depths=list(a.depths),
        num_heads=list(a.num_heads),
        kernel_size=a.kernel_size,
        dilations=[[a.dilation(level, i) for i in range(depth)] for level, depth in enumerate(a.depths)],
        mlp_ratio=float(a.mlp_ratio),
        hidden_dropout_prob=a.proj_drop_rate,
        attention_probs_dropout_prob=a.attn_drop_rate,
        drop_path_rate=a.drop_path_rate,
        layer_scale_init_value=a.layer_scale or 0.0,
        num_labels=model.num_classes or 2,
    )
    made = (DinatForImageClassification if model.num_classes else DinatModel)(config)
    state = _by_their_names(model.state_dict())
    if model.num_classes:
        state = {name if name.startswith("classifier.") else f"dinat.{name}": t for name, t in state.items()}
    made.to(next(model.parameters())).load_state_dict(state)
    return made.eval()


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the name of the model within the classifier."""
    return {re.sub(r"^(?:dinat|nat)\.", "", name): t for name, t in state.items()}


def _their_name(name: str) -> str:
    for ours, theirs in OURS_TO_THEIRS:
        found = re.match(ours, name)
        if found:
            return found.expand(theirs) + name[found.end() :]
    raise KeyError(name)


def _theirs(name: str, state: Mapping[str, Tensor]) -> Tensor:
    """The tensor that stands in their state dict for one of ours."""
    theirs = _their_name(name)
    if ".qkv." in theirs:
        return torch.cat([state[theirs.replace("qkv", part)] for part in PARTS])
    if "gamma" in name:
        return state[theirs][int(name[-1]) - 1]
    return state[theirs]


def _by_their_names(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict as theirs."""
    state: dict[str, Tensor] = {}
    for name, t in ours.items():
        theirs = _their_name(name)
        if ".qkv." in theirs:
            state |= {theirs.replace("qkv", part): third for part, third in zip(PARTS, t.chunk(3))}
        elif "gamma" in name:
            state[theirs] = torch.stack([state[theirs], t]) if theirs in state else t
        else:
            state[theirs] = t
    return state
