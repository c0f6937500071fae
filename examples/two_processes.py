"""Train on two processes of one CPU, each with half of the batch, and hold the loss against one process's.

Both start the same weights (DistributedDataParallel sends them), gradients are averaged, so the curves are the same.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor, multiprocessing, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from vicinal import NeighborhoodAttention2D

BATCH, SIDE, DIM = 16, 24, 32


class Block(nn.Module):
    """Neighborhood attention and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention = NeighborhoodAttention2D(DIM, num_heads=2, kernel_size=7)
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, SIDE, SIDE, DIM]` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Smooth random images with noise, and without: the same for the same step in every process."""
    generator = torch.Generator().manual_seed(step)
    coarse = torch.randn(BATCH, 1, 6, 6, generator=generator)
    clean = functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").permute(0, 2, 3, 1)
    return clean + 0.5 * torch.randn(clean.shape, generator=generator), clean


def train(rank: int, world: int, port: int, steps: int, results: Any) -> None:
    """One process: its part of every batch; the first puts the losses and the seconds into `results`."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)  # "nccl" on GPUs
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, DIM), Block(), Block(), nn.Linear(DIM, 1))
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=2e-3)
    losses, start = [], time.perf_counter()
    for step in range(steps):
        noisy, clean = (t.chunk(world)[rank] for t in batch(step))
        loss = functional.mse_loss(parallel(noisy), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach()
        dist.all_reduce(mean)
        losses.append(mean.item() / world)
    if rank == 0:
        results[world] = losses, time.perf_counter() - start
    dist.destroy_process_group()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--output", type=Path, default=Path("two-processes.png"))
    options = parser.parse_args(argv)
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        threads = torch.get_num_threads()
        train(0, 1, free_port(), options.steps, results)  # one process: this one
        torch.set_num_threads(threads)
        spawn(train, (2, free_port(), options.steps, results), nprocs=2)
        found = dict(results)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for world, style in ((1, "-"), (2, "--")):
        losses, seconds = found[world]
        axes.plot(losses, style, label=f"{world} process{'es' * (world > 1)}")
        print(f"{world} process{'es' * (world > 1)}: loss {losses[-1]:.4f} after {len(losses)} steps, {seconds:.1f} s")
    axes.set(title="loss", xlabel="step", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(options.output, dpi=110)
    apart = max(abs(a - b) / a for a, b in zip(found[1][0], found[2][0]))
    print(f"losses differ by at most {apart:.1e} of themselves; curves: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
