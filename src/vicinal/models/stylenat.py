"""StyleNAT's generator (arXiv 2211.05770): images from noise by blocks whose heads have neighborhoods of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vicinal.geometry.neighborhood import Neighborhood
from vicinal.models.block import Block, GlobalAttention
from vicinal.nn import NeighborhoodAttention2D

FIRST = 4  # side of the first level's map
KERNEL = (1.0, 3.0, 3.0, 1.0)  # by which images are enlarged


@dataclass(frozen=True)
class GeneratorConfig:
    """A generator's numbers.

    Attributes:
        dilations: of the levels above 4x4, each of twice the side of the one before, of each split of its heads.
        dims: channels of each level, that of 4x4 included; multiples of 8.
        kernel_size: keys per query along each axis.
        min_heads: attention heads at least; otherwise they are of 32 channels.
        mlp_ratio: hidden channels of the perceptrons, in units of the level's.
        style_dim: channels of a style, and of noise.
        style_layers: of the network that makes styles from noise.
    """

    dilations: tuple[tuple[int, ...], ...]
    dims: tuple[int, ...]
    kernel_size: int = 7
    min_heads: int = 4
    mlp_ratio: float = 4.0
    style_dim: int = 512
    style_layers: int = 8

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.dilations) + 1:
            raise ValueError(f"dims must be one more than dilations, got {len(self.dims)} and {len(self.dilations)}")

    @property
    def size(self) -> int:
        """The side of the images."""
        return FIRST * 2 ** len(self.dilations)

    def heads(self, level: int) -> int:
        return max(self.dims[level] // 32, self.min_heads)


_DILATIONS = ((1,), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32), (1, 64), (1, 128))
_DIMS = (512, 512, 512, 512, 512, 256, 128, 64, 32)
FFHQ_256 = GeneratorConfig(_DILATIONS[:6], _DIMS[:7])
FFHQ_1024 = GeneratorConfig(_DILATIONS, _DIMS)


class Generator(nn.Module):
    """Noise to images; parameters have the published names.

    Args:
        config: its numbers; `FFHQ_256` and `FFHQ_1024` are the published ones.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        learned = [StyleLinear(config.style_dim, config.style_dim, 0.01, True) for _ in range(config.style_layers)]
        self.style = nn.Sequential(PixelNorm(), *learned)
        self.input = ConstantInput(config.dims[0])
        following = (*config.dims[1:], None)
        self.layers = nn.ModuleList(GeneratorLevel(config, i, after) for i, after in enumerate(following))
        self.to_rgbs = nn.ModuleList(ToRGB(after or config.dims[-1], enlarge=after is not None) for after in following)
        self.apply(_initialise)

    @property
    def styles(self) -> int:
        """Blocks, each of which takes a style."""
        return 2 * len(self.layers)

    def forward(self, noise: Tensor) -> Tensor:
        """Noise `[B, style_dim]`, normal, to images `[B, 3, size, size]` of about -1 to 1.

        Raises:
            ValueError: it is of another shape.
        """
        if noise.ndim != 2 or noise.shape[1] != self.config.style_dim:
            raise ValueError(f"noise must have shape [batch, {self.config.style_dim}], got {list(noise.shape)}")
        return self.synthesize(self.style(noise)[:, None].expand(-1, self.styles, -1))

    def synthesize(self, styles: Tensor) -> Tensor:
        """Styles of each block, `[B, styles, style_dim]`, to images.

        Raises:
            ValueError: they are of another shape.
        """
        if styles.ndim != 3 or styles.shape[1:] != (self.styles, self.config.style_dim):
            expected = f"[batch, {self.styles}, {self.config.style_dim}]"
            raise ValueError(f"styles must have shape {expected}, got {list(styles.shape)}")
        x = self.input.input.permute(0, 2, 3, 1).expand(len(styles), -1, -1, -1)
        image = None
        for level, (layer, to_rgb) in enumerate(zip(self.layers, self.to_rgbs)):
            own = styles[:, 2 * level], styles[:, 2 * level + 1]
            x = checkpoint(layer, x, *own, use_reentrant=False) if self.grad_checkpointing else layer(x, *own)
            image = to_rgb(x, image)
        assert image is not None
        return image

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether levels are run again in the backward pass instead of keeping what they need for it."""
        self.grad_checkpointing = enable


def generator_state(loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The averaged generator's state dict in what a published file holds.

    Raises:
        KeyError: there is none.
    """
    inside = loaded.get("state_dicts", loaded)
    if "g_ema" not in inside:
        raise KeyError(f"no generator 'g_ema' in a file with {', '.join(map(repr, inside))}")
    return dict(inside["g_ema"])


class GeneratorLevel(nn.Module):
    """Two blocks at one resolution, and the way to the next, if there is one."""

    def __init__(self, config: GeneratorConfig, level: int, following: int | None) -> None:
        super().__init__()
        dim, heads = config.dims[level], config.heads(level)
        norm = partial(AdaptiveInstanceNorm, config.style_dim)

        def block() -> Block:
            attention: nn.Module
            if level == 0:
                attention = GlobalAttention(dim, heads, FIRST)
            else:
                attention = SplitHeads(dim, heads, config.kernel_size, config.dilations[level - 1])
            return Block(dim, attention, config.mlp_ratio, norm)

        self.blocks = nn.ModuleList(block() for _ in range(2))
        side = FIRST * 2 ** (level + 1)
        self.upsample = None if following is None else BilinearUpsample(dim, following, side)

    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Tokens `[B, H, W, dim]` and the blocks' styles to tokens, of twice the height and width but for the last."""
        x = self.blocks[1](self.blocks[0](x, first), second)
        return x if self.upsample is None else self.upsample(x)


