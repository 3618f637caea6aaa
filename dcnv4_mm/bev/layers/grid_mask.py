"""GridMask: hides a grid of squares of the training images."""

import torch
from torch import Tensor, nn

__all__ = ["GridMask"]


class GridMask(nn.Module):
    """Sets a regular grid of squares to zero, the same one in all images of a sample.

    Stripes of rows and columns are kept. Their period is drawn from 2 to the image's height and
    their offset from 0 to the period, for each sample. The identity in evaluation.

    Args:
        prob: Probability that a sample is masked.
        ratio: Ratio of a stripe's width to the period.

    Source:
        Chen et al., "GridMask Data Augmentation", 2020; inverted and without rotation.
    """

    def __init__(self, prob: float = 0.7, ratio: float = 0.5) -> None:
        super().__init__()
        self.prob, self.ratio = prob, ratio

    def forward(self, images: Tensor) -> Tensor:
        """Masks images (batch, num_cameras, 3, H, W), normalised."""
        if not self.training or self.prob == 0:
            return images
        masks = [
            self._mask(images.shape[-2], images.shape[-1])
            if torch.rand(()) < self.prob
            else torch.ones(images.shape[-2:])
            for _ in images
        ]
        return images * torch.stack(masks).to(images)[:, None, None]

    def _mask(self, height: int, width: int) -> Tensor:
        """1 where a pixel is kept, (H, W)."""
        period = int(torch.randint(2, height, ()))
        stripe = min(max(int(self.ratio * period + 0.5), 1), period - 1)
        rows, columns = (self._stripes(size, period, stripe) for size in (height, width))
        return (rows[:, None] | columns[None]).float()

    @staticmethod
    def _stripes(size: int, period: int, stripe: int) -> Tensor:
        # The original draws canvas // period stripes, from the offset on, and crops the middle of
        # a canvas of 1.5 times the size: the last ones may be missing.
        canvas = int(1.5 * size)
        start = (canvas - size) // 2
        at = torch.arange(start, start + size) - int(torch.randint(period, ()))
        drawn = (at >= 0) & (at < canvas // period * period)
        return drawn & (at % period < stripe)
