"""The ten numbers that stand for a box with its velocity."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["BoxCoder"]


class BoxCoder:
    """Turns boxes into codes and predictions into boxes.

    A box is (x, y, z, length, width, height, yaw, vx, vy): gravity centre in metres, counter-
    clockwise yaw in radians, velocity in metres per second, all in the LiDAR frame. Its code is
    (x, y, log length, log width, z, log height, sin yaw, cos yaw, vx, vy).

    Args:
        point_cloud_range: x, y, z of the lower corner, then of the upper one, in metres.
        post_center_range: The same; boxes with a centre outside are dropped when decoding.
        max_num: How many boxes to decode per sample.

    Raises:
        ValueError: The range is not a cuboid.
    """

    def __init__(
        self,
        *,
        point_cloud_range: Sequence[float],
        post_center_range: Sequence[float],
        max_num: int = 300,
    ) -> None:
        lower, upper = point_cloud_range[:3], point_cloud_range[3:]
        if len(upper) != 3 or any(a >= b for a, b in zip(lower, upper, strict=True)):
            raise ValueError(
                "point_cloud_range must be x, y, z of the lower corner, then of the upper one, "
                f"got {list(point_cloud_range)}"
            )
        self.point_cloud_range = tuple(point_cloud_range)
        self.post_center_range = tuple(post_center_range)
        self.max_num = max_num

    @staticmethod
    def encode(boxes: Tensor) -> Tensor:
        """Codes (..., 10) of boxes (..., 9)."""
        x, y, z, length, width, height, yaw, vx, vy = boxes.unbind(-1)
        sizes = (length.log(), width.log(), height.log())
        return torch.stack(
            (x, y, sizes[0], sizes[1], z, sizes[2], yaw.sin(), yaw.cos(), vx, vy), dim=-1
        )

    def to_metres(self, codes: Tensor) -> Tensor:
        """Codes whose x, y and z are fractions of the range, with metres in their place."""
        lower, upper = codes.new_tensor(self.point_cloud_range).unflatten(0, (2, 3))
        centers = codes[..., [0, 1, 4]] * (upper - lower) + lower
        return torch.cat(
            (centers[..., :2], codes[..., 2:4], centers[..., 2:], codes[..., 5:]), dim=-1
        )

    def decode(self, logits: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Picks the best predictions of one sample; one query may answer for several classes.

        Args:
            logits: (Q, classes).
            codes: (Q, 10), in metres.

        Returns:
            Boxes (K, 9), scores (K), the highest first, and labels (K).
        """
        count = min(self.max_num, logits.numel())
        scores, flat = logits.sigmoid().flatten().topk(count)
        labels = flat % logits.shape[1]
        x, y, length, width, z, height, sine, cosine, vx, vy = codes[
            flat // logits.shape[1]
        ].unbind(-1)
        boxes = torch.stack(
            (x, y, z, length.exp(), width.exp(), height.exp(), torch.atan2(sine, cosine), vx, vy),
            dim=-1,
        )
        lower, upper = boxes.new_tensor(self.post_center_range).unflatten(0, (2, 3))
        kept = ((boxes[:, :3] >= lower) & (boxes[:, :3] <= upper)).all(-1)
        return boxes[kept], scores[kept], labels[kept]
