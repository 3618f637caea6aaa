"""The decoder: object queries that look at each other and at the BEV."""

import torch
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from torch import Tensor, nn

from dcnv4_mm.bev.geometry import inverse_sigmoid
from dcnv4_mm.bev.layers.attention import BEVCrossAttention

__all__ = ["ObjectDecoder", "ObjectDecoderLayer"]

_Shape = tuple[int, int]


class ObjectDecoderLayer(nn.Module):
    """Self-attention within each group of queries, attention to the BEV, feed-forward network.

    Args:
        embed_dims: Number of channels C.
        feedforward_channels: Hidden channels of the feed-forward network.
        num_heads: Number of heads of both attentions.
        dropout: Share that is dropped in training.
    """

    def __init__(
        self, embed_dims: int, *, feedforward_channels: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [
                MultiheadAttention(
                    embed_dims,
                    num_heads,
                    attn_drop=dropout,
                    dropout_layer=dict(type="Dropout", drop_prob=dropout),
                    batch_first=True,
                ),
                BEVCrossAttention(embed_dims, num_heads=num_heads, dropout=dropout),
            ]
        )
        self.ffns = nn.ModuleList([FFN(embed_dims, feedforward_channels, ffn_drop=dropout)])
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        references: Tensor,
        bev: Tensor,
        shape: _Shape,
        num_groups: int,
    ) -> Tensor:
        """Applies the layer.

        Args:
            query: (B, G * Q, C), group after group.
            position: Positional embeddings, (B, G * Q, C).
            references: (B, G * Q, 2), as fractions of the grid.
            bev: (B, H * W, C).
            shape: (H, W) of the grid.
            num_groups: Groups G, which do not see each other.

        Returns:
            (B, G * Q, C).
        """
        look_at_others, look_at_bev = self.attentions
        groups = (query.shape[0] * num_groups, -1, query.shape[-1])
        mixed = look_at_others(query.reshape(groups), query_pos=position.reshape(groups))
        query = self.norms[0](mixed.view_as(query))
        query = self.norms[1](
            look_at_bev(query, position=position, references=references, bev=bev, shape=shape)
        )
        return self.norms[2](self.ffns[0](query))


class ObjectDecoder(nn.Module):
    """Refines object queries and their positions layer by layer.

    Args:
        embed_dims: Number of channels C.
        num_layers: Number of layers.
        feedforward_channels: Hidden channels of the feed-forward networks.
        num_heads: Number of heads.
        dropout: Share that is dropped in training.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        *,
        num_layers: int = 6,
        feedforward_channels: int = 512,
        num_heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ObjectDecoderLayer(
                embed_dims,
                feedforward_channels=feedforward_channels,
                num_heads=num_heads,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

    def forward(
        self,
        query: Tensor,
        *,
        position: Tensor,
        references: Tensor,
        bev: Tensor,
        shape: _Shape,
        num_groups: int,
        reg_branches: nn.ModuleList,
    ) -> tuple[Tensor, Tensor]:
        """Decodes.

        Args:
            query: (B, G * Q, C), group after group.
            position: Positional embeddings, (B, G * Q, C).
            references: (B, G * Q, 3), initial x, y, z as fractions of the range.
            bev: (B, H * W, C).
            shape: (H, W) of the grid.
            num_groups: Groups G.
            reg_branches: For each layer the network that predicts a box code; see the box coder.

        Returns:
            Queries after each layer, (layers, B, G * Q, C), and the box codes of each layer,
            (layers, B, G * Q, 10), with x, y, z as fractions of the range.
        """
        states, codes = [], []
        for layer, branch in zip(self.layers, reg_branches, strict=True):
            query = layer(query, position, references[..., :2], bev, shape, num_groups)
            code = branch(query).float()
            # [B, G * Q, 3]: a code's x, y and z are steps from the reference, before the sigmoid.
            center = (inverse_sigmoid(references) + code[..., [0, 1, 4]]).sigmoid()
            states.append(query)
            codes.append(
                torch.cat((center[..., :2], code[..., 2:4], center[..., 2:], code[..., 5:]), dim=-1)
            )
            references = center.detach()
        return torch.stack(states), torch.stack(codes)
