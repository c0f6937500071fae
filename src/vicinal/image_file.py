"""Denoise an image file: read it, `vicinal.denoise`, write it. Whatever can be wrong is found before the long work.

Nothing is lost silently: what cannot be kept (deeper colours than Pillow reads, further frames, a format that holds
less) is an error, and metadata that the target's format cannot hold is named in the result.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vicinal.denoise import Cost, check_options, cost, denoise, estimate_noise
from vicinal.files import replacing

FORMATS = ("PNG", "TIFF", "JPEG", "WEBP", "AVIF", "JPEG2000", "BMP", "PPM", "TGA")  # that are written
_HELD = {  # modes that are denoised as they are -> what a format that loses nothing gives back for them
    "L": ("L", "RGB"),
    "LA": ("LA", "RGBA"),
    "RGB": ("RGB",),
    "RGBA": ("RGBA",),
    "I;16": ("I;16", "I;16B", "I"),
}
_CONVERTED = {"1": "L", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}  # without loss
# TIFF's tags about the layout of its pixels, not about the picture; the last are XMP and the ICC profile, which have
# options of their own. The orientation is applied when the image is read.
_LAYOUT_TAGS = (*range(254, 260), 262, 266, 273, 274, 277, 278, 279, 284, 317, *range(320, 326), 330, 338, 339, 347)
_LAYOUT_TAGS += (700, 34675)
_METADATA = {"exif": "EXIF", "icc_profile": "ICC profile", "xmp": "XMP"}
LONG = 60.0  # seconds from which on they are told beforehand
MANY_FLOPS = 5e11  # below this no machine takes so long
_HEADER = 1 << 16  # bytes of a file in which its bit depth is looked for


@dataclass(frozen=True)
class Denoised:
    """What was done to a file.

    Attributes:
        width, height, channels: its size in pixels, and its colour channels.
        sigma: the noise removed, where white is 1.
        seconds: of the denoising alone.
        lost: metadata that the target's format cannot hold, as `("EXIF",)`.
    """

    width: int
    height: int
    channels: int
    sigma: float
    seconds: float
    lost: tuple[str, ...] = ()


def denoise_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    window: int = 21,
    patch: int = 5,
    strength: float = 0.8,
    sigma: float | None = None,
    debias: bool = True,
    frame: int | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    forecast: Callable[[float], None] | None = None,
) -> Denoised:
    """Denoise the image file `source` into `target`; the options are those of `vicinal.denoise.denoise`.

    Grey and colour images of 8 bits a channel and grey ones of 16 are read and written at their depth. Transparency,
    EXIF data, ICC profile and XMP are kept, palettes become RGB. The suffix of `target` chooses its format. The result
    is written beside `target` and takes its place when it is complete: a write that fails leaves `target` as it was.

    Args:
        source: an image that Pillow reads.
        target: where to write; may exist, and may be `source`.
        window: side of the search window in pixels, odd.
        patch: side of the compared patches in pixels, odd.
        strength: how different patches may be, in units of the noise.
        sigma: standard deviation of the noise, where black is 0 and white is 1; `None` estimates it.
        debias: whether to correct the weights for the noise in them.
        frame: which image of a file of several (an animation, the pages of a TIFF), from 0; None for a file of one.
        device: where to compute.
        progress: called with `(pixels done, pixels in all)`.
        forecast: called before the work with about how many seconds it will take, where that is more than `LONG`.

    Raises:
        FileNotFoundError: there is no file at `source`, or no folder for `target`.
        MemoryError: there is less memory than the window needs for this image.
        OSError: `source` cannot be read as an image, or `target` cannot be written.
        TypeError: an option is of the wrong type.
        ValueError: an option is out of its range; `source` has several frames and none is chosen, more than 8 bits a
            channel in colour, or a colour space that is neither grey nor RGB; `target`'s format cannot hold the image.
    """
    check_options(window, patch, strength, sigma)
    source, target = Path(source), Path(target)
    image = _read(source, frame)
    lost = _check_target(target, image)
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
    device = torch.device(device)
    needed = cost(image.height, image.width, pixels.shape[2], window, patch)
    _check_memory(needed, device)
    if forecast is not None and needed.flops > MANY_FLOPS:
        seconds = needed.flops / _flops_per_second(pixels.shape[2], patch, device)
        if seconds > LONG:
            forecast(seconds)
    start = time.perf_counter()
    clean = denoise(pixels.to(device), window, patch, strength, sigma, debias=debias, progress=progress).cpu()
    seconds = time.perf_counter() - start
    result = _join(clean, alpha, white)
    try:
        with replacing(target) as file:
            result.save(file, format=_format(target), **_options(image))
    except OSError as error:
        raise OSError(f"target: cannot write {str(target)!r}: {error.strerror or error}") from error
    return Denoised(image.width, image.height, pixels.shape[-1], sigma, seconds, lost)


def _check_memory(needed: Cost, device: torch.device) -> None:
    free = _free_bytes(device)
    if free is not None and needed.bytes > free:
        raise MemoryError(
            f"window: this image and window need about {needed.bytes / 1e9:.3g} GB of memory, "
            f"{free / 1e9:.3g} GB are free on {device}"
        )


def _free_bytes(device: torch.device) -> int | None:
    """Memory that can be had; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _flops_per_second(channels: int, patch: int, device: torch.device) -> float:
    """What this machine does, from a small image of noise: the second call, for the first may compile."""
    side = 128 if device.type == "cpu" else 512
    noise = torch.rand(side, side, channels, dtype=torch.float32, device=device)
    for _ in range(2):
        start = time.perf_counter()
        denoise(noise, 21, patch, sigma=0.1).sum().item()  # waits for the device
        seconds = time.perf_counter() - start
    return cost(side, side, channels, 21, patch).flops / seconds


