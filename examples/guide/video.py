"""A block for video that sees no later frame."""

# --8<-- [start:block]
import torch
from torch import Tensor, nn

from vicinal import NeighborhoodAttention3D


class VideoBlock(nn.Module):
    """4 frames of 5x5 tokens: this frame and the three before it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = NeighborhoodAttention3D(dim, heads, kernel_size=(4, 5, 5), is_causal=(True, False, False))
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, frames, height, width, dim]` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
        # --8<-- [end:block]


# --8<-- [start:check]
torch.manual_seed(0)
block = VideoBlock(dim=32, heads=2).eval()
video = torch.randn(1, 8, 10, 12, 32)
other = video.clone()
other[:, 5:] = torch.randn(1, 3, 10, 12, 32)  # another ending

with torch.no_grad():
    torch.testing.assert_close(block(video)[:, :5], block(other)[:, :5])  # the same beginning
    block(video[:, :2])  # fewer frames than the window has are fine on a causal axis
# --8<-- [end:check]
with torch.no_grad():
    assert not torch.equal(block(video)[:, 5:], block(other)[:, 5:])
