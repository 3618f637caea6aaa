"""FlashInternImage: a convolutional pyramid whose spatial mixing is DCNv4, or DCNv3."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcnv4_mm.backbones.archs import read_arch, read_out_indices
from dcnv4_mm.backbones.blocks import Block, Stage, Stem
from dcnv4_mm.backbones.fused import check_fusible, fuse_block
from dcnv4_mm.backbones.heads import AttentionPoolingHead, ClassificationHead
from dcnv4_mm.ops.arguments import read_bool, read_float, read_int

__all__ = ["FlashInternImage"]


class FlashInternImage(nn.Module):
    """FlashInternImage as a feature pyramid, or as a classifier if ``num_classes`` is given.

    Args:
        arch: Name of a published network, or a mapping of the fields of
            :class:`~dcnv4_mm.backbones.archs.Arch`. With DCNv4 the names are nano (not published),
            t, s, b, l or tiny, small, base, large; with DCNv3 also xl, h, g or xlarge, huge, giant.
        core_op: ``"DCNv4"``, or ``"DCNv3"`` for InternImage.
        in_channels: Channels of the images.
        out_indices: Stages whose maps are output, ascending, in 0..3. Stages after the last one are
            not computed; DistributedDataParallel needs ``find_unused_parameters`` for them.
        layer_scale: Start of the learned scale of each branch, or ``None`` for no such
            parameters. The released dense models have 1.0; as classifiers, T has none and
            S, B, L and XL start at 1e-5. H and G have none anywhere.
        drop_path_rate: Rate of the last block, in [0, 1); it grows linearly from 0 at the first.
        with_cp: Activation checkpointing: computes each block again in the backward pass, which
            takes about a third more time and keeps one tensor per block.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        num_classes: Adds the classification head; the output is then logits.

    Attributes:
        out_channels: Channels of the maps of ``out_indices``.

    Raises:
        TypeError: An argument is not a number or a bool, as it must be.
        ValueError: An argument is out of its range, or ``arch`` is unknown.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, section 4.1; with DCNv3 Wang et
        al., "InternImage", CVPR 2023. Other than in the original, offset layers always start at
        zero and ``center_feature_scale`` reaches DCNv4.

    Example:
        >>> backbone = FlashInternImage("nano")
        >>> [tuple(m.shape) for m in backbone(torch.randn(1, 3, 64, 64))]
        [(1, 32, 16, 16), (1, 64, 8, 8), (1, 128, 4, 4), (1, 256, 2, 2)]
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "t",
        *,
        core_op: str = "DCNv4",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        layer_scale: float | None = 1.0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        frozen_stages: int = -1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.arch = read_arch(arch, core_op)
        stages = len(self.arch.depths)
        self.out_indices = read_out_indices(out_indices, stages)
        self.frozen_stages = read_int("frozen_stages", frozen_stages, minimum=-1)
        if self.frozen_stages > stages:
            raise ValueError(f"frozen_stages must be in -1..{stages}, got {frozen_stages}")
        self.with_cp = read_bool("with_cp", with_cp)
        if layer_scale is not None:
            layer_scale = read_float("layer_scale", layer_scale)
        drop_path_rate = read_float("drop_path_rate", drop_path_rate)
        widths = [self.arch.channels * 2**stage for stage in range(stages)]
        self.out_channels = [widths[stage] for stage in self.out_indices]

        self.patch_embed = Stem(read_int("in_channels", in_channels, minimum=1), widths[0])
        # On the CPU, because a model that is built on the meta device needs the rates as well.
        rates = torch.linspace(0, drop_path_rate, sum(self.arch.depths), device="cpu").tolist()
        next_rate = iter(rates)
        self.levels = nn.ModuleList(
            Stage(
                [
                    Block(
                        channels,
                        groups,
                        self.arch,
                        core_op,
                        drop_path_rate=next(next_rate),
                        layer_scale=layer_scale,
                    )
                    for _ in range(depth)
                ],
                channels,
                norm=not self.arch.post_norm or self.arch.center_feature_scale,
                extra_norms=self.arch.extra_norms if stage == 2 else (),
                down=stage < stages - 1,
            )
            for stage, (channels, depth, groups) in enumerate(
                zip(widths, self.arch.depths, self.arch.groups, strict=True)
            )
        )
        head = AttentionPoolingHead if self.arch.attention_pooling else ClassificationHead
        if num_classes is not None:
            num_classes = read_int("num_classes", num_classes, minimum=1)
        self.head = None if num_classes is None else head(widths[-1], num_classes)
        self._freeze()

    def reset_parameters(self) -> None:
        """All parameters anew, as after ``to_empty()``."""
        # Layers before what holds them, which may set their parameters otherwise.
        for module in reversed(list(self.modules())[1:]):
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()

    def forward(self, images: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Computes the maps of the chosen stages, or logits.

        Args:
            images: (N, in_channels, H, W), normalised.

        Returns:
            Contiguous maps (N, channels * 2^i, H / 2^(i + 2), W / 2^(i + 2)), sizes rounded up,
            for i in ``out_indices``; or logits (N, num_classes).
        """
        if self.head is not None:
            return self.head(self._stage_maps(images, len(self.levels)))
        maps = self._stage_maps(images, self.out_indices[-1] + 1)
        return tuple(_contiguous(maps[stage]) for stage in self.out_indices)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's maps (N, C, H / 32, W / 32), which the head is made for."""
        return _contiguous(self._stage_maps(images, len(self.levels))[-1])

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of stages, with the interface of timm's models.

        Args:
            images: Normalised images (N, in_channels, H, W).
            indices: The stages, the number of last stages, or ``None`` for all.
            norm: Not used: the stages end with their norms.
            stop_early: Skips the stages after the last requested one.
            output_fmt: ``"NCHW"`` or ``"NHWC"``.
            intermediates_only: Returns the list alone.

        Returns:
            The last maps that were computed, in NCHW, and a list of the requested ones.

        Raises:
            ValueError: There is no such stage or format.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt: expected NCHW or NHWC, got {output_fmt!r}")
        wanted = self._stages(indices)
        maps = self._stage_maps(images, wanted[-1] + 1 if stop_early else len(self.levels))
        requested = [maps[stage] for stage in wanted]
        if output_fmt == "NCHW":
            requested = [_contiguous(stage_maps) for stage_maps in requested]
        return requested if intermediates_only else (_contiguous(maps[-1]), requested)

    def _stages(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.levels)
        if isinstance(indices, int):
            wanted = list(range(count - indices, count))
        else:
            wanted = [i + count * (i < 0) for i in (range(count) if indices is None else indices)]
        if not wanted or not all(0 <= stage < count for stage in wanted):
            raise ValueError(f"indices: expected stages in 0..{count - 1}, got {indices}")
        return sorted(wanted)

    def _stage_maps(self, images: Tensor, count: int) -> list[Tensor]:
        """Maps (N, H, W, C) of the first ``count`` stages."""
        x = self.patch_embed(images)
        maps: list[Tensor] = []
        for stage in self.levels:
            if len(maps) == count:
                break
            output, x = stage(x, with_cp=self.with_cp)
            maps.append(output)
        return maps

    def fuse(self) -> "FlashInternImage":
        """Merges parameters for inference, in place: the outputs are the same but for rounding.

        Layer scales become part of the layers in front of them. In blocks with DCNv4 and norms in
        front of the branches (nano and T), one matrix product computes values, offsets and masks.

        The backbone is in evaluation mode afterwards, without gradients of its parameters, and
        cannot be trained. Its state dict has other keys: load weights first, and save the backbone
        that is not fused. A second call does nothing.

        Returns:
            The backbone itself.

        Raises:
            ValueError: A module has forward hooks, or is an adapter or a parametrization; nothing
                is changed then.

        Example:
            >>> backbone = FlashInternImage("nano").fuse()
            >>> len(backbone(torch.randn(1, 3, 64, 64)))
            4
        """
        if self.is_fused:
            return self
        check_fusible(self)
        self.requires_grad_(False)
        for stage in self.levels:
            blocks: Any = stage.blocks
            for index, block in enumerate(blocks):
                blocks[index] = fuse_block(block)
        self.eval()
        self.register_buffer("fused", torch.ones((), device=self.patch_embed.conv1.weight.device))
        return self

    @property
    def is_fused(self) -> bool:
        """Whether :meth:`fuse` was called."""
        return "fused" in self._buffers

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        given = f"{prefix}fused" in state_dict
        if given != self.is_fused and any(key.startswith(prefix) for key in state_dict):
            kinds = ("not fused", "fused")
            raise RuntimeError(
                f"the state dict is of a backbone that is {kinds[given]}, and this one is "
                f"{kinds[self.is_fused]}: load weights first, then call fuse()"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> "FlashInternImage":
        """Sets the training mode; frozen stages stay in evaluation mode.

        Raises:
            RuntimeError: The backbone is fused, and ``mode`` is true.
        """
        if mode and self.is_fused:
            raise RuntimeError(
                "a fused backbone is for inference: build one, load its weights and train that"
            )
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.levels[: self.frozen_stages]]
        for module in frozen:
            module.eval().requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay, as the originals count it.

        The stem is layer 0, then every block is a layer. A stage's norm and downsampling belong
        to the first block of the next stage (the last stage's norm to its own first block), an
        extra norm to the block in front of it.

        Args:
            param_name: Name of the parameter in the model.
            prefix: What stands before this backbone's names in the model, such as ``backbone.``.

        Returns:
            The layer's number, and the number of layers including the one for heads and others.
        """
        depths = list(self.arch.depths)
        num_layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        name = param_name.removeprefix(prefix)
        if name.startswith("patch_embed."):
            return 0, num_layers
        if block := re.match(r"levels\.(\d+)\.blocks\.(\d+)\.", name):
            stage, index = int(block[1]), int(block[2])
            return 1 + sum(depths[:stage]) + index, num_layers
        if extra := re.match(r"levels\.2\.post_norms\.(\d+)\.", name):
            return 1 + sum(depths[:2]) + self.arch.extra_norms[int(extra[1])], num_layers
        if between := re.match(r"levels\.(\d+)\.(?:norm|downsample)\.", name):
            stage = min(int(between[1]) + 1, len(depths) - 1)
            return 1 + sum(depths[:stage]), num_layers
        return num_layers - 1, num_layers


def _contiguous(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W), contiguous, as mmcv's RoIAlign is silently wrong for others."""
    return maps.permute(0, 3, 1, 2).contiguous()
