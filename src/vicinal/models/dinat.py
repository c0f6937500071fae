"""DiNAT: the Dilated Neighborhood Attention Transformer (arXiv 2209.15001): NAT, every other block dilated."""

from __future__ import annotations

from dataclasses import replace

from vicinal.models import nat
from vicinal.models.architecture import Architecture
from vicinal.models.checkpoints import DINAT_URL, Checkpoint
from vicinal.models.register import register

IN1K, IN22K = f"{DINAT_URL}/imagenet1k", f"{DINAT_URL}/imagenet22k"


def dilations(third: int, at_224: bool = True) -> tuple[tuple[int, ...], ...]:
    """The dilations of levels of 3, 4, `third` and 5 blocks: the largest that fit the maps of an image."""
    high, middle, low = (8, 4, 2) if at_224 else (13, 6, 3)
    return (1, high, 1), (1, middle, 1, middle), (1, low) * (third // 2), (1,) * 5


LARGE = Architecture((3, 4, 18, 5), 192, (6, 12, 24, 48), 2, 0.35, dilations=dilations(18))
LARGE_384 = replace(LARGE, dilations=dilations(18, at_224=False))

ARCHITECTURES = {
    "dinat_mini": replace(nat.MINI, dilations=dilations(6)),
    "dinat_tiny": replace(nat.TINY, dilations=dilations(18)),
    "dinat_small": replace(nat.SMALL, dilations=dilations(18), layer_scale=None),
    "dinat_base": replace(nat.BASE, dilations=dilations(18)),
    "dinat_large": LARGE,
    "dinat_large_384": LARGE_384,
    "dinat_large_384_11x11": replace(LARGE, kernel_size=11),
}

CHECKPOINTS = {
    name: {"in1k_224": Checkpoint(f"{IN1K}/{name}_in1k_224.pth")}
    for name in ("dinat_mini", "dinat_tiny", "dinat_small", "dinat_base")
} | {
    "dinat_large": {
        "in22k_in1k_224": Checkpoint(f"{IN1K}/dinat_large_in22k_in1k_224.pth"),
        "in22k_224": Checkpoint(f"{IN22K}/dinat_large_in22k_224.pth", num_classes=21841),
    },
    "dinat_large_384": {"in22k_in1k_384": Checkpoint(f"{IN1K}/dinat_large_in22k_in1k_384.pth", side=384)},
    "dinat_large_384_11x11": {
        "in22k_in1k_384_11x11": Checkpoint(f"{IN1K}/dinat_large_in22k_in1k_384_11x11.pth", side=384)
    },
}

register(__name__, nat.NAT, ARCHITECTURES, CHECKPOINTS)
