"""DiNAT_s: dilated neighborhood attention in Swin's macro-architecture (arXiv 2209.15001)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from timm.layers import PatchEmbed
from timm.models.swin_transformer import PatchMerging
from torch import nn

from vicinal.models.architecture import Architecture
from vicinal.models.checkpoints import DINAT_URL, Checkpoint
from vicinal.models.register import register
from vicinal.models.transformer import Pyramid

IN1K, IN22K = f"{DINAT_URL}/imagenet1k", f"{DINAT_URL}/imagenet22k"


class DiNATs(Pyramid):
    """Levels of blocks between patches that do not overlap."""

    stages_name, first_conv = "layers", "patch_embed.proj"

    def embedding(self, in_chans: int, dim: int) -> nn.Module:
        """Patches of 4x4 pixels; images are padded to whole ones."""
        return patches(4, in_chans, dim)

    def downsampling(self, dim: int) -> nn.Module:
        """Patches of 2x2 tokens; maps are padded to whole ones."""
        return PatchMerging(dim)


def patches(side: int, in_chans: int, dim: int) -> nn.Module:
    """Images `[B, C, H, W]` to normalised tokens `[B, H / side, W / side, dim]`, rounded up."""
    norm = partial(nn.LayerNorm, eps=1e-5)
    return PatchEmbed(None, side, in_chans, dim, norm, output_fmt="NHWC", strict_img_size=False, dynamic_img_pad=True)


def dilations(third: int, at_224: bool = True) -> tuple[tuple[int, ...], ...]:
    """The dilations of levels of 2, 2, `third` and 2 blocks: the largest that fit the maps of an image."""
    high, middle, low = (8, 4, 2) if at_224 else (13, 6, 3)
    return (1, high), (1, middle), (1, low) * (third // 2), (1, 1)


#                     depths        dim  heads            mlp  drop path
TINY = Architecture((2, 2, 6, 2), 96, (3, 6, 12, 24), 4, 0.2, dilations=dilations(6))
SMALL = Architecture((2, 2, 18, 2), 96, (3, 6, 12, 24), 4, 0.3, dilations=dilations(18))
BASE = Architecture((2, 2, 18, 2), 128, (4, 8, 16, 32), 4, 0.5, dilations=dilations(18))
LARGE = Architecture((2, 2, 18, 2), 192, (6, 12, 24, 48), 4, 0.35, dilations=dilations(18))

ARCHITECTURES = {
    "dinat_s_tiny": TINY,
    "dinat_s_small": SMALL,
    "dinat_s_base": BASE,
    "dinat_s_large": LARGE,
    "dinat_s_large_384": replace(LARGE, dilations=dilations(18, at_224=False)),
}

# The published code has these names; its page of results has the same without "in". Which of them exist is not known.
CHECKPOINTS = {
    name: {"in1k_224": Checkpoint(f"{IN1K}/{name}_in1k_224.pth")} for name in ARCHITECTURES if not name.endswith("384")
} | {"dinat_s_large_384": {"in1k_384": Checkpoint(f"{IN1K}/dinat_s_large_in1k_384.pth", side=384)}}
CHECKPOINTS["dinat_s_large"]["in22k_224"] = Checkpoint(f"{IN22K}/dinat_s_large_in22k_224.pth", num_classes=21841)

register(__name__, DiNATs, ARCHITECTURES, CHECKPOINTS)
