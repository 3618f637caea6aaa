"""For mmpretrain: FlashInternImage's classification head, and mmpretrain's networks with DCNv4."""

from typing import Any

from mmengine.model import ModuleList
from mmpretrain.models.backbones import ConvNeXt, VisionTransformer
from mmpretrain.models.heads import ClsHead
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from dcnv4_mm.backbones.heads import ClassificationHead
from dcnv4_mm.layers import swap_attention, swap_convolutions

__all__ = ["DCNv4ConvNeXt", "DCNv4VisionTransformer", "FlashInternImageHead"]


class DCNv4ConvNeXt(ConvNeXt):
    """mmpretrain's ConvNeXt with DCNv4, without projections, instead of 7 x 7 convolutions.

    Args:
        *args: Those of mmpretrain's ``ConvNeXt``.
        **arguments: Those of mmpretrain's ``ConvNeXt``.

    Note:
        A checkpoint of the original network loads into all other parts; mmengine's log lists the
        unused convolutions and the new layers, which keep their initial values.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, table 4; the choices are
        those of :func:`dcnv4_mm.layers.swap_convolutions`.
    """

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        # mmengine's initialization does not recurse into torch's own ModuleList.
        self.stages = ModuleList(self.stages)
        swap_convolutions(self)


class DCNv4VisionTransformer(VisionTransformer):
    """mmpretrain's ViT with DCNv4 instead of attention.

    Args:
        *args: Those of mmpretrain's ``VisionTransformer``.
        **arguments: Those of mmpretrain's ``VisionTransformer``; the attention's dropout is unused.

    Note:
        A class token, if there is one, is set to the mean of the patches in every layer. A
        checkpoint of the original network loads into all parts but the attention.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, table 4; the choices are
        those of :func:`dcnv4_mm.layers.swap_attention`.
    """

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        swap_attention(self, MultiheadAttention, patch_embed="patch_embed.projection")


class FlashInternImageHead(ClsHead):
    """1x1 convolution, batch norm, GELU, global average pooling and a linear classifier.

    The submodules have the original's names, ``conv_head`` and ``head``.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the backbone's last stage.
        **arguments: Those of mmpretrain's ``ClsHead``: ``loss``, ``topk``, ``cal_acc``,
            ``init_cfg``.

    Raises:
        ValueError: ``num_classes`` or ``in_channels`` is not positive.
    """

    def __init__(self, num_classes: int, in_channels: int, **arguments: Any) -> None:
        if num_classes < 1 or in_channels < 1:
            raise ValueError(
                f"num_classes and in_channels must be positive, got {num_classes} and {in_channels}"
            )
        super().__init__(**arguments)
        self.num_classes = num_classes
        layers = ClassificationHead(in_channels, num_classes)
        self.conv_head = nn.Sequential(layers.conv, nn.Sequential(layers.norm), layers.act)
        self.head = layers.fc

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Pooled features (N, 1.5 * in_channels) of the last feature map (N, C, H, W)."""
        return self.conv_head(feats[-1]).mean((2, 3))

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Logits (N, num_classes) of the last feature map (N, C, H, W)."""
        return self.head(self.pre_logits(feats))
