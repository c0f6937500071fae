"""NAT: the Neighborhood Attention Transformer (arXiv 2204.07143): tables 1 and 5."""

from __future__ import annotations

from torch import Tensor, nn

from vicinal.models.architecture import Architecture
from vicinal.models.checkpoints import NAT_URL, Checkpoint
from vicinal.models.register import register
from vicinal.models.transformer import Pyramid


class NAT(Pyramid):
    """Levels of blocks between overlapping convolutions: NAT, and with dilations DiNAT."""

    stages_name, first_conv = "levels", "patch_embed.proj.0"

    def embedding(self, in_chans: int, dim: int) -> nn.Module:
        """Two convolutions of stride 2."""
        return ConvTokenizer(in_chans, dim)

    def downsampling(self, dim: int) -> nn.Module:
        """One convolution of stride 2."""
        return ConvDownsampler(dim)


class ConvTokenizer(nn.Module):
    """Images `[B, C, H, W]` to tokens `[B, H / 4, W / 4, dim]`, rounded up."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, and normalise channels last."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ConvDownsampler(nn.Module):
    """Tokens `[B, H, W, dim]` to `[B, H / 2, W / 2, 2 * dim]`, rounded up."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, and normalise channels last."""
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


#                          depths         dim  heads            mlp  drop path
MINI = Architecture((3, 4, 6, 5), 64, (2, 4, 8, 16), 3, 0.2)
TINY = Architecture((3, 4, 18, 5), 64, (2, 4, 8, 16), 3, 0.2)
SMALL = Architecture((3, 4, 18, 5), 96, (3, 6, 12, 24), 2, 0.3, layer_scale=1e-5)
BASE = Architecture((3, 4, 18, 5), 128, (4, 8, 16, 32), 2, 0.5, layer_scale=1e-5)

ARCHITECTURES = {"nat_mini": MINI, "nat_tiny": TINY, "nat_small": SMALL, "nat_base": BASE}

register(
    __name__, NAT, ARCHITECTURES, {name: {"in1k_224": Checkpoint(f"{NAT_URL}/{name}.pth")} for name in ARCHITECTURES}
)