def _read(path: Path, frame: int | None) -> Image.Image:
    if not path.exists():
        raise FileNotFoundError(f"source: no file {str(path)!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, and still allowed
            with Image.open(path) as opened:
                _choose(opened, frame, path)
                _check_depth(opened, path)
                image = _plain(ImageOps.exif_transpose(opened), opened.format, path)
                image.info["exif"] = _exif(opened)
                return image
    except _Refused:
        raise
    except UnidentifiedImageError:
        raise OSError(f"source: {str(path)!r} is not an image that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"source: {str(path)!r} may be a decompression bomb: {error}") from None
    except Exception as error:  # damaged files make Pillow raise almost anything
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise OSError(f"source: cannot read {str(path)!r}: {words}") from error


def _exif(image: Image.Image) -> bytes:
    """The image's EXIF data but for the layout of its pixels; empty where it has none."""
    exif = image.getexif()
    for tag in _LAYOUT_TAGS:
        exif.pop(tag, None)
    return exif.tobytes() if len(exif) else b""


class _Refused(ValueError):
    """An image that could be read, and is not taken."""


def _choose(image: Image.Image, frame: int | None, path: Path) -> None:
    frames: int = getattr(image, "n_frames", 1)
    if frame is None and frames > 1:
        raise _Refused(f"source has {frames} frames, choose one, from 0 to {frames - 1}: {str(path)!r}")
    if frame is not None:
        if isinstance(frame, bool) or not isinstance(frame, int) or not 0 <= frame < frames:
            raise _Refused(f"frame must be from 0 to {frames - 1} for {str(path)!r}, got {frame!r}")
        image.seek(frame)


def _check_depth(image: Image.Image, path: Path) -> None:
    """Pillow reads colours of any depth, and gives 8 bits a channel of them."""
    bits = _depth(image, path)
    if bits > 8 and image.mode[0] not in "IF":
        raise _Refused(
            f"source has {bits} bits a channel in colour (or with transparency), of which Pillow reads 8; "
            f"convert it to 8 bits, or its channels to grey images of 16: {path}"
        )


def _depth(image: Image.Image, path: Path) -> int:
    """Bits a channel in the file; 8 where they are as many or fewer, or unknown."""
    if image.format in ("JPEG2000", "AVIF"):
        with path.open("rb") as file:
            header = file.read(_HEADER)
        # The bit depth of the first channel, less 1, in the marker SIZ; or that of the box of pixel information.
        pattern = rb"\xff\x4f\xff\x51.{38}(.)" if image.format == "JPEG2000" else rb"pixi.{4}.(.)"
        found = re.search(pattern, header, re.DOTALL)
        return 8 if found is None else (found[1][0] & 0x7F) + (image.format == "JPEG2000")
    bits = 8
    for tile in getattr(image, "tile", ()):
        parameters = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        raw_modes = [re.search(r";(\d+)", p) for p in parameters if isinstance(p, str)]
        bits = max([bits, *(int(raw_mode[1]) for raw_mode in raw_modes if raw_mode)])
        if image.format == "PPM" and isinstance(parameters[-1], int):  # the number that stands for white
            bits = max(bits, parameters[-1].bit_length())
    return bits


def _plain(image: Image.Image, kind: str | None, path: Path) -> Image.Image:
    """The image in a mode that is denoised as it is; `kind` is the format of its file."""
    image.load()
    if image.mode == "I;16B" or (image.mode == "I" and kind == "PPM"):  # 16 bits, read otherwise
        native = Image.fromarray(np.asarray(image).astype(np.uint16))
        native.info = image.info
        return native
    if image.mode == "P" or "transparency" in image.info:
        grey = image.mode in ("1", "L")
        converted = ("LA" if grey else "RGBA") if "transparency" in image.info else "RGB"
        if image.mode not in ("P", "1", "L", "RGB"):
            raise _Refused(f"source has one of its {image.mode} values for transparent, which is not supported: {path}")
        return image.convert(converted)
    if image.mode in _CONVERTED:
        return image.convert(_CONVERTED[image.mode])
    if image.mode not in _HELD:
        raise _Refused(
            f"source: images of mode {image.mode!r} are not supported, only {', '.join((*_HELD, 'P', *_CONVERTED))}; "
            f"convert it first: {str(path)!r}"
        )
    return image


def _format(path: Path) -> str:
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in FORMATS:
        raise ValueError(f"target must end in an image format's suffix, as .png, .jpg or .tif, got {str(path)!r}")
    return kind


def _check_target(path: Path, image: Image.Image) -> tuple[str, ...]:
    """That `path` can hold such an image and can be written; what metadata its format loses. Leaves no trace."""
    kind, options = _format(path), _options(image)
    trial = io.BytesIO()
    try:
        Image.new(image.mode, (16, 16)).save(trial, format=kind, **options)
        held = Image.open(trial)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"target: {kind} cannot hold an image of mode {image.mode!r}: {str(path)!r}") from error
    if held.mode not in _HELD[image.mode]:
        raise ValueError(f"target: {kind} cannot hold an image of mode {image.mode!r}: {str(path)!r}")
    _check_writable(path)
    return tuple(words for name, words in _METADATA.items() if name in options and not _has(held, name))


def _has(image: Image.Image, name: str) -> bool:
    return len(image.getexif()) > 0 if name == "exif" else bool(image.info.get(name))


def _check_writable(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"target: no folder {str(path.parent)!r}")
    try:
        if path.exists():
            with path.open("r+b"):
                pass
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise type(error)(f"target: cannot write {str(path)!r}: {error.strerror}") from error


def _options(image: Image.Image) -> dict[str, Any]:
    """What `save` is told besides the pixels."""
    kept = {name: image.info[name] for name in ("exif", "icc_profile", "xmp", "dpi") if image.info.get(name)}
    return {"quality": 95} | kept


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
