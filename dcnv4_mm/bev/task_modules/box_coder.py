"""The box code of ten elements."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcnv4_mm.bev.geometry import from_fractions, in_range

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

    @staticmethod
    def boxes(codes: Tensor) -> Tensor:
        """Boxes (..., 9) of codes (..., 10) in metres."""
        x, y, length, width, z, height, sine, cosine, vx, vy = codes.unbind(-1)
        return torch.stack(
            (x, y, z, length.exp(), width.exp(), height.exp(), torch.atan2(sine, cosine), vx, vy),
            dim=-1,
        )

    def to_metres(self, codes: Tensor) -> Tensor:
        """Converts x, y and z of codes from fractions of the range to metres."""
        fractions = torch.cat((codes[..., :2], codes[..., 4:5]), dim=-1)
        centers = from_fractions(fractions, self.point_cloud_range)
        return torch.cat(
            (centers[..., :2], codes[..., 2:4], centers[..., 2:], codes[..., 5:]), dim=-1
        )

    def topk(self, logits: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The highest scores of each sample; a query may have several classes.

        The result's sizes do not depend on values, so that nothing waits for the device.

        Args:
            logits: (batch, num_queries, num_classes).
            codes: (batch, num_queries, 10), in metres.

        Returns:
            Boxes (B, K, 9), scores (B, K) in descending order, labels (B, K), and whether a box's
            centre lies in the range (B, K).
        """
        classes = logits.shape[-1]
        count = min(self.max_num, logits.shape[1] * classes)
        scores, flat = logits.sigmoid().flatten(1).topk(count)
        labels, query = flat % classes, flat // classes
        chosen = codes.gather(1, query.unsqueeze(-1).expand(-1, -1, codes.shape[-1]))
        boxes = self.boxes(chosen)
        return boxes, scores, labels, in_range(boxes[..., :3], self.post_center_range)

    def decode(self, logits: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The highest scores of one sample whose boxes lie in the range.

        Args:
            logits: (Q, classes).
            codes: (Q, 10), in metres.

        Returns:
            Boxes (K, 9), scores (K) in descending order, and labels (K).
        """
        boxes, scores, labels, kept = (x[0] for x in self.topk(logits[None], codes[None]))
        return boxes[kept], scores[kept], labels[kept]
