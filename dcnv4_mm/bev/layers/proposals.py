"""Object queries that start where the perspective head has found something."""

import math
from collections.abc import Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

__all__ = ["ProposalQueries", "proposal_references"]

_TEMPERATURE = 10000
# Keeps the logit of a reference finite, and its gradient alive.
_MARGIN = 1e-3


class ProposalQueries(nn.Module):
    """Learned queries whose positions also know the proposals that they start from.

    At the start of training the positions are the learned ones alone.

    Args:
        embed_dims: Number of channels C.
        num_proposals: Proposals K per sample.
        num_groups: Groups G, which share the proposals.
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
        """Silences the encoding of the proposals' places."""
        nn.init.zeros_(self.encoding[-1].weight)
        nn.init.zeros_(self.encoding[-1].bias)

    def forward(self, proposals: Tensor, num_groups: int) -> Tensor:
        """Positional embeddings and contents, (B, G, K, 2 * C).

        Args:
            proposals: (B, K, 3), as :func:`proposal_references` makes them.
            num_groups: How many groups are asked, G.
        """
        known = proposals.isfinite().all(-1, keepdim=True)
        encoded = self.encoding(self._sine(proposals.nan_to_num())) * known
        learned = self.embedding.weight.unflatten(0, (-1, self.num_proposals))[:num_groups]
        position, content = learned.expand(len(proposals), -1, -1, -1).chunk(2, dim=-1)
        return torch.cat((position + encoded.unsqueeze(1), content), dim=-1)

    def _sine(self, fractions: Tensor) -> Tensor:
        """(..., 3) to (..., 3 * num_feats)."""
        steps = torch.arange(0, self.num_feats, 2, device=fractions.device) / self.num_feats
        angles = fractions[..., None] * (2 * math.pi / _TEMPERATURE**steps)
        return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def proposal_references(
    found: Sequence[InstanceData],
    num_proposals: int,
    point_cloud_range: Sequence[float],
    bev_augmentation: Tensor | None = None,
) -> Tensor:
    """Where the best proposals of each sample lie.

    Args:
        found: Of each sample ``bboxes_3d``, the best first.
        num_proposals: How many to take, K.
        point_cloud_range: x, y, z of the lower corner, then of the upper one, in metres.
        bev_augmentation: (B, 3, 3), the transform that the objects went through.

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
