"""Isotropic models (arXiv 2209.15001): one resolution, neighborhood attention or, as a yardstick, self attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from timm.models._features import feature_take_indices
from torch import nn

from vicinal.models.architecture import Architecture
from vicinal.models.block import GlobalAttention
from vicinal.models.checkpoints import DINAT_URL, Checkpoint
from vicinal.models.dinat_s import patches
from vicinal.models.register import register
from vicinal.models.transformer import ImageTransformer
from vicinal.nn import NeighborhoodAttention2D

PATCH = 16  # pixels


class Isotropic(ImageTransformer):
    """Blocks of neighborhood attention over patches of 16x16 pixels."""

    stages_name, first_conv, out_indices = "layers", "patch_embed.proj", 4
    layers: nn.Module

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.patch_embed = patches(PATCH, architecture.in_chans, architecture.dim)
        self.layers = nn.ModuleList(self.blocks(0))
        info = {"num_chs": architecture.dim, "reduction": PATCH}
        self.finish([{**info, "module": f"layers.{i}"} for i in range(architecture.depths[0])])

    def stages(self) -> list[tuple[nn.Module, nn.Module]]:
        """The blocks, with nothing between them."""
        return [(block, nn.Identity()) for block in self.layers.children()]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leave out what comes after the last of these blocks, and the last norm and the head; the blocks' indices."""
        wanted, last = feature_take_indices(len(self.feature_info), indices)
        cut = last < len(self.feature_info) - 1
        self.layers = nn.ModuleList(list(self.layers.children())[: last + 1])
        return self.without_end(wanted, prune_norm or cut, prune_head)


class ViTrpb(Isotropic):
    """The same with self attention, which has a relative positional bias: ViT-rpb."""

    def attention(self, level: int, index: int) -> NeighborhoodAttention2D:
        """Self attention over maps of `kernel_size` tokens a side."""
        a = self.architecture
        return GlobalAttention(
            a.dim,
            a.num_heads[0],
            a.kernel_size,
            fit="pad" if a.padding else "clamp",
            attn_drop=a.attn_drop_rate,
            proj_drop=a.proj_drop_rate,
        )


#                    depth  dim  heads  mlp  drop path
SMALL = Architecture((12,), 384, (12,), 4, 0.1)
BASE = Architecture((12,), 768, (24,), 4, 0.4)
ALTERNATING = ((1, 2) * 6,)

NAT = {"nat_isotropic_small": SMALL, "nat_isotropic_base": BASE}
DINAT = {
    "dinat_isotropic_small": replace(SMALL, dilations=ALTERNATING),
    "dinat_isotropic_base": replace(BASE, dilations=ALTERNATING),
}
VIT = {"vitrpb_small": replace(SMALL, kernel_size=14), "vitrpb_base": replace(BASE, kernel_size=14)}

for model, architectures in ((Isotropic, NAT | DINAT), (ViTrpb, VIT)):
    published = {name: {"in1k_224": Checkpoint(f"{DINAT_URL}/isotropic/{name}_in1k_224.pth")} for name in architectures}
    register(__name__, model, architectures, published)
