"""Models registered with timm, each under its name and with its published checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.error import URLError

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg

from vicinal.models.architecture import Architecture
from vicinal.models.checkpoints import Checkpoint, fitted, unreachable
from vicinal.models.transformer import ImageTransformer

PUBLISHED: dict[
    str, tuple[str, Checkpoint]
] = {}  # name of a file, without its suffix -> timm's name of a model, and it


def register(
    family: str,
    model: type[ImageTransformer],
    architectures: Mapping[str, Architecture],
    checkpoints: Mapping[str, Mapping[str, Checkpoint]],
) -> None:
    """Register a family; its module gets a function for each name, as timm's have.

    Args:
        family: its module's name.
        model: its class.
        architectures: by timm's name.
        checkpoints: by timm's name and tag; the first is the default.
    """
    module: Any = sys.modules[family]
    tagged = {f"{name}.{tag}": c for name in architectures for tag, c in checkpoints[name].items()}
    PUBLISHED.update({c.file.removesuffix(".pth"): (tag, c) for tag, c in tagged.items()})
    module.default_cfgs = generate_default_cfgs({tag: _pretrained(c, model.first_conv) for tag, c in tagged.items()})
    for name, architecture in architectures.items():
        entry = _entry(model, name, architecture)
        entry.__module__, entry.__name__, entry.__qualname__ = family, name, name
        entry.__doc__ = f"{name}: {architecture}."
        setattr(module, name, register_model(entry))


def _pretrained(checkpoint: Checkpoint, first_conv: str) -> dict[str, Any]:
    """A checkpoint as timm describes it: images are prepared as published, by ImageNet's means."""
    side = checkpoint.side
    return {
        "url": checkpoint.url,
        "input_size": (3, side, side),
        "num_classes": checkpoint.num_classes,
        "crop_pct": 0.875 if side == 224 else 1.0,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": first_conv,
        "classifier": "head",
        "pool_size": None,
    }


def _entry(model: type[ImageTransformer], name: str, architecture: Architecture) -> Callable[..., Any]:
    """What timm calls for a name."""

    def entry(pretrained: bool = False, **kwargs: Any) -> Any:
        features: dict[str, Any] = {"out_indices": model.out_indices, "feature_cls": "getter"}
        if kwargs.get("features_only"):
            kwargs.setdefault("feature_norms", True)
            if "output_fmt" in kwargs:
                features["output_fmt"] = kwargs.pop("output_fmt")
        try:
            return build_model_with_cfg(
                lambda **given: model(replace(architecture, **given)),
                name,
                pretrained,
                feature_cfg=features,
                pretrained_filter_fn=fitted,
                **kwargs,
            )
        except URLError as error:
            raise unreachable(_url(name, kwargs), error) from error

    return entry


def _url(name: str, kwargs: Mapping[str, Any]) -> str:
    """The address of the checkpoint that these arguments ask for."""
    asked = {key: kwargs.get(key) for key in ("pretrained_cfg", "pretrained_cfg_overlay")}
    return str(resolve_pretrained_cfg(name, **asked).url)
