"""diffusers' U-Net with DCNv4 in its residual blocks."""

import functools
from typing import Any

from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from dcnv4_mm.layers import swap_convolutions

__all__ = ["DCNv4UNet2DModel"]


class DCNv4UNet2DModel(UNet2DModel):
    """A U-Net whose residual blocks mix pixels by DCNv4 instead of 3 x 3 convolutions.

    Arguments and forward are those of diffusers' ``UNet2DModel``. A convolution that also changes
    the number of channels becomes a linear layer that does, and DCNv4 on its result. The first and
    last convolution, and those that halve and double the size, stay.

    Raises:
        ValueError: A channel count is no multiple of 16, the width of DCNv4's groups here.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, the experiment on image
        generation. Left open there and chosen here: what is done where the channels change, groups
        of 16 channels as in FlashInternImage, no depthwise convolution in front of the offsets, and
        a start as the mean of the window.

    Example:
        >>> unet = DCNv4UNet2DModel(sample_size=32, block_out_channels=(32, 32, 64, 64))
        >>> unet(torch.randn(2, 3, 32, 32), timestep=500).sample.shape
        torch.Size([2, 3, 32, 32])
    """

    # diffusers saves and reads the arguments that the signature names.
    @functools.wraps(UNet2DModel.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        selected = set()
        for name, block in self.named_modules():
            if not isinstance(block, ResnetBlock2D):
                continue
            selected.add(f"{name}.conv2")
            if block.in_channels == block.out_channels:
                selected.add(f"{name}.conv1")
                continue
            block.conv1 = nn.Sequential(
                nn.Conv2d(block.in_channels, block.out_channels, 1),
                nn.Conv2d(block.out_channels, block.out_channels, 3, padding=1),
            )
            selected.add(f"{name}.conv1.1")
        swap_convolutions(self, lambda name, _: name in selected)
