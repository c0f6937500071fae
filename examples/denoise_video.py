"""Denoise video as it comes: a model that sees this frame alone, and one that also sees the three frames before it.

Nothing looks ahead (`is_causal` in time), so a frame can be shown as soon as it is there.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from vicinal import NeighborhoodAttention3D

SIDE, PATCH, FRAMES = 24, 2, 8  # pixels of a frame and of a token, frames of a video
SIGMA = 1.0  # of the noise; videos have a variance of 1
DIM, HEADS = 48, 3


class Block(nn.Module):
    """Attention to 3x3 tokens of so many frames, this one and those before it; then an MLP."""

    def __init__(self, seen: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention = NeighborhoodAttention3D(
            DIM, HEADS, kernel_size=(seen, 3, 3), is_causal=(True, False, False), rpb=True
        )
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, frames, height, width, DIM]` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Denoiser(nn.Module):
    """Two blocks between patches and patches; it learns the noise, which is taken away."""

    def __init__(self, seen: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(PATCH**2, DIM), nn.Linear(DIM, PATCH**2)
        self.blocks = nn.Sequential(Block(seen), Block(seen))

    def forward(self, video: Tensor) -> Tensor:
        """`[B, frames, SIDE, SIDE]` to the same shape."""
        x = video.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).transpose(3, 4).flatten(4)
        x = self.last(self.blocks(self.first(x)))
        return video - x.unflatten(4, (PATCH, PATCH)).transpose(3, 4).flatten(4).flatten(2, 3)


def videos(count: int, generator: torch.Generator) -> Tensor:
    """A random texture that drifts by up to a quarter of a pixel a frame: `[count, FRAMES, SIDE, SIDE]`."""
    texture = torch.randn(count, 1, SIDE, SIDE, generator=generator)
    texture = functional.interpolate(texture, scale_factor=2, mode="bicubic")
    speed = torch.rand(count, 2, generator=generator) - 0.5  # pixels of half the size, twice as many
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-0.5, 0.5, SIDE)] * 2, indexing="ij"), -1).flip(-1)
    moved = grid + (speed / SIDE)[:, None, None, None] * torch.arange(FRAMES)[:, None, None, None] / 2
    frames = [functional.grid_sample(texture, moved[:, t], align_corners=False) for t in range(FRAMES)]
    video = torch.cat(frames, 1)
    return video / video.std()


def train(seen: int, steps: int) -> Denoiser:
    """A denoiser that sees so many frames."""
    torch.manual_seed(0)
    generator, model = torch.Generator().manual_seed(0), Denoiser(seen)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for step in range(steps):
        clean = videos(4, generator)
        loss = functional.mse_loss(model(clean + SIGMA * torch.randn(clean.shape, generator=generator)), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"{seen} frame{'s' * (seen > 1)}, step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path("denoise-video.png"))
    options = parser.parse_args(argv)
    models = {seen: train(seen, options.steps) for seen in (1, 4)}
    generator = torch.Generator().manual_seed(1)
    clean = videos(16, generator)
    shown = {"true": clean, "with noise": clean + SIGMA * torch.randn(clean.shape, generator=generator)}
    with torch.no_grad():
        shown |= {f"{seen} frame{'s' * (seen > 1)} seen": model(shown["with noise"]) for seen, model in models.items()}
    figure = Figure(figsize=(10, 5), layout="constrained")
    rows = figure.subplots(len(shown), FRAMES)
    for line, (name, video) in zip(rows, shown.items()):
        error = (video - clean).square().mean((0, 2, 3))
        for t, (axes, frame) in enumerate(zip(line, video[0])):
            axes.imshow(frame, cmap="gray", vmin=-2.5, vmax=2.5)
            axes.set(xticks=[], yticks=[], title=f"frame {t + 1}" if name == "true" else f"error {error[t]:.2f}")
        line[0].set_ylabel(name)
        if name != "true":
            print(f"{name}: mean squared error {error.mean():.3f}, of the last frame {error[-1]:.3f}")
    figure.savefig(options.output, dpi=90)
    print(f"frames: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
