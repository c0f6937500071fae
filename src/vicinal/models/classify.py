"""What is in an image file, by a model and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from timm.models import load_state_dict

from vicinal.models.checkpoints import state_of
from vicinal.models.register import PUBLISHED


@dataclass(frozen=True)
class Guess:
    """A class and its probability, as the model has it."""

    name: str
    probability: float


def models() -> list[str]:
    """The names of models that can classify."""
    return sorted({tag.partition(".")[0] for tag, _ in PUBLISHED.values()})


@torch.inference_mode()
def classify_file(
    path: Path, model: str, weights: Path | None = None, top: int = 5, device: torch.device | None = None
) -> list[Guess]:
    """The most probable classes of an image.

    Args:
        path: an image file.
        model: a name of timm's (`dinat_mini`, or with a tag), or of a published file (`dinat_mini_in1k_224`).
        weights: a file of them, published or of timm's training program; its head may have any number of classes.
            None takes the published file from torch's cache, or downloads it.
        top: so many classes.
        device: where the model runs; None is the CPU.

    Returns:
        classes by falling probability: ImageNet's with their names, others by number.

    Raises:
        FileNotFoundError, OSError: the image or the weights cannot be read, or be downloaded.
        ValueError: there is no such model, or the weights are not its.
    """
    image = _read(path)
    network = _load(model, weights).eval().to(device)
    config = resolve_data_config(model=network)
    pixels: Any = create_transform(**config, is_training=False)(image)
    probabilities = network(pixels[None].to(device)).softmax(-1)[0].cpu()
    best = probabilities.topk(min(top, len(probabilities)))
    subset = infer_imagenet_subset(network)
    names = ImageNetInfo(subset) if subset else None
    return [
        Guess(f"class {at}" if names is None else names.index_to_description(at), probability)
        for probability, at in zip(best.values.tolist(), best.indices.tolist())
    ]


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"image: no file {str(path)!r}") from None
    except UnidentifiedImageError:
        raise OSError(f"image: {str(path)!r} is not an image that Pillow reads") from None
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise OSError(f"image: cannot read {str(path)!r}: {error}") from error


def _load(model: str, weights: Path | None) -> Any:
    name = PUBLISHED[model][0] if model in PUBLISHED else model
    if name not in models() and name not in (tag for tag, _ in PUBLISHED.values()):
        raise ValueError(f"model must be one of {', '.join(models())}, or of a published file's name, got {model!r}")
    if weights is None:
        return timm.create_model(name, pretrained=True)
    try:
        state = state_of(load_state_dict(weights, use_ema=False))
        classes = state["head.bias"].shape[0]
    except FileNotFoundError:
        raise FileNotFoundError(f"weights: no file {str(weights)!r}") from None
    except Exception as error:  # unpickling raises almost anything
        raise OSError(f"weights: {str(weights)!r} holds no model's weights: {_first_line(error)}") from error
    network = timm.create_model(name, num_classes=classes)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"weights: {str(weights)!r} are not those of {model}: {_first_line(error, 1)}") from error
    return network


def _first_line(error: Exception, skip: int = 0) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[min(skip, len(lines) - 1)]
    return line if len(line) < 200 else f"{line[:197]}..."
