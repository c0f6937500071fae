"""A transformer block for images, and some steps of training."""

# --8<-- [start:block]
import torch
from torch import Tensor, nn

from vicinal import NeighborhoodAttention2D


class Block(nn.Module):
    """Neighborhood attention, then an MLP; both added to what came in."""

    def __init__(self, dim: int, heads: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = NeighborhoodAttention2D(dim, heads, kernel_size, dilation=dilation)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, height, width, dim]` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
        # --8<-- [end:block]


# --8<-- [start:model]
class Classifier(nn.Module):
    """Patches of 4x4 pixels, blocks with and without dilation in turns, the mean of all tokens."""

    def __init__(self, dim: int = 64, heads: int = 2, classes: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.blocks = nn.Sequential(Block(dim, heads, kernel_size=5), Block(dim, heads, kernel_size=5, dilation=3))
        self.head = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, height, width]` to `[B, classes]`."""
        x = self.patches(images).permute(0, 2, 3, 1)  # channels last, as the blocks take it
        return self.head(self.blocks(x).mean((1, 2)))
        # --8<-- [end:model]


# --8<-- [start:training]
torch.manual_seed(0)
model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
images, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 2
images[labels == 1] += 0.5  # the brighter ones are of class 1
losses = []
for _ in range(10):
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
# --8<-- [end:training]
assert losses[-1] < losses[0] / 2, losses