class SplitHeads(NeighborhoodAttention2D):
    """Neighborhood attention whose heads are split into groups of one dilation each, computed in one launch.

    Heads that are left over go to the last groups, one each. One dilation stands for two that are the same.

    Args:
        dim, num_heads, kernel_size: as in `NeighborhoodAttention2D`.
        dilations: of the groups.
    """

    def __init__(self, dim: int, num_heads: int, kernel_size: int, dilations: Sequence[int]) -> None:
        dilations = (*dilations, *dilations) if len(dilations) == 1 else tuple(dilations)
        each, left = divmod(num_heads, len(dilations))
        sizes = [each + (i >= len(dilations) - left) for i in range(len(dilations))]
        super().__init__(
            dim,
            num_heads,
            [Neighborhood.of(2, kernel_size, dilation=d) for d, n in zip(dilations, sizes) for _ in range(n)],
        )
        tables = [nn.Parameter(torch.zeros(n, 2 * kernel_size - 1, 2 * kernel_size - 1)) for n in sizes]
        for table in tables:
            trunc_normal_(table, std=0.02)
        if len(tables) == 2:  # published files have these names for two groups, and a list for more
            self.rpb0, self.rpb1 = tables
        else:
            del self.rpb
            self.rpb: Any = nn.ParameterList(tables)

    def bias(self) -> Tensor:
        """The groups' biases as that of all heads."""
        return torch.cat([self.rpb0, self.rpb1] if self.rpb is None else list(self.rpb))


class AdaptiveInstanceNorm(nn.Module):
    """Each channel of an image normalised over its tokens, then scaled and shifted by what a style says."""

    def __init__(self, style_dim: int, dim: int) -> None:
        super().__init__()
        self.style = StyleLinear(style_dim, 2 * dim)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Tokens `[B, H, W, dim]` and styles `[B, style_dim]`."""
        gamma, beta = self.style(style)[:, None, None].chunk(2, -1)
        variance, mean = torch.var_mean(x, (1, 2), correction=0, keepdim=True)
        return gamma * ((x - mean) * torch.rsqrt(variance + 1e-5)) + beta


class StyleLinear(nn.Module):
    """A linear layer whose weights are kept at variance 1, so that all are learned at one rate.

    Args:
        dim_in, dim_out: channels.
        rate: factor of the rate at which it learns.
        leaky: whether a leaky ReLU follows, scaled to keep the variance.
    """

    def __init__(self, dim_in: int, dim_out: int, rate: float = 1.0, leaky: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim_out, dim_in))
        nn.init.normal_(self.weight, std=1 / rate)
        self.bias = nn.Parameter(torch.zeros(dim_out))
        self.scale, self.rate, self.leaky = rate / math.sqrt(dim_in), rate, leaky

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim_in]` to `[..., dim_out]`."""
        x = functional.linear(x, self.weight * self.scale, self.bias * self.rate)
        return functional.leaky_relu(x, 0.2) * math.sqrt(2) if self.leaky else x


class PixelNorm(nn.Module):
    """Vectors scaled to a mean square of 1."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, dim]` to the same shape."""
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class ConstantInput(nn.Module):
    """The learned map that every image starts from."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, dim, FIRST, FIRST))


class BilinearUpsample(nn.Module):
    """Tokens `[B, H, W, dim]` to `[B, 2H, 2W, following]`: enlarged, normalised, projected, and told where they are."""

    def __init__(self, dim: int, following: int, side: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.reduction = nn.Linear(dim, following, bias=False)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.sin_pos_embed = SinusoidalPositions(following, side)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens."""
        enlarged = functional.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear")
        x = self.reduction(self.norm(enlarged.permute(0, 2, 3, 1)))
        return x + self.alpha * self.sin_pos_embed()


class SinusoidalPositions(nn.Module):
    """Sines and cosines of where tokens of a square map are: half the channels along rows, half down columns."""

    along: Tensor

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        waves = dim // 4
        rates = torch.exp(torch.arange(waves, device="cpu", dtype=torch.float32) * (-math.log(10_000) / (waves - 1)))
        angles = torch.arange(1, side + 1, device="cpu", dtype=torch.float32)[:, None] * rates
        self.register_buffer("along", torch.cat([angles.sin(), angles.cos()], -1), persistent=False)
        # Published files have this; nothing reads it.
        self.register_buffer("_float_tensor", torch.zeros(1, device="cpu", dtype=torch.float32))

    def forward(self) -> Tensor:
        """`[side, side, dim]`."""
        side = len(self.along)
        return torch.cat([self.along.expand(side, -1, -1), self.along[:, None].expand(-1, side, -1)], -1)


class ToRGB(nn.Module):
    """A level's part of the image, added to the image so far.

    Args:
        dim: channels of its tokens.
        enlarge: whether the image so far is of half the side.
    """

    def __init__(self, dim: int, enlarge: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, 3, 1)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.upsample = Enlarge() if enlarge else None

    def forward(self, x: Tensor, image: Tensor | None) -> Tensor:
        """Tokens `[B, H, W, dim]` and the image so far to an image `[B, 3, H, W]`."""
        own = self.conv(x.permute(0, 3, 1, 2)) + self.bias
        if image is None:
            return own
        return own + (image if self.upsample is None else self.upsample(image))


class Enlarge(nn.Module):
    """Images of twice the height and width, by a kernel of binomial weights."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor(KERNEL, device="cpu", dtype=torch.float32)
        self.register_buffer("kernel", line[:, None] * line * (4 / line.sum() ** 2))

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` to `[B, 3, 2H, 2W]`."""
        weight = self.kernel.to(image.dtype).expand(image.shape[1], 1, -1, -1)
        return functional.conv_transpose2d(image, weight, stride=2, padding=1, groups=image.shape[1])


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.xavier_normal_(module.weight, gain=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
