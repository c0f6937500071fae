"""Transformers of images: what timm expects of a model, once for all families, and the two shapes they have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from timm.layers import calculate_drop_path_rates, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vicinal.models.architecture import Architecture, Pool
from vicinal.models.block import Block
from vicinal.nn import NeighborhoodAttention2D


class ImageTransformer(nn.Module):
    """Patches of an image, stages of blocks, and a linear head; a subclass makes the first two and calls `finish`.

    Tokens are `[B, H, W, C]` throughout.

    Attributes:
        architecture: its numbers.
        num_classes, num_features, head_hidden_size, feature_info: as timm's models have them.
        stages_name, first_conv: what stages and the first convolution are called in state dicts.
        out_indices: the feature maps of `features_only`, where nobody says which.
    """

    stages_name: ClassVar[str]
    first_conv: ClassVar[str]
    out_indices: ClassVar[int | tuple[int, ...]] = (0, 1, 2, 3)
    output_fmt = "NHWC"
    patch_embed: nn.Module
    norm: nn.Module
    head: nn.Module

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.num_classes, self.in_chans = architecture.num_classes, architecture.in_chans
        self.global_pool: Pool = architecture.global_pool
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []
        self.num_features = self.head_hidden_size = 0

    def stages(self) -> list[tuple[nn.Module, nn.Module]]:
        """For each feature map the module that makes it, and the one between it and the next stage."""
        raise NotImplementedError

    def blocks(self, level: int) -> list[Block]:
        """The blocks of a level."""
        a, dim = self.architecture, self.architecture.dims()[level]
        rates = calculate_drop_path_rates(a.drop_path_rate, list(a.depths), stagewise=True)[level]
        return [
            Block(
                dim,
                self.attention(level, index),
                a.mlp_ratio,
                layer_scale=a.layer_scale,
                drop_path=rates[index],
                drop=a.proj_drop_rate,
            )
            for index in range(a.depths[level])
        ]

    def attention(self, level: int, index: int) -> NeighborhoodAttention2D:
        """The attention of a block."""
        a = self.architecture
        return NeighborhoodAttention2D(
            a.dims()[level],
            a.num_heads[level],
            a.kernel_size,
            dilation=a.dilation(level, index),
            rpb=True,
            fit="pad" if a.padding else "clamp",
            attn_drop=a.attn_drop_rate,
            proj_drop=a.proj_drop_rate,
        )

    def finish(self, feature_info: list[dict[str, Any]]) -> None:
        """The norms and the head that follow the stages, and the first weights of all."""
        self.feature_info = feature_info
        self.num_features = self.head_hidden_size = feature_info[-1]["num_chs"]
        self.head_drop = nn.Dropout(self.architecture.drop_rate)
        if self.architecture.feature_norms:
            for index, info in enumerate(feature_info):
                self.add_module(f"norm{index}", nn.LayerNorm(info["num_chs"]))
        self.norm = nn.Identity() if self.architecture.feature_norms else nn.LayerNorm(self.num_features)
        self.head = self._classifier(0 if self.architecture.feature_norms else self.num_classes)
        self.apply(_initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `[B, C, H, W]` to the last stage's normalised tokens `[B, h, w, num_features]`.

        Raises:
            ValueError: images have another shape, or number of channels.
        """
        x = self._tokens(x)
        for stage, after in self.stages():
            x = after(self._run(stage, x))
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normalised tokens to classes; with `pre_logits` to what the head is applied to."""
        if self.global_pool == "avg":
            x = x.mean((1, 2))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, C, H, W]`, of any size, to classes `[B, num_classes]`."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The stages' feature maps.

        Args:
            x: images `[B, C, H, W]`.
            indices: which stages; an integer for so many of the last, None for all.
            norm: whether the last stage's map is normalised; those of a model with `feature_norms` are anyway.
            stop_early: whether what comes after the last of them is left out.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: whether to return the maps alone.

        Returns:
            the maps in a list; unless `intermediates_only`, the normalised tokens of the last stage and that list.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {output_fmt!r}")
        stages = self.stages()
        wanted, last = feature_take_indices(len(stages), indices)
        maps = []
        x = self._tokens(x)
        for index, (stage, after) in enumerate(stages[: last + 1] if stop_early else stages):
            x = self._run(stage, x)
            if index in wanted:
                feature = getattr(self, f"norm{index}", self.norm if norm and index == len(stages) - 1 else _same)(x)
                maps.append(feature.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else feature)
            x = after(x)
        return maps if intermediates_only else (self.norm(x), maps)

    def without_end(self, wanted: list[int], norm: bool, head: bool) -> list[int]:
        """Leave out norms of stages other than those wanted, and if asked for the last norm and the head."""
        for index in range(len(self.feature_info)):
            if index not in wanted and hasattr(self, f"norm{index}"):
                delattr(self, f"norm{index}")
        if norm:
            self.norm = nn.Identity()
        if head:
            self.num_features = self.head_hidden_size = self.feature_info[max(wanted)]["num_chs"]
            self.reset_classifier(0, "")
        return wanted

    def reset_classifier(self, num_classes: int, global_pool: Pool | None = None, **_: Any) -> None:
        """A new head; 0 classes for none."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head = self._classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are run again in the backward pass instead of keeping what they need for it."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions by which timm groups parameters by depth, as for learning rates that decay with it."""
        stage, last = rf"^{self.stages_name}\.(\d+)", (r"^(?:norm|head)", (99999,))
        within = [(stage + r"\.blocks\.(\d+)", None), (stage + r"\.downsample", (99998,)), (stage, None), last]
        return {"stem": r"^patch_embed", "blocks": [(stage, None), last] if coarse else within}

    def no_weight_decay(self) -> set[str]:
        """Parameters that are not decayed: biases of attention."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] == "rpb"}

    def _tokens(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ValueError(f"x must have shape [B, {self.in_chans}, H, W], got {list(images.shape)}")
        tokens: Tensor = self.patch_embed(images)
        return tokens

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        for block in stage if isinstance(stage, nn.ModuleList) else (stage,):
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
        return x

    def _classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


class Level(nn.Module):
    """Blocks at one resolution, and what leads to the next."""

    def __init__(self, blocks: list[Block], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class Pyramid(ImageTransformer):
    """Levels of half the resolution and twice the channels of the one before; patches are of 4 pixels.

    A subclass says what makes patches, and what halves resolution.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        dims = architecture.dims()
        self.patch_embed = self.embedding(architecture.in_chans, dims[0])
        halve = [self.downsampling(dim) for dim in dims[:-1]]
        levels = [Level(self.blocks(level), after) for level, after in enumerate([*halve, nn.Identity()])]
        name = self.stages_name
        self.add_module(name, nn.ModuleList(levels))
        self.finish([{"num_chs": d, "reduction": 4 * 2**i, "module": f"{name}.{i}"} for i, d in enumerate(dims)])

    def embedding(self, in_chans: int, dim: int) -> nn.Module:
        """From images `[B, in_chans, H, W]` to tokens `[B, H / 4, W / 4, dim]`, rounded up."""
        raise NotImplementedError

    def downsampling(self, dim: int) -> nn.Module:
        """From tokens `[B, H, W, dim]` to `[B, H / 2, W / 2, 2 * dim]`, rounded up."""
        raise NotImplementedError

    def stages(self) -> list[tuple[nn.Module, nn.Module]]:
        """The blocks of each level, and what follows them."""
        levels: Any = self.get_submodule(self.stages_name)
        return [(level.blocks, level.downsample) for level in levels]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leave out what comes after the last of these levels, and the last norm and the head; the levels' indices."""
        wanted, last = feature_take_indices(len(self.feature_info), indices)
        levels: Any = self.get_submodule(self.stages_name)
        cut = last < len(levels) - 1
        if cut:
            del levels[last + 1 :]
            levels[-1].downsample = nn.Identity()
        return self.without_end(wanted, prune_norm or cut, prune_head or cut)


def _same(x: Tensor) -> Tensor:
    return x


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
