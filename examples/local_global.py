"""What a window cannot see: every token shall tell the sign of one far token. Windows alone, and with global tokens.

The global tokens read the whole map (`vicinal.attention`) and are read by every token next to its own window
(`additional_keys`), so that two steps carry anything anywhere, at a cost that grows with the number of tokens.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from vicinal import attention, na2d

SIDE, WINDOW, GLOBAL = 16, 5, 4  # tokens of a map's sides, of a window's, and those that everyone sees
DIM, HEADS = 32, 2


class Block(nn.Module):
    """Attention to a window, and to global tokens where there are any; then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`x` `[B, SIDE, SIDE, DIM]`, `seen` `[B, GLOBAL, DIM]` or None; to the same shapes."""
        query, key, value = self._heads(x)
        if seen is None:
            return self._after(x, na2d(query, key, value, kernel_size=WINDOW)), None
        own_query, own_key, own_value = self._heads(seen)
        output = na2d(query, key, value, kernel_size=WINDOW, additional_keys=own_key, additional_values=own_value)
        keys, values = (torch.cat([own, t.flatten(1, 2)], 1) for own, t in ((own_key, key), (own_value, value)))
        return self._after(x, output), self._after(seen, attention(own_query, keys, values))

    def _heads(self, x: Tensor) -> Sequence[Tensor]:
        return self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).unbind(-3)

    def _after(self, x: Tensor, output: Tensor) -> Tensor:
        x = x + self.proj(output.flatten(-2))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    """Three blocks; `with_global` gives them tokens that everyone sees."""

    def __init__(self, with_global: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, DIM), nn.Linear(DIM, 1)
        self.seen = nn.Parameter(torch.randn(GLOBAL, DIM)) if with_global else None
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, maps: Tensor) -> Tensor:
        """`[B, SIDE, SIDE, 2]` to a logit for every token."""
        x, seen = self.first(maps), None if self.seen is None else self.seen.expand(len(maps), -1, -1)
        for block in self.blocks:
            x, seen = block(x, seen)
        return self.last(x)[..., 0]


def problem(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Maps with noise and one marked token, its sign, and every token's distance to it."""
    sign = 2.0 * torch.randint(2, (count,), generator=generator) - 1
    at = torch.randint(SIDE, (count, 2), generator=generator)
    grid = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1)
    distance = (grid - at[:, None, None]).abs().amax(-1)
    marked = (distance == 0).float()
    noise = torch.randn(count, SIDE, SIDE, generator=generator)
    return torch.stack([3 * marked * sign[:, None, None] + (1 - marked) * noise, marked], -1), sign, distance


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("local-global.png"))
    options = parser.parse_args(argv)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, with_global in (("windows alone", False), (f"and {GLOBAL} global tokens", True)):
        torch.manual_seed(0)
        generator, model = torch.Generator().manual_seed(0), Model(with_global)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        losses = []
        for _ in range(options.steps):
            maps, sign, _ = problem(16, generator)
            target = (sign > 0).float()[:, None, None].expand(-1, SIDE, SIDE)
            loss = functional.binary_cross_entropy_with_logits(model(maps), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            maps, sign, distance = problem(256, generator)
            right_ones = (model(maps) * sign[:, None, None] > 0).float()
        far = range(SIDE)
        left.plot(losses, label=name, linewidth=0.8)
        right.plot(far, [100 * right_ones[distance == d].mean().item() for d in far], "o-", label=name)
        print(f"{name}: {100 * right_ones.mean().item():.1f} % of tokens are right", flush=True)
    left.set(title="loss", xlabel="step")
    reach = 3 * (WINDOW // 2)
    right.axvline(reach, color="grey", linestyle="--", linewidth=0.8)
    right.set(title=f"tokens that are right, % (three windows reach {reach})", xlabel="distance to the marked token")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(options.output, dpi=110)
    print(f"curves: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
