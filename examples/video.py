"""Learn how balls fly and bounce: a video model, causal in time, is shown some frames and goes on by itself."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from vicinal import NeighborhoodAttention3D

SIDE, PATCH = 32, 4  # pixels of a frame and of a token: 8x8 tokens
SHOWN, FRAMES = 5, 12  # frames that are given, and all
DIM, HEADS = 64, 2


class Block(nn.Module):
    """Neighborhood attention to this frame and the two before it, 5x5 tokens of each; then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention = NeighborhoodAttention3D(DIM, HEADS, kernel_size=(3, 5, 5), is_causal=(True, False, False))
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, frames, height, width, DIM]` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    """Frames to the frames that follow each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(PATCH**2, DIM), nn.Linear(DIM, PATCH**2)
        self.place = nn.Parameter(0.02 * torch.randn(SIDE // PATCH, SIDE // PATCH, DIM))
        self.blocks = nn.Sequential(Block(), Block(), Block())

    def forward(self, video: Tensor) -> Tensor:
        """`[B, frames, SIDE, SIDE]` to logits of the same shape: frame t of the result is frame t + 1."""
        x = video.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).transpose(3, 4).flatten(4)
        x = self.last(self.blocks(self.first(x) + self.place))
        return x.unflatten(4, (PATCH, PATCH)).transpose(3, 4).flatten(4).flatten(2, 3)


def videos(count: int, generator: torch.Generator) -> Tensor:
    """Balls that fly straight on and bounce from the walls: `[count, FRAMES, SIDE, SIDE]`, 1 on a ball."""
    radius, far = 3.0, SIDE - 3.0
    place = radius + (far - radius) * torch.rand(count, 1, 2, generator=generator)
    speed = 1.5 + 1.5 * torch.rand(count, 1, 2, generator=generator)
    speed = speed * (2 * torch.randint(2, speed.shape, generator=generator) - 1)
    path = place - radius + speed * torch.arange(FRAMES)[None, :, None]
    path = radius + (far - radius) - (path.remainder(2 * (far - radius)) - (far - radius)).abs()
    grid = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1) + 0.5
    distance = (grid - path[:, :, None, None, :]).norm(dim=-1)
    return (radius + 0.5 - distance).clamp(0, 1)


def go_on(model: Model, video: Tensor) -> Tensor:
    """The frames after the first SHOWN, each from those before it."""
    with torch.no_grad():
        video = video[:, :SHOWN]
        while video.shape[1] < FRAMES:
            video = torch.cat([video, model(video)[:, -1:].sigmoid()], 1)
    return video


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path("video.png"))
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=options.steps)
    for step in range(options.steps):
        video = videos(8, generator)
        loss = functional.binary_cross_entropy_with_logits(model(video[:, :-1]), video[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    truth = videos(2, torch.Generator().manual_seed(1))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    rows = [row for pair in zip(truth, go_on(model, truth)) for row in pair]
    for line, name, frames in zip(figure.subplots(4, FRAMES), ["true", "gone on"] * 2, rows):
        for t, (axes, frame) in enumerate(zip(line, frames)):
            given = t < SHOWN
            axes.imshow(frame, cmap="gray" if given or name == "true" else "magma", vmin=0, vmax=1)
            axes.set(
                xticks=[], yticks=[], title=f"{'given' if given else t + 1}" if line is line and name == "true" else ""
            )
        line[0].set_ylabel(name)
    figure.savefig(options.output, dpi=100)
    print(f"frames: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
