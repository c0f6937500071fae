"""Denoise an image file: read it, `vicinal.denoise`, write it. Whatever can be wrong is found before the long work."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vicinal.denoise import check_options, denoise, estimate_noise

_KEPT = ("L", "LA", "RGB", "RGBA", "I;16")  # modes that are denoised as they are
_CONVERTED = {
    "1": "L",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "HSV": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
}


@dataclass(frozen=True)
class Denoised:
    """What was done to a file: its size in pixels, its colour channels, the noise removed (0 to 1), and the seconds."""

    width: int
    height: int
    channels: int
    sigma: float
    seconds: float


def denoise_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    window: int = 21,
    patch: int = 5,
    strength: float = 0.8,
    sigma: float | None = None,
    debias: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Denoised:
    """Denoise the image file `source` into `target`; the options are those of `vicinal.denoise.denoise`.

    Grey and colour images of 8 bits a channel and grey ones of 16 are read and written at their depth; transparency is
    kept as it is; palettes and other colour spaces become RGB. The suffix of `target` chooses its format.

    Args:
        source: an image that Pillow reads.
        target: where to write; may exist, and may be `source`.
        window: side of the search window in pixels, odd.
        patch: side of the compared patches in pixels, odd.
        strength: how different patches may be, in units of the noise.
        sigma: standard deviation of the noise, where black is 0 and white is 1; `None` estimates it.
        debias: whether to correct the weights for the noise in them.
        progress: called with `(pixels done, pixels in all)`.

    Raises:
        FileNotFoundError: there is no file at `source`, or no folder for `target`.
        OSError: `source` cannot be read as an image, or `target` cannot be written.
        TypeError: an option is of the wrong type.
        ValueError: an option is out of its range, or `target`'s format cannot hold the image.
    """
    check_options(window, patch, strength, sigma)
    image = _read(Path(source))
    _check_target(Path(target), image)
    pixels, alpha, white = _split(image)
    if min(pixels.shape[:2]) <= max(patch // 2, 1):
        raise ValueError(
            f"source must have more than {max(patch // 2, 1)} rows and columns for patch {patch}, "
            f"got {image.width}x{image.height}: {source}"
        )
    if sigma is None:
        sigma = estimate_noise(pixels)
    if sigma == 0:
        raise ValueError("sigma: the noise of this image is estimated as 0; give a sigma above 0")
    start = time.perf_counter()
    clean = denoise(pixels, window, patch, strength, sigma, debias=debias, progress=progress)
    seconds = time.perf_counter() - start
    result = _join(clean, alpha, white)
    result.save(Path(target), **_options(image))
    return Denoised(image.width, image.height, pixels.shape[-1], sigma, seconds)


def _read(path: Path) -> Image.Image:
    if not path.exists():
        raise FileNotFoundError(f"source: no file {str(path)!r}")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except UnidentifiedImageError:
        raise OSError(f"source: {str(path)!r} is not an image that Pillow reads") from None
    except OSError as error:
        raise OSError(f"source: cannot read {str(path)!r}: {error.strerror or error}") from error
    if image.mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in _CONVERTED:
        return image.convert(_CONVERTED[image.mode])
    if image.mode not in _KEPT:
        raise ValueError(
            f"source: images of mode {image.mode!r} are not supported, only "
            f"{', '.join((*_KEPT, 'P', *_CONVERTED))}: {str(path)!r}"
        )
    return image


def _check_target(path: Path, image: Image.Image) -> None:
    """That `target` can hold such an image and can be written; leaves no trace."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise ValueError(f"target must end in an image format's suffix, as .png, .jpg or .tif, got {str(path)!r}")
    try:
        Image.new(image.mode, (1, 1)).save(io.BytesIO(), format=kind, **_options(image))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"target: {kind} cannot hold an image of mode {image.mode!r}: {str(path)!r}") from error
    if not path.parent.is_dir():
        raise FileNotFoundError(f"target: no folder {str(path.parent)!r}")
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise type(error)(f"target: cannot write {str(path)!r}: {error.strerror}") from error
    if not existed:
        path.unlink()


def _options(image: Image.Image) -> dict[str, Any]:
    options: dict[str, Any] = {"quality": 95}
    if image.info.get("icc_profile"):
        options["icc_profile"] = image.info["icc_profile"]
    return options


def _split(image: Image.Image) -> tuple[Tensor, np.ndarray | None, int]:
    """Colour `[H, W, C]` from 0 to 1, transparency as it is, and the number that stands for white."""
    values = np.asarray(image)
    white = int(np.iinfo(values.dtype).max)
    alpha = values[..., -1:] if image.mode in ("LA", "RGBA") else None
    colour = values.reshape(*values.shape[:2], -1)
    if alpha is not None:
        colour = colour[..., :-1]
    return torch.from_numpy(colour.astype(np.float32) / white), alpha, white


def _join(pixels: Tensor, alpha: np.ndarray | None, white: int) -> Image.Image:
    depth = np.uint8 if white == 255 else np.uint16
    values = (pixels.clamp(0, 1) * white).round().numpy().astype(depth)
    if alpha is not None:
        values = np.concatenate([values, alpha], axis=-1)
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
