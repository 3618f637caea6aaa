"""The decoder: self-attention of object queries, and cross-attention to the BEV features."""

import torch
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from torch import Tensor, nn

from dcnv4_mm.bev.geometry import inverse_sigmoid
from dcnv4_mm.bev.layers.attention import ObjectCrossAttention

__all__ = ["ObjectDecoder", "ObjectDecoderLayer"]

_Shape = tuple[int, int]


class _SelfAttention(MultiheadAttention):
    """mmcv's attention, without returning its weights, so that a fused kernel can serve it."""

    def forward(self, query: Tensor, *, query_pos: Tensor) -> Tensor:
        """Attention of queries (batch, num_queries, embed_dims), with the residual."""
        # torch's module has the batch second.
        key = (query + query_pos).transpose(0, 1)
        mixed = self.attn(key, key, query.transpose(0, 1), need_weights=False)[0]
        return query + self.dropout_layer(self.proj_drop(mixed.transpose(0, 1)))


class ObjectDecoderLayer(nn.Module):
    """Self-attention within each group of queries, cross-attention to the BEV features, FFN.

    Args:
        embed_dims: Number of channels C.
        feedforward_channels: Hidden channels of the FFN.
        num_heads: Number of heads of both attentions.
        dropout: Dropout ratio.
    """

    def __init__(
        self, embed_dims: int, *, feedforward_channels: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [
                _SelfAttention(
                    embed_dims,
                    num_heads,
                    attn_drop=dropout,
                    dropout_layer=dict(type="Dropout", drop_prob=dropout),
                    batch_first=True,
                ),
                ObjectCrossAttention(embed_dims, num_heads=num_heads, dropout=dropout),
            ]
        )
        self.ffns = nn.ModuleList([FFN(embed_dims, feedforward_channels, ffn_drop=dropout)])
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        bev_embed: Tensor,
        bev_shape: _Shape,
        num_groups: int,
    ) -> Tensor:
        """Applies the layer.

        Args:
            query: (B, G * Q, C), group after group.
            query_pos: Positional embeddings, (B, G * Q, C).
            reference_points: (B, G * Q, 2), as fractions of the grid.
            bev_embed: BEV features, (B, H * W, C).
            bev_shape: (H, W) of the grid.
            num_groups: Groups G, which do not attend to each other.

        Returns:
            (B, G * Q, C).
        """
        self_attn, cross_attn = self.attentions
        groups = (query.shape[0] * num_groups, -1, query.shape[-1])
        mixed = self_attn(query.reshape(groups), query_pos=query_pos.reshape(groups))
        query = self.norms[0](mixed.view_as(query))
        query = self.norms[1](
            cross_attn(
                query,
                query_pos=query_pos,
                reference_points=reference_points,
                value=bev_embed,
                bev_shape=bev_shape,
            )
        )
        return self.norms[2](self.ffns[0](query))


class ObjectDecoder(nn.Module):
    """Refines object queries and their reference points layer by layer.

    Args:
        embed_dims: Number of channels C.
        num_layers: Number of layers.
        feedforward_channels: Hidden channels of the FFNs.
        num_heads: Number of heads.
        dropout: Dropout ratio.
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
        query_pos: Tensor,
        reference_points: Tensor,
        bev_embed: Tensor,
        bev_shape: _Shape,
        num_groups: int,
        reg_branches: nn.ModuleList,
    ) -> tuple[Tensor, Tensor]:
        """Decodes.

        Args:
            query: (B, G * Q, C), group after group.
            query_pos: Positional embeddings, (B, G * Q, C).
            reference_points: (B, G * Q, 3), initial x, y, z as fractions of the range.
            bev_embed: BEV features, (B, H * W, C).
            bev_shape: (H, W) of the grid.
            num_groups: Groups G.
            reg_branches: The network of each layer that predicts a box code; see :class:`BoxCoder`.

        Returns:
            Queries after each layer, (layers, B, G * Q, C), and the box codes of each layer,
            (layers, B, G * Q, 10), with x, y, z as fractions of the range.
        """
        states, codes = [], []
        for layer, branch in zip(self.layers, reg_branches, strict=True):
            query = layer(
                query, query_pos, reference_points[..., :2], bev_embed, bev_shape, num_groups
            )
            code = branch(query).float()
            # [B, G * Q, 3]: a code's x, y and z are offsets from the reference point's logit.
            center = (
                inverse_sigmoid(reference_points)
                + torch.cat((code[..., :2], code[..., 4:5]), dim=-1)
            ).sigmoid()
            states.append(query)
            codes.append(
                torch.cat((center[..., :2], code[..., 2:4], center[..., 2:], code[..., 5:]), dim=-1)
            )
            reference_points = center.detach()
        return torch.stack(states), torch.stack(codes)
