"""Object queries whose reference points are the proposals of the perspective head."""

import math
from collections.abc import Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

__all__ = ["ProposalQueries", "proposal_reference_points"]

_TEMPERATURE = 10000
# Keeps the logit of a reference point, and its gradient, finite.
_MARGIN = 1e-3


class ProposalQueries(nn.Module):
    """Learned queries whose positional embedding includes an encoding of their proposal.

    The encoding is zero at initialization.

    Args:
        embed_dims: Number of channels C.
        num_proposals: Proposals K per sample.
        num_groups: Groups G, each with the same proposals.
        num_feats: Channels of the sine encoding, per coordinate.

    Source:
        Yang et al., "BEVFormer v2", CVPR 2023, section 3.5, which publishes that projected
        centres become reference points beside the learned ones; the rest is this project's.
    """

    def __init__(
        self, embed_dims: int, *, num_proposals: int, num_groups: int, num_feats: int = 128
    ) -> None:
        super().__init__()
        self.num_proposals, self.num_feats = num_proposals, num_feats
        self.embedding = nn.Embedding(num_proposals * num_groups, 2 * embed_dims)
        self.encoding = nn.Sequential(
            nn.Linear(3 * num_feats, embed_dims), nn.ReLU(), nn.Linear(embed_dims, embed_dims)
        )

    def reset_parameters(self) -> None:
        """Zero-initializes the last layer of the proposal encoding."""
        nn.init.zeros_(self.encoding[-1].weight)
        nn.init.zeros_(self.encoding[-1].bias)

    def forward(self, proposals: Tensor, num_groups: int) -> Tensor:
        """Positional embeddings and contents, (B, G, K, 2 * C).

        Args:
            proposals: (B, K, 3), as :func:`proposal_reference_points` makes them.
            num_groups: Number of groups G to return.
        """
        known = proposals.isfinite().all(-1, keepdim=True)
        encoded = self.encoding(self._sine(proposals.nan_to_num())) * known
        learned = self.embedding.weight.unflatten(0, (-1, self.num_proposals))[:num_groups]
        query_pos, content = learned.expand(len(proposals), -1, -1, -1).chunk(2, dim=-1)
        return torch.cat((query_pos + encoded.unsqueeze(1), content), dim=-1)

    def _sine(self, fractions: Tensor) -> Tensor:
        """(..., 3) to (..., 3 * num_feats)."""
        steps = torch.arange(0, self.num_feats, 2, device=fractions.device) / self.num_feats
        angles = fractions[..., None] * (2 * math.pi / _TEMPERATURE**steps)
        return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def proposal_reference_points(
    found: Sequence[InstanceData],
    num_proposals: int,
    point_cloud_range: Sequence[float],
    bev_augmentation: Tensor | None = None,
) -> Tensor:
    """Reference points of the best proposals of each sample.

    Args:
        found: ``bboxes_3d`` of each sample, in descending order of score.
        num_proposals: Number of proposals K.
        point_cloud_range: x, y, z of the lower corner, then of the upper one, in metres.
        bev_augmentation: (B, 3, 3), the transform applied to the objects.

    Returns:
        (B, K, 3), as fractions of the range, NaN where there are fewer.
    """
    rows = []
    for sample, instances in enumerate(found):
        centers = instances.bboxes_3d.gravity_center.float()
        if bev_augmentation is not None:
            centers = (bev_augmentation[sample] * centers.unsqueeze(1)).sum(-1)
        lower, upper = centers.new_tensor(point_cloud_range).unflatten(0, (2, 3))
        fractions = (centers - lower) / (upper - lower)
        inside = ((fractions >= 0) & (fractions <= 1)).all(-1)
        best = fractions[inside][:num_proposals].clamp(_MARGIN, 1 - _MARGIN)
        row = best.new_full((num_proposals, 3), torch.nan)
        row[: len(best)] = best
        rows.append(row)
    return torch.stack(rows)
