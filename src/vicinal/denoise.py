"""Non-local-means denoising, which is neighborhood attention: patches are queries and keys, pixels are values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vicinal.functional import na2d
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.work import forward_flops, useful_scores

COPIES = 7  # of a block's features: weighted, as query and key, and as a backend lays them out
BLOCK = 384  # side of the blocks that are attended at once: bounds memory, and how much of the halos is computed twice
MOST_COLOURS = 4  # channels beside which fewer rows are still an image
LEAST_OWN_WEIGHT = 1e-3  # below this, float32 cannot tell a pixel's corrected weight from rounding


def denoise(
    image: Tensor,
    window: int = 21,
    patch: int = 5,
    strength: float = 0.8,
    sigma: float | None = None,
    *,
    debias: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Remove Gaussian noise from an image with non-local means (Buades, Coll and Morel, 2005).

    Every pixel becomes the weighted mean of the `window x window` pixels around it. The weight of pixel `k` for pixel
    `q` is `exp(-d2 / h^2)`, where `d2` is the mean squared difference of the patches around the two, Gaussian-weighted
    towards the middle, and `h = strength * sigma`. Patches reflect at the image's border; the window is cut there.
    With `debias=False` this is what scikit-image's `denoise_nl_means(patch_size=patch, patch_distance=window // 2,
    h=h, sigma=0, fast_mode=False)` approximates (it cuts weights off below `exp(-5)` and has an approximate `exp`).

    As attention: with `f` a pixel's weighted patch over `h`, `-|f_q - f_k|^2 = 2 f_q . f_k - |f_k|^2 - |f_q|^2`. The
    last term is the same for all keys and leaves the softmax; the one before it is one more feature channel.

    The noise itself biases these weights in two ways, both of which `debias` takes out in closed form afterwards:

    - Noise puts `2 sigma^2` between patches that are equal underneath, but nothing between a patch and itself: a
      pixel's own weight is `exp(2 sigma^2 / h^2)` times too large, 23 times at the default strength. The log-sum-exp
      tells the sum of all weights, and the own weight is known, so the excess is subtracted exactly.
    - Keys whose middle pixel happens to carry the query's noise look more alike. Among keys that are equal underneath,
      the mean keeps the share `a / (1 + a)` of the query's own noise, where `a = 2 w / strength^2` and `w` is the
      middle pixel's weight in `d2`, per channel. `mean + a (mean - pixel)` removes it. This holds where many keys are
      alike, so `a` is scaled by twice the share of the window that is, up to 1.

    Args:
        image: `[H, W]` or `[H, W, C]`, floating point, on any device and in any range of values; both sides larger than
            `patch // 2`. Computed in float64 when it is float64, in float32 otherwise.
        window: side of the search window in pixels, odd. 1 returns the image.
        patch: side of the patches that are compared in pixels, odd.
        strength: `h / sigma`, above 0: how different, in units of the noise, patches may be and still count as alike.
        sigma: standard deviation of the noise in the image's units, above 0. `None` estimates it (`estimate_noise`).
        debias: whether to correct the weights for the noise in them.
        progress: called with `(pixels done, pixels in all)` after each block of them.

    Returns:
        The denoised image, of the image's shape, dtype and device.

    Raises:
        TypeError: `image` is no floating-point tensor, or another argument is of the wrong type.
        ValueError: an argument is out of its range, `image` has more channels than rows (it is `[C, H, W]`), or the
            noise estimate is 0.
    """
    _check(image, window, patch, strength, sigma)
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    pixels = image.to(dtype).reshape(*image.shape[:2], -1)
    if sigma is None:
        sigma = estimate_noise(pixels)
        if sigma == 0:
            raise ValueError("sigma: the noise of this image is estimated as 0; pass a sigma above 0")

    height, width, channels = pixels.shape
    weight = _patch_weight(patch, channels).to(pixels)
    scale = weight.sqrt() / (strength * sigma)
    centred = pixels - pixels.mean(dim=(0, 1))  # distances stay; squared norms shrink, and with them the rounding
    padded = F.pad(centred.movedim(-1, 0), (patch // 2,) * 4, mode="reflect").movedim(0, -1)
    result = torch.empty_like(pixels)
    done = 0
    for rows, columns in product(_spans(height, window), _spans(width, window)):
        box = pixels[rows.low : rows.high, columns.low : columns.high]
        border = padded[rows.low : rows.high + patch - 1, columns.low : columns.high + patch - 1]
        patches = border.unfold(0, patch, 1).unfold(1, patch, 1)
        means, others = _attend((patches * scale).flatten(2), box, window)
        if debias:
            means = _debias(means, others, box, window, strength, float(weight.max()))
        inner = means[rows.first - rows.low : rows.last - rows.low, columns.first - columns.low :]
        result[rows.first : rows.last, columns.first : columns.last] = inner[:, : columns.last - columns.first]
        done += (rows.last - rows.first) * (columns.last - columns.first)
        if progress is not None:
            progress(done, height * width)
    return result.reshape(image.shape).to(image.dtype)


@dataclass(frozen=True)
class Cost:
    """What `denoise` takes for an image: floating-point operations of the attention, and bytes at the peak."""

    flops: int
    bytes: int


def cost(height: int, width: int, channels: int, window: int, patch: int, itemsize: int = 4) -> Cost:
    """The cost of `denoise` for an image of that size; `itemsize` is 8 where it computes in float64.

    The bytes are those of the features of the largest block, which are held `COPIES` times, and of a few whole images.
    """
    neighborhood = Neighborhood.of(2, window, boundary="clip").resolve((height, width))
    features = patch * patch * channels + 1
    rows, columns = (max(s.high - s.low for s in _spans(length, window)) for length in (height, width))
    block = COPIES * rows * columns * features
    flops = forward_flops(useful_scores(neighborhood, (height, width)), features, channels)
    return Cost(flops, itemsize * (block + 4 * height * width * channels))


def estimate_noise(image: Tensor) -> float:
    """Standard deviation of the Gaussian noise in an image, in the image's units.

    The median absolute diagonal detail of the Haar transform, over 0.6745 (Donoho and Johnstone, 1994): smooth
    regions and straight edges along either axis have no diagonal detail, so what is left is mostly noise. Fine
    texture is taken for noise. Channels are averaged.

    Args:
        image: `[H, W]` or `[H, W, C]`, floating point, both sides at least 2.

    Raises:
        TypeError: `image` is no floating-point tensor.
        ValueError: it is of another shape.
    """
    _check_image(image)
    height, width = (n - n % 2 for n in image.shape[:2])
    if min(height, width) < 2:
        raise ValueError(f"image must have at least 2 rows and 2 columns, got shape {tuple(image.shape)}")
    blocks = image[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    detail = (blocks[:, 0, :, 0] - blocks[:, 0, :, 1] - blocks[:, 1, :, 0] + blocks[:, 1, :, 1]) / 2
    return float(detail.abs().flatten(0, 1).median(dim=0).values.mean() / 0.6745)


class _Span(NamedTuple):
    """Pixels `first` to `last` of one axis, and `low` to `high`, those that their windows reach."""

    first: int
    last: int
    low: int
    high: int


def _spans(length: int, window: int) -> list[_Span]:
    """An axis cut into equal parts of about `BLOCK` pixels, more where the window is large."""
    reach = window // 2
    parts = -(-length // max(BLOCK, 4 * reach))
    cuts = [length * i // parts for i in range(parts + 1)]
    return [_Span(a, b, max(a - reach, 0), min(b + reach, length)) for a, b in pairwise(cuts)]


def _attend(features: Tensor, pixels: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The weighted means `[H, W, C]`, and the sum of all other pixels' weights `[H, W, 1]`, where the own is 1."""
    norm = features.square().sum(-1, keepdim=True)
    query = torch.cat([2 * features, torch.ones_like(norm)], dim=-1)
    key = torch.cat([features, -norm], dim=-1)
    means, lse = na2d(
        query[None, :, :, None],
        key[None, :, :, None],
        pixels[None, :, :, None],
        kernel_size=window,
        scale=1.0,
        boundary="clip",
        return_lse=True,
    )
    others = torch.expm1(lse[0] - norm).clamp_min(0)  # a pixel's own score is |f|^2
    return means[0, :, :, 0], others


def _debias(means: Tensor, others: Tensor, pixels: Tensor, window: int, strength: float, middle: float) -> Tensor:
    """Take the bias that noise puts into the weights out of the means: see `denoise`."""
    own = max(math.exp(-2 / strength**2), LEAST_OWN_WEIGHT)
    means = (others * means + (means - pixels) + own * pixels) / (others + own)
    alike = others / (own * _window_sizes(means, window))
    return means + 2 * middle / strength**2 * (2 * alike).clamp_max(1) * (means - pixels)


def _window_sizes(pixels: Tensor, window: int) -> Tensor:
    """`[H, W, 1]`: how many pixels the window of each pixel holds, cut at the border."""
    reach = window // 2

    def along(length: int) -> Tensor:
        at = torch.arange(length, dtype=pixels.dtype, device=pixels.device)
        return (at + reach).clamp_max(length - 1) - (at - reach).clamp_min(0) + 1

    return (along(pixels.shape[0])[:, None] * along(pixels.shape[1]))[..., None]


def _patch_weight(patch: int, channels: int) -> Tensor:
    """`[patch, patch]` Gaussian weights of a squared patch distance, which sum to 1 over the patch and all channels."""
    offsets = torch.arange(patch, dtype=torch.float64, device="cpu") - patch // 2
    spread = max((patch - 1) / 4, 0.25)  # as scikit-image has it; any spread will do for a patch of one pixel
    profile = torch.exp(-offsets.square() / (2 * spread**2))
    weight = profile[:, None] * profile
    return weight / (weight.sum() * channels)


def _check_image(image: Tensor) -> None:
    if not isinstance(image, Tensor) or not image.is_floating_point():
        got = f"a tensor of {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"image must be a floating-point tensor, got {got}")
    if image.ndim not in (2, 3):
        raise ValueError(f"image must be [H, W] or [H, W, C], got shape {tuple(image.shape)}")
    if image.ndim == 3 and image.shape[2] > max(MOST_COLOURS, image.shape[0]):
        raise ValueError(
            f"image must be [H, W, C], got shape {tuple(image.shape)}, more channels than rows; "
            "if it is [C, H, W], pass image.movedim(0, -1)"
        )


def _check(image: Tensor, window: int, patch: int, strength: float, sigma: float | None) -> None:
    _check_image(image)
    check_options(window, patch, strength, sigma)
    if image.numel() == 0 or min(image.shape[:2]) <= patch // 2:
        raise ValueError(
            f"image must have more than patch // 2 = {patch // 2} rows and columns, got shape {tuple(image.shape)}"
        )


def check_options(window: int, patch: int, strength: float, sigma: float | None) -> None:
    """Raise `TypeError` or `ValueError` for options that `denoise` does not take, whatever the image."""
    for name, size in (("window", window), ("patch", patch)):
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} must be an int, got {size!r}")
        if size < 1 or size % 2 == 0:
            raise ValueError(f"{name} must be odd and at least 1, got {size}")
    for name, value in (("strength", strength), ("sigma", sigma)):
        if name == "sigma" and value is None:
            continue
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be finite and above 0, got {value}")
