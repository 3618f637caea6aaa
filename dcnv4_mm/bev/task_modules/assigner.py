"""One-to-one matching of predictions and objects."""

import torch
import torch.nn.functional as F
from mmdet.models.task_modules.assigners import FocalLossCost
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["HungarianAssigner"]


class HungarianAssigner:
    """Finds, for every decoder layer and group of queries, the cheapest matching.

    Args:
        cls_weight: Weight of the focal classification cost.
        box_weight: Weight of the smooth L1 cost of the codes.
        code_size: How many of a code's numbers count; the velocity, last, does not.
    """

    def __init__(
        self, *, cls_weight: float = 2.0, box_weight: float = 0.75, code_size: int = 8
    ) -> None:
        self.focal_cost = FocalLossCost(weight=cls_weight)
        self.box_weight, self.code_size = box_weight, code_size

    @torch.no_grad()
    def assign(self, logits: Tensor, codes: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """Matches the predictions of one sample with its objects.

        Args:
            logits: (..., Q, classes).
            codes: (..., Q, 10).
            labels: Classes of the objects, (M,).
            targets: Codes of the objects, (M, 10).

        Returns:
            For each prediction its object's index, or -1, (..., Q) int64.
        """
        # A prediction that is not finite costs more than any other, and stops nothing.
        cost = torch.nan_to_num(self._cost(logits, codes, labels, targets), 1e4, 1e4)
        assigned = torch.full(cost.shape[:-1], -1, dtype=torch.int64)
        # One transfer for all layers and groups.
        problems = cost.cpu().numpy().reshape(-1, *cost.shape[-2:])
        for answer, problem in zip(assigned.view(len(problems), -1), problems, strict=True):
            rows, columns = linear_sum_assignment(problem)
            answer[torch.from_numpy(rows)] = torch.from_numpy(columns)
        return assigned.to(logits.device)

    def _cost(self, logits: Tensor, codes: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """(..., Q, M)."""
        scores = InstanceData(scores=logits.float().flatten(0, -2))
        focal = self.focal_cost(scores, InstanceData(labels=labels))
        predicted = codes[..., None, : self.code_size].float()
        wanted = targets[:, : self.code_size].float()
        distance = F.smooth_l1_loss(
            *torch.broadcast_tensors(predicted, wanted), reduction="none"
        ).sum(-1)
        return focal.view_as(distance) + self.box_weight * distance
