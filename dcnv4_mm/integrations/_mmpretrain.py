"""The classification head of FlashInternImage, for mmpretrain's classifier."""

from typing import Any

from mmpretrain.models.heads import ClsHead
from torch import Tensor, nn

from dcnv4_mm.backbones.heads import ClassificationHead

__all__ = ["FlashInternImageHead"]


class FlashInternImageHead(ClsHead):
    """1x1 convolution, batch norm, GELU, mean over the image, linear classifier.

    Its parts have the original's names, ``conv_head`` and ``head``.

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
        layers = ClassificationHead(in_channels, num_classes)
        self.conv_head = nn.Sequential(layers.conv, nn.Sequential(layers.norm), layers.act)
        self.head = layers.fc

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Means (N, 1.5 * in_channels) of the last of maps (N, C, H, W)."""
        return self.conv_head(feats[-1]).mean((2, 3))

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Logits (N, num_classes) of maps (N, C, H, W), of which the last count."""
        return self.head(self.pre_logits(feats))
