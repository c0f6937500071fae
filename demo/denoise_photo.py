"""The demo: denoise a photo with neighborhood attention, next to scikit-image's non-local means.

Adds known noise to a photo that scikit-learn ships, runs each denoiser in a process of its own, prints what they reach
and what they cost, and saves a strip of pictures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_sample_image

from measure import METHODS, PATCH, STRENGTH, WINDOW

DETAIL = (200, 250, 160, 107)  # left, top, width, height of the part that is also shown enlarged


def psnr(image: np.ndarray, clean: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, where white is 1."""
    return float(-10 * np.log10(np.mean((image.astype(np.float64) - clean) ** 2)))


def measure(method: str, noisy: np.ndarray, sigma: float) -> tuple[np.ndarray, dict[str, float]]:
    """Run one denoiser in a fresh process: its image, and its seconds and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "noisy.npy"), Path(folder, "out.npy")
        np.save(source, noisy)
        worker = Path(__file__).with_name("measure.py")
        command = [sys.executable, str(worker), method, str(source), str(target), str(sigma)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return np.load(target), json.loads(done.stdout.splitlines()[-1])


def to_picture(image: np.ndarray) -> Image.Image:
    """8 bits a channel, what is below black or above white cut off."""
    return Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))


def strip(images: dict[str, np.ndarray]) -> Image.Image:
    """The images side by side under their names, and a detail of each below, enlarged to the same width."""
    height, width = next(iter(images.values())).shape[:2]
    left, top, detail_width, detail_height = DETAIL
    enlarged = round(detail_height * width / detail_width)
    gap, caption = 8, 40
    canvas = Image.new("RGB", (len(images) * (width + gap) - gap, caption + height + gap + enlarged), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(24)
    for i, (name, image) in enumerate(images.items()):
        x = i * (width + gap)
        picture = to_picture(image)
        detail = picture.crop((left, top, left + detail_width, top + detail_height))
        draw.text((x + 4, 6), name, fill="black", font=font)
        canvas.paste(picture, (x, caption))
        canvas.paste(detail.resize((width, enlarged), Image.Resampling.NEAREST), (x, caption + height + gap))
    return canvas


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photo", choices=["china", "flower"], default="china")
    parser.add_argument("--sigma", type=float, default=0.1, help="standard deviation of the noise; white is 1")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for the pictures")
    options = parser.parse_args()
    if not 0 < options.sigma <= 1:
        parser.error(f"--sigma must be above 0 and at most 1, got {options.sigma}")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output: cannot make the folder {str(options.output)!r}: {error.strerror}")

    console = Console()
    clean = load_sample_image(f"{options.photo}.jpg").astype(np.float32) / 255
    noise = np.random.default_rng(0).standard_normal(clean.shape, dtype=np.float32)
    noisy = clean + options.sigma * noise
    tokens = clean.shape[0] * clean.shape[1]
    console.print(
        f"{options.photo}.jpg, {clean.shape[1]}x{clean.shape[0]}, noise of standard deviation {options.sigma:g}: "
        f"{tokens:,} tokens, window {WINDOW}x{WINDOW}, patch {PATCH}x{PATCH}, strength {STRENGTH}.\n"
        f"Self attention would need {tokens**2 / 1e9:.1f} billion scores; "
        f"neighborhood attention needs {tokens * WINDOW**2 / 1e6:.0f} million."
    )
    images, costs = {}, {}
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        for method in METHODS:
            task = progress.add_task(method, total=1)
            images[method], costs[method] = measure(method, noisy, options.sigma)
            progress.advance(task)

    table = Table("", "PSNR", "seconds", "peak memory")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("noisy", f"{psnr(noisy, clean):.2f} dB", "", "")
    for method, image in images.items():
        cost = costs[method]
        table.add_row(method, f"{psnr(image, clean):.2f} dB", f"{cost['seconds']:.2f}", f"{cost['peak_mib']:.0f} MiB")
    console.print(table)

    shown = {"clean": clean, "noisy": noisy} | {name: images[name] for name in ("vicinal", "scikit-image")}
    strip(shown).save(options.output / "strip.png")
    to_picture(noisy).save(options.output / "noisy.png")
    to_picture(images["vicinal"]).save(options.output / "denoised.png")
    console.print("noisy.png and denoised.png lie beside this strip of all of them:")
    console.print(str(options.output / "strip.png"), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
