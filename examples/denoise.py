"""Denoise a part of a photo: noise is added, non-local means, which is neighborhood attention, takes it away."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image
from torch import Tensor

from vicinal.denoise import denoise

SIGMA = 0.1  # of the noise, where white is 1


def psnr(image: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(-10 * (image - clean).square().mean().log10())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="pixels of the part's sides")
    parser.add_argument("--output", type=Path, default=Path("denoise.png"))
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    photo = torch.from_numpy(load_sample_image("flower.jpg").copy()).float() / 255
    clean = photo[80 : 80 + options.size, 180 : 180 + options.size]
    noisy = clean + SIGMA * torch.randn_like(clean)
    images = {"photo": clean, "with noise": noisy, "denoised": denoise(noisy, window=21, patch=5)}  # sigma is estimated
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (name, image) in zip(figure.subplots(1, 3), images.items()):
        axes.imshow(image.clamp(0, 1))
        axes.set_title(name if image is clean else f"{name}: {psnr(image, clean):.1f} dB")
        axes.axis("off")
    figure.savefig(options.output, dpi=110)
    gained = psnr(images["denoised"], clean) - psnr(noisy, clean)
    print(f"{gained:.1f} dB gained; pictures: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
