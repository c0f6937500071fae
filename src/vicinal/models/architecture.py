"""What one model is: the numbers in a paper's table, and those that a caller may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vicinal.checks import check_fraction

Pool = Literal["avg", ""]


@dataclass(frozen=True)
class Architecture:
    """One model's numbers; all can be given to `timm.create_model` by name.

    Attributes:
        depths: blocks per level.
        dim: channels of the first level; each level has twice those of the one before.
        num_heads: attention heads per level.
        mlp_ratio: hidden channels of the perceptrons, in units of the level's.
        kernel_size: keys per query along each axis.
        dilations: per level, of each block; None for 1.
        layer_scale: initial factor of a block's branches, learned per channel; None for none.
        drop_path_rate: probability of leaving out a branch of the last block; it grows linearly from 0.
        num_classes: outputs of the head; 0 for none.
        in_chans: channels of the images.
        global_pool: "avg" for the mean over tokens, "" for none: the head is applied to every token.
        drop_rate, proj_drop_rate, attn_drop_rate: dropout before the head, in blocks, of attention weights.
        padding: maps smaller than `kernel_size * dilation` are padded with zeros, which are attended, as the published
            code does. Otherwise windows there are the largest that fit, and then dilations.
        feature_norms: one LayerNorm per level instead of the last norm and the head: `norm0`, `norm1`, ..., as the
            published backbones for detection and segmentation have.
        img_size: of the images, for timm; models take any size.
    """

    depths: tuple[int, ...]
    dim: int
    num_heads: tuple[int, ...]
    mlp_ratio: float
    drop_path_rate: float
    kernel_size: int = 7
    dilations: tuple[tuple[int, ...], ...] | None = None
    layer_scale: float | None = None
    num_classes: int = 1000
    in_chans: int = 3
    global_pool: Pool = "avg"
    drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    padding: bool = False
    feature_norms: bool = False
    img_size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.num_heads) != len(self.depths):
            raise ValueError(f"num_heads must be one per level, {len(self.depths)}, got {self.num_heads}")
        if self.dilations is not None and tuple(map(len, self.dilations)) != tuple(self.depths):
            raise ValueError(f"dilations must be one per block, {self.depths} in each level, got {self.dilations}")
        if self.global_pool not in ("avg", ""):
            raise ValueError(f"global_pool must be 'avg' or '', got {self.global_pool!r}")
        for rate in ("drop_path_rate", "drop_rate", "proj_drop_rate", "attn_drop_rate"):
            check_fraction(rate, getattr(self, rate))

    def dims(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.dim * 2**level for level in range(len(self.depths)))

    def dilation(self, level: int, block: int) -> int:
        """The dilation of one block."""
        return 1 if self.dilations is None else self.dilations[level][block]
