"""Train a small NAT from nothing on scikit-learn's handwritten digits, next to the same model with self attention.

On a laptop's CPU, with a progress bar; curves are drawn into a PNG. What is done is kept after every epoch: after an
interruption the same command goes on where it was, to the same result.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from vicinal.files import replacing
from vicinal.models import NAT, Architecture

SIDE = 32  # pixels, to which the digits' 8x8 are enlarged: maps of 8x8 and 4x4 tokens
TEST = 360  # images that are only looked at to measure
NUMBERS = Architecture(
    depths=(2, 2),
    dim=32,
    num_heads=(1, 2),
    mlp_ratio=2,
    drop_path_rate=0.0,
    kernel_size=3,
    dilations=((1, 2), (1, 1)),
    num_classes=10,
    in_chans=1,
)
# A window as large as the larger map is self attention; on the smaller one it is as large as that.
WHOLE = Architecture(**{**vars(NUMBERS), "kernel_size": 8, "dilations": None})
MODELS = {"neighborhood attention": NUMBERS, "self attention": WHOLE}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; a run goes on only where it is the same.

    Attributes:
        epochs: passes over the images.
        images: how many of them; None for all but those for tests.
        batch: images per step.
        rate: highest learning rate; it rises over the first epoch, and falls as a cosine.
        decay: weight decay.
        shift: pixels by which images are moved at most.
        seed: of weights, order and shifts.
    """

    epochs: int = 40
    images: int | None = None
    batch: int = 48
    rate: float = 3e-3
    decay: float = 0.05
    shift: int = 2
    seed: int = 0

    def rate_at(self, done: float) -> float:
        """The learning rate after a part of all steps."""
        return self.rate * min(1.0, done * self.epochs + 0.05) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Data:
    """Images `[N, 1, 32, 32]` of mean 0 and variance 1, and the digits they show."""

    images: Tensor
    digits: Tensor


def load(count: int | None) -> tuple[Data, Data]:
    """Images to train with, and to test with."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None]
    pixels = (pixels - pixels.mean()) / pixels.std()
    images = functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[TEST:][:count], order[:TEST]
    labels = torch.from_numpy(digits.target)
    return Data(images[train], labels[train]), Data(images[test], labels[test])


def shifted(images: Tensor, most: int) -> Tensor:
    """Images moved by up to `most` pixels along each axis, each by its own."""
    padded = functional.pad(images, (most,) * 4, mode="replicate")
    at = torch.randint(2 * most + 1, (len(images), 2))
    return torch.stack([p[:, i : i + SIDE, j : j + SIDE] for p, (i, j) in zip(padded, at.tolist())])


def accuracy(model: nn.Module, data: Data) -> float:
    """The share of images whose digit is told."""
    model.eval()
    with torch.no_grad():
        right = [model(x).argmax(-1) == y for x, y in zip(data.images.split(120), data.digits.split(120))]
    return float(torch.cat(right).float().mean())


class Run:
    """One model's training, kept in a file after every epoch.

    Attributes:
        history: of each epoch its mean loss, the accuracy on test images after it, and its seconds.
    """

    def __init__(self, name: str, recipe: Recipe, folder: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.name, self.recipe = name, recipe
        self.model = NAT(MODELS[name])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=recipe.decay)
        self.history: list[dict[str, float]] = []
        self.file = folder / f"{name.replace(' ', '-')}.pt"
        if self.file.exists():
            kept = torch.load(self.file)
            if kept["recipe"] == vars(recipe):
                self.model.load_state_dict(kept["model"])
                self.optimizer.load_state_dict(kept["optimizer"])
                self.history = kept["history"]

    def epoch(self, train: Data, test: Data) -> None:
        """One pass over the images."""
        recipe, done, start = self.recipe, len(self.history), time.perf_counter()
        torch.manual_seed(recipe.seed * 1_000_000 + done)  # the same, whether or not there was an interruption
        batches = torch.randperm(len(train.images)).split(recipe.batch)
        losses = []
        self.model.train()
        for step, batch in enumerate(batches):
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.rate_at((done + step / len(batches)) / recipe.epochs)
            output = self.model(shifted(train.images[batch], recipe.shift))
            loss = functional.cross_entropy(output, train.digits[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        measured = {"loss": sum(losses) / len(losses), "accuracy": accuracy(self.model, test)}
        self.history.append(measured | {"seconds": time.perf_counter() - start})
        state: dict[str, Any] = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with replacing(self.file) as file:
            torch.save(state | {"recipe": vars(recipe), "history": self.history}, file)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Loss and accuracy after every epoch."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run in runs:
        epochs = range(1, len(run.history) + 1)
        left.plot(epochs, [h["loss"] for h in run.history], label=run.name)
        right.plot(epochs, [100 * (1 - h["accuracy"]) for h in run.history], label=run.name)
    for axes, title in ((left, "training loss"), (right, "test images told wrongly, %")):
        axes.set(title=title, xlabel="epoch", yscale="log")
        axes.grid(alpha=0.3)
    left.legend()
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--images", type=int, default=None, help="to train with; by default all but those for tests")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--output", type=Path, default=Path("digits-output"), help="folder for weights and curves")
    parser.add_argument("--fresh", action="store_true", help="start anew, also where an earlier run can go on")
    options = parser.parse_args(argv)
    if options.epochs < 1 or (options.images is not None and options.images < 1):
        parser.error("--epochs and --images must be at least 1")
    options.output.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(options.epochs, options.images, seed=options.seed)
    train, test = load(recipe.images)
    runs = [Run(name, recipe, options.output) for name in MODELS]
    if options.fresh:
        for run in runs:
            run.file.unlink(missing_ok=True)
        runs = [Run(name, recipe, options.output) for name in MODELS]
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    try:
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            for run in runs:
                task = progress.add_task(run.name, total=recipe.epochs, completed=len(run.history))
                while len(run.history) < recipe.epochs:
                    run.epoch(train, test)
                    at = f"{run.name}: {100 * run.history[-1]['accuracy']:.1f} %"
                    progress.update(task, advance=1, description=at)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on after the last whole epoch")
        return 130
    draw(runs, options.output / "curves.png")
    with replacing(options.output / "history.json") as file:
        file.write(json.dumps({run.name: run.history for run in runs}, indent=1).encode())
    for run in runs:
        parameters = sum(p.numel() for p in run.model.parameters())
        told = f"{100 * run.history[-1]['accuracy']:.1f} % of {TEST} test images told"
        console.print(f"{run.name}: {told}, {parameters:,} parameters, {sum(h['seconds'] for h in run.history):.0f} s")
    console.print(f"curves: {options.output / 'curves.png'}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors are small; and results do not hang on how many there are
    sys.exit(main())
